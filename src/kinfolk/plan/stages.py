"""The vocabulary of a plan: a tree of stages, and a stage is the only thing that ever trains.

All of it is frozen data. A strategy makes a plan, the executor in `kinfolk.build` walks it, and nothing in between
knows which strategy it was.
"""

from dataclasses import dataclass
from typing import Literal

from kinfolk.family.data import FIRST
from kinfolk.family.shapes import Shape
from kinfolk.plan.batches import Part, Stretch, part_at

DecayShape = Literal["linear", "cosine", "1-sqrt"]


@dataclass(frozen=True)
class Scratch:
    """Start from random weights, drawn with `seed`."""

    seed: int


@dataclass(frozen=True)
class Load:
    """Start from the weights of a Hugging Face checkpoint, which brings no optimizer state."""

    folder: str


@dataclass(frozen=True)
class Continue:
    """Go on from the last state of another stage, in the same shape, with its optimizer's state or a new one."""

    stage: str
    optimizer: Literal["carry", "reset"] = "carry"


WidthRule = Literal["energy_split", "tile", "fpi", "aki", "lemon", "zero_pad"]
DepthRule = Literal["zero_exit", "stack", "interpolate", "middle"]
Placement = Literal["top", "even"] | tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """How a checkpoint becomes a larger one; what each choice preserves is said in `kinfolk.growth`."""

    width: WidthRule = "energy_split"
    depth: DepthRule = "zero_exit"
    placement: Placement = "top"
    """Where zero-exit blocks come: on top, spread evenly, or at these layers of the child."""
    block: Literal["copied", "drawn"] = "copied"
    """What zero-exit blocks hold apart from their exits: the weights of a layer, or draws of their deviation."""
    split: Literal["even", "uneven"] = "even"
    """Whether readers take equal shares of the copies of a unit, or 1 : 2 : ... ."""
    noise: float = 1.0
    """Standard deviation of the symmetry-breaking noise, as a multiple of each weight tensor's own, before it is
    centred to sum to zero over the copies of a unit (which leaves sqrt((c - 1) / c) of it for c copies)."""
    snr: float | None = None
    """Signal-to-noise ratio in decibels of the noise after it is centred; takes the place of `noise`."""
    seed: int = 0


@dataclass(frozen=True)
class Dynamics:
    """How a grown model trains on: what becomes of Adam's state, and which rates its coordinates get.

    The fields, and what is meant by a new coordinate, are explained in `kinfolk.growth.dynamics`.
    """

    optimizer: Literal["carry", "reset", "asymmetric"] = "carry"
    rates: Literal["uniform", "inherit", "rewarm_new"] = "uniform"
    rewarm_factor: float = 1.3
    """Under `rewarm_new`: learning rate of the new coordinates once they are warm, as a multiple of the stage's."""
    rewarm_steps: int = 250
    """Under `rewarm_new`: steps after the growth until the new coordinates have that rate."""


@dataclass(frozen=True)
class Grow:
    """Start from the last state of another stage, grown into a larger shape."""

    stage: str
    operator: Operator
    dynamics: Dynamics = Dynamics()


Source = Scratch | Load | Continue | Grow


@dataclass(frozen=True)
class Token:
    """Ordinary next-token prediction."""


@dataclass(frozen=True)
class Patch:
    """Prediction of the next `size` tokens from the mean of the `size` before (arXiv 2407.12665).

    `Patch(1)` trains exactly as `Token()` does.
    """

    size: int
    slot_exponent: float = 0.0
    """Slot k of the predicted patch, from 1, weighs 1 / k^exponent; 0 weighs all alike."""


Objective = Token | Patch


