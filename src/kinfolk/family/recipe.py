"""How a family is trained and grown: optimizer, schedule, checkpoints, growth."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kinfolk.family.base import Spec
from kinfolk.family.faults import MisfitError
from kinfolk.family.peak_rules import PeakRule
from kinfolk.family.rate_transfer import RateTransfer

_Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Spec):
    """AdamW, or Muon for the layers' matrices and AdamW for the rest; weight decay acts on matrices, never on norms."""

    matrices: Literal["adamw", "muon"] = "adamw"
    """What moves the weight matrices of the layers; AdamW moves embedding, head, norms and biases."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    weight_decay_rule: Literal["everywhere", "cautious"] = "everywhere"
    """Which coordinates of a matrix decay: all, or those that the update moves towards zero as well."""


class Schedule(Spec):
    """Learning rate over one stage: linear warm-up, hold, decay. Shares are of the stage's steps."""

    warmup_share: float = Field(default=0.05, ge=0, le=1)
    decay_share: float = Field(default=0.95, ge=0, le=1)
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    end_ratio: float = Field(default=0.0, ge=0, le=1)
    rewarmup_share: float | None = Field(default=None, ge=0, le=1)
    """Warm-up of a stage that has grown; by default as long as any."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for field, warmup in (("warmup_share", self.warmup_share), ("rewarmup_share", self.rewarmup_share or 0.0)):
            if warmup + self.decay_share > 1 + 1e-9:
                raise MisfitError(
                    f"{field} {warmup:g} and decay_share {self.decay_share:g} add to more than 1",
                    field="decay_share",
                    fix=f"use decay_share {1 - warmup:.4g}",
                )
        return self

    def warmup(self, grown: bool) -> float:
        """Share of a stage's steps that its warm-up takes."""
        return self.rewarmup_share if grown and self.rewarmup_share is not None else self.warmup_share


class Checkpoints(Spec):
    """When training state is saved: by the clock, at a bounded cost, or every so many steps."""

    seconds: float = Field(default=30.0, gt=0)
    """Time between two; lengthened where needed so that saving costs at most 2 % of the run."""
    steps: int | None = Field(default=None, ge=1)
    """Save every so many steps instead."""
    keep: int = Field(default=0, ge=0, le=1000)
    """Where the rate is constant, keep the last so many of these beside the newest, for `kinfolk average`."""

    @model_validator(mode="after")
    def _spaced(self) -> Self:
        if self.keep and self.steps is None:
            raise MisfitError("only checkpoints at even steps can be averaged", field="keep", fix="set steps as well")
        return self


class Spikes(Spec):
    """What is done about a step whose loss is far above those before it; see `kinfolk.train.spikes`."""

    action: Literal["report", "rollback"] = "report"
    """Say so only; or go back to an earlier checkpoint as well, and leave out the steps up to the spike."""
    deviations: float = Field(default=7.0, ge=3)
    """A spike is so many standard deviations above the line through the last 64 losses."""
    most: int = Field(default=8, ge=1, le=1000)
    """Of how many spikes a stage is rolled back; further ones are said only."""


class BatchWarmup(Spec):
    """Small batches at the beginning of every member that is trained from scratch; see `kinfolk.plan.batches`."""

    start: int = Field(ge=1, le=10**12)
    """Tokens of the first steps; they double up to `tokens_per_step`."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of the first stage's tokens by which they have doubled for the last time."""


