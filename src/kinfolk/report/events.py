"""What ledger.jsonl says, as data: one class for each event that the page shows something of."""

import shlex
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kinfolk.report.records import Cost, Forecast, Record, StageForecast


def _joined(value: Any) -> Any:
    """A command of older ledgers, a list of words, as one text; anything else as it is."""
    is_words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return shlex.join(value) if is_words else value


Command = Annotated[str, BeforeValidator(_joined)]


class BuildStarted(Record):
    time: float
    command: Command
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    job: str | None = None
    """Sets it apart from others at the same time; older ledgers have none."""
    only: tuple[str, ...] | None = None
    """The members that it was given; None for a build of all."""


class JobFinished(Record):
    """One of several jobs has done all that its members need."""

    time: float
    job: str | None = None


class BuildFinished(Record):
    time: float
    seconds: float


class DataPrepared(Record):
    train_tokens: float
    train_bytes: float
    train_documents: float
    held_out_tokens: float
    held_out_bytes: float
    held_out_documents: float


class StageStarted(Record):
    stage: str
    precision: str | None = None


class GrowthComparison(Record):
    """Parent and child on the same tokens in one precision."""

    max_abs_logit_difference: float
    kl: float
    loss_before: float
    loss_after: float
    max_abs_logit: float | None = None


class Verification(Record):
    claims_preservation: bool
    passed: bool | None
    float32: GrowthComparison
    float64: GrowthComparison


class Grown(Record):
    stage: str
    parent: str
    description: str = ""
    verification: Verification | None = None
    seconds: float = 0.0


class Interrupted(Record):
    stage: str
    step: int


class StageResumed(Record):
    stage: str
    step: int


class StageFinished(Record):
    stage: str
    steps: int
    tokens: float
    epochs: float
    seconds: float
    final_loss: float | None = None
    """None for a stage at patch level, or without steps."""
    flops: Cost
    not_forecast: str | None = None
    """Why its end was never forecast while it trained."""


class StageDiverged(Record):
    stage: str
    step: int
    fault: str


class HeldOut(Record):
    loss: float
    perplexity: float
    bits_per_byte: float = Field(gt=0, allow_inf_nan=False)
    bits_per_byte_low: float | None = None
    bits_per_byte_high: float | None = None
    tokens: float
    bytes: float


class Sample(Record):
    prompt: str
    continuation: str


class Sampling(Record):
    """How sample text was drawn; the seed of a prompt is `seed` plus its place."""

    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int


class Divergence(Record):
    """How far a member is from an earlier one, on held-out text."""

    previous: str
    kl_small_to_large: float
    kl_large_to_small: float
    top1_agreement: float
    tokens: int | None = None


class MemberFinished(Record):
    member: str
    stage: str
    path: str
    sha256: str
    held_out: HeldOut
    samples: tuple[Sample, ...] = ()
    sampling: Sampling | None = None
    kl_from_previous: Divergence | None = None
    kl_from_earlier: tuple[Divergence, ...] = ()
    """From every member before it; older builds have `kl_from_previous` only."""

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """What is known of its distance to members before it."""
        return self.kl_from_earlier or ((self.kl_from_previous,) if self.kl_from_previous else ())


class MembersCompared(Record):
    """What `MemberFinished` lacks of members that another job had not finished then."""

    member: str
    stage: str
    kl_from_previous: Divergence | None
    kl_from_earlier: tuple[Divergence, ...]


class Outlook(Record):
    """What was forecast of a stage's end beside one of its held-out losses."""

    step: int
    forecast_loss: float
    forecast_low: float
    forecast_high: float
    advised_decay_step: float | None = None
    """Where a law would begin the decay, if that is significantly better than planned."""
    advised_decay_steps_after: float | None = None
    """The same in steps after the end of the stage, where it lies behind that."""
    advised_gain: float | None = None

    @property
    def advises(self) -> bool:
        """Whether it has such a beginning."""
        return self.advised_decay_step is not None or self.advised_decay_steps_after is not None


class ForecastChecked(Record):
    """A stage held against what a law had forecast; `inside` is None where there was no interval."""

    stage: str
    member: str | None = None
    kind: str = "member"
    law: str
    unit: str
    measured: float
    forecast: Forecast | None
    inside: bool | None
    rest: tuple[StageForecast, ...] = ()
    """What the stages to come are forecast to reach, with this one taken in."""


Event = (
    BuildStarted
    | JobFinished
    | BuildFinished
    | DataPrepared
    | StageStarted
    | Grown
    | Interrupted
    | StageResumed
    | StageFinished
    | StageDiverged
    | MemberFinished
    | MembersCompared
    | ForecastChecked
)

EVENTS: dict[str, type[Event]] = {
    "build_started": BuildStarted,
    "job_finished": JobFinished,
    "build_finished": BuildFinished,
    "data_prepared": DataPrepared,
    "stage_started": StageStarted,
    "grown": Grown,
    "interrupted": Interrupted,
    "stage_resumed": StageResumed,
    "stage_finished": StageFinished,
    "stage_diverged": StageDiverged,
    "member_finished": MemberFinished,
    "members_compared": MembersCompared,
    "forecast_checked": ForecastChecked,
}