@dataclass(frozen=True)
class Rate:
    """A learning-rate segment: linear warm-up, hold at the peak, decay to `end_ratio` of the peak.

    Its steps are whole batches; only a batch-size warm-up takes one in several optimizer steps.
    """

    peak: float
    warmup_steps: int
    decay_steps: int
    decay_shape: DecayShape
    end_ratio: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stretch of training: from what, in which shape, on what objective, how long, at which rate."""

    name: str
    shape: Shape | None
    """None only in a plan whose members are given by a bare parameter count; such a plan cannot be built."""
    parameters: float
    """The N of 6ND, by the family's counting rule."""
    source: Source
    objective: Objective
    tokens: float
    """Tokens to train on: `batches` whole batches."""
    steps: int
    """Optimizer steps."""
    rate: Rate
    member: str | None = None
    """The family member that this stage finishes, if it finishes one."""
    block: int = 1
    """Sequences of context length that the data order keeps together, so that a patch row is text in one piece: the
    patch size, for every stage of a family that reads patches."""
    data: tuple[str, ...] = (FIRST,)
    """Names of the versions of the data that it reads, as one; the first is the family's `data.train`."""
    batch_warmup: tuple[Stretch, ...] = ()
    """How the first batches are divided among several steps each."""

    @property
    def patch_size(self) -> int:
        """Tokens that one position of the model reads and predicts."""
        return self.objective.size if isinstance(self.objective, Patch) else 1

    @property
    def positions(self) -> float:
        """Positions that the model computes, each of which costs what a token costs in token-level training."""
        return self.tokens / self.patch_size

    @property
    def batches(self) -> int:
        """Whole batches: steps, but for a batch-size warm-up."""
        return self.steps - sum(stretch.steps - stretch.batches for stretch in self.batch_warmup)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a whole batch, which one optimizer step reads once the batch-size warm-up is over."""
        return round(self.tokens / self.batches) if self.batches else 0

    def rows_per_step(self, context_length: int) -> int:
        """Rows of `context_length` positions in a whole batch."""
        return self.tokens_per_step // (context_length * self.patch_size)

    def part_at(self, step: int) -> Part:
        """What optimizer step `step` (from 0) reads."""
        return part_at(self.batch_warmup, step)

    @property
    def parent(self) -> str | None:
        """Name of the stage this one starts from, or None for a root."""
        return None if isinstance(self.source, Scratch | Load) else self.source.stage


@dataclass(frozen=True)
class Plan:
    """A forest of stages in an order in which they can be run: parents before children."""

    family: str
    strategy: str
    stages: tuple[Stage, ...]
    is_trial: bool = False
    """Whether a stage that diverges is a result like any other: what was to follow it is left out, the rest goes on."""

    def stage(self, name: str) -> Stage:
        """The stage called `name`; KeyError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def lineage(self, name: str) -> tuple[Stage, ...]:
        """The stage called `name` and its ancestors, root first."""
        stage = self.stage(name)
        return (*(self.lineage(stage.parent) if stage.parent else ()), stage)

    def tokens_before(self, name: str) -> float:
        """Tokens that the ancestors of a stage have read."""
        return sum(ancestor.tokens for ancestor in self.lineage(name)[:-1])

    def sequences_before(self, name: str, context_length: int) -> int:
        """Where the data order of a stage goes on: sequences of `context_length` that its ancestors have gone through.

        Only ancestors that read the same data count. Each of them takes whole blocks; what it leaves of its last block
        is not read.
        """
        *ancestors, stage = self.lineage(name)
        return sum(
            -(-round(ancestor.tokens) // (context_length * ancestor.block)) * ancestor.block
            for ancestor in ancestors
            if ancestor.data == stage.data
        )

    def tokens_read(self) -> dict[tuple[str, ...], float]:
        """By the data that stages read: the tokens that the longest line of stages reads of it."""
        longest: dict[tuple[str, ...], float] = {}
        for stage in self.stages:
            read = sum(part.tokens for part in self.lineage(stage.name) if part.data == stage.data)
            longest[stage.data] = max(read, longest.get(stage.data, 0.0))
        return longest