class Recipe(Spec):
    peak_learning_rate: float = Field(default=3e-3, gt=0)
    """Peak of the first member."""
    peak_rule: PeakRule = "exponent"
    """How the peaks of the other members follow from it; see `kinfolk.family.peak_rules`."""
    peak_exponent: float = Field(default=0.0, ge=0, le=2)
    """Of the rule `exponent`, which lowers the peak by size as arXiv 2504.00623 does: peak_i = peak (N_i / N_1)^-e."""
    rate_transfer: RateTransfer = RateTransfer()
    """Rates of the other shapes from those of one, by parameter; the peak is then that one's."""
    schedule: Schedule = Schedule()
    optimizer: Optimizer = Optimizer()
    tokens_per_step: int = Field(default=4096, ge=1, le=10**12)
    sequences_per_micro_batch: int | None = Field(default=None, ge=1)
    """Sequences that one process holds at once; by default about 1,024 tokens on a CPU and 32,768 on a GPU."""
    batch_warmup: BatchWarmup | None = None
    gradient_clip: Annotated[float, Field(gt=0)] | Literal["none"] = 1.0
    """Largest global norm of a step's gradient; `none` leaves gradients as they are."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Coefficient of the mean square of log(sum(exp(logits))), which is minimised along with the cross-entropy."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)
    held_out_every_steps: int | None = Field(default=None, ge=1)
    """Steps between two quick held-out losses; by default twenty times a stage."""
    checkpoints: Checkpoints = Checkpoints()
    spikes: Spikes = Spikes()
    max_epochs: float = Field(default=4.0, gt=0)
    """A plan that reads its training data more often than this warns. Up to 4 times, repeated data are nearly as good
    as new (Muennighoff et al., arXiv 2305.16264, section 6)."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.peak_exponent and self.peak_rule != "exponent":
            raise MisfitError(
                f"the rule {self.peak_rule} says how peaks fall, and an exponent would lower them a second time",
                field="peak_exponent",
                fix="set it to 0, or peak_rule to exponent",
            )
        return self

    @model_validator(mode="after")
    def _returns(self) -> Self:
        if self.spikes.action == "rollback" and self.checkpoints.steps is None:
            raise MisfitError(
                "what a run goes back to must not depend on the clock, or no run could be repeated",
                field="spikes.action",
                fix="set checkpoints.steps as well, for example to 100",
            )
        return self

    @field_validator("gradient_clip", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "none":
            raise MisfitError(f"{value!r} is no norm of a gradient", fix="write a number, or none to clip nothing")
        return value

    @model_validator(mode="after")
    def _doubles(self) -> Self:
        full = self.tokens_per_step
        if self.batch_warmup is not None and self.batch_warmup.start not in halves(full):
            start = self.batch_warmup.start
            nearest = min(halves(full), key=lambda half: abs(half - start), default=None)
            raise MisfitError(
                f"{start} tokens do not become tokens_per_step {full} by doubling",
                field="batch_warmup.start",
                fix="use an even number of tokens per step" if nearest is None else f"use {nearest}",
            )
        return self


def halves(tokens: int) -> list[int]:
    """A number halved as often as it is even.

    >>> halves(24)
    [12, 6, 3]
    """
    found = []
    while tokens % 2 == 0:
        tokens //= 2
        found.append(tokens)
    return found


class Growth(Spec):
    """How a member becomes the next; see `kinfolk.growth`."""

    width: Literal["energy_split", "tile", "fpi", "aki", "lemon", "zero_pad"] = "zero_pad"
    depth: Literal["zero_exit", "stack", "interpolate", "middle"] = "zero_exit"
    placement: Literal["top", "even"] = "top"
    """Where zero-exit layers come."""
    block: Literal["copied", "drawn"] = "drawn"
    """What zero-exit layers hold apart from their zero exits: a copied layer's matrices, or random ones."""
    split: Literal["even", "uneven"] = "even"
    """Whether readers take equal shares of the copies of a unit, or 1 : 2 : ... ."""
    noise: float = Field(default=1.0, ge=0, le=10)
    snr: float | None = Field(default=None, ge=-40, le=120)
    """Signal-to-noise ratio of the noise in decibels, in place of `noise`."""
    optimizer: Literal["carry", "reset", "asymmetric"] = "carry"
    """Adam's state: carried, dropped, or carried on the parent's coordinates and zero on the new ones."""
    rates: Literal["uniform", "inherit", "rewarm_new"] = "uniform"
    """Which learning rate the coordinates get: all the stage's, or as they were rescaled, or the new ones their own."""
    rewarm_factor: float = Field(default=1.3, gt=0, le=100)
    rewarm_steps: int = Field(default=250, ge=1, le=10**12)
    """Under `rewarm_new`: steps in which the new coordinates' rate rises to `rewarm_factor` times the stage's."""
    start: Literal["finished", "undecayed"] = "finished"
    """Which state of the smaller member grows: the one before its learning rate decays, or the finished one."""
