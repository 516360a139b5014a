"""What a run folder says about itself, as data: plan.json and the events of ledger.jsonl.

Fields that the page does not show are left out, and unknown ones are ignored, so that an older page can read a newer
run. A field that is missing or of the wrong kind is a ValidationError.
"""

import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kinfolk.plan.batches import Stretch, part_at

Command = Annotated[str, BeforeValidator(lambda value: shlex.join(value) if isinstance(value, list) else value)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Flops(_Record):
    """Training compute, counted in the two ways that are always named."""

    six_nd: float
    matmul: float


class Source(_Record):
    kind: Literal["scratch", "load", "continue", "grow"]
    seed: int | None = None
    folder: str | None = None
    operator: dict[str, Any] | None = None


class Parameters(_Record):
    counted: float
    total: float
    non_embedding: float


class PlannedRate(_Record):
    peak: float
    warmup_steps: int = 0
    decay_steps: int = 0
    decay_shape: str = ""


class Alone(Flops):
    """What the stage's member would cost if it were trained alone."""

    tokens: float


class PlannedStage(_Record):
    name: str
    member: str | None = None
    parent: str | None = None
    source: Source
    shape: dict[str, Any] | None = None
    parameters: Parameters
    tokens: float
    objective: dict[str, Any] = {}
    steps: int = Field(ge=1)
    rate: PlannedRate
    batch_warmup: tuple[Stretch, ...] = ()
    flops: Flops
    alone: Alone | None = None

    def share_after(self, step: int) -> float:
        """Share of the stage's tokens that its first `step` steps read."""
        return part_at(self.batch_warmup, step).begin / part_at(self.batch_warmup, self.steps).begin


class Forecast(_Record):
    loss: float | None
    low: float | None
    high: float | None


class StageForecast(Forecast):
    """Of one stage."""

    stage: str = ""
    member: str | None = None
    kind: str = "member"


class PlannedForecast(StageForecast):
    """Before the build began, with N and D as the law counts them."""

    parameters: float | None = None
    tokens: float | None = None


class ForecastLaw(_Record):
    name: str
    unit: str
    source: str | None = None


class PlanForecast(_Record):
    law: ForecastLaw
    stages: tuple[PlannedForecast, ...] = ()


class Plan(_Record):
    family: str
    strategy: str
    vocab_size: int
    context_length: int
    tokens_per_step: int
    counted_parameters: str
    independent: Flops
    total: Flops
    forecast: PlanForecast | None = None
    stages: tuple[PlannedStage, ...] = Field(min_length=1)


class BuildStarted(_Record):
    time: float
    command: Command
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}


class BuildFinished(_Record):
    time: float
    seconds: float


class DataPrepared(_Record):
    train_tokens: float
    train_bytes: float
    train_documents: float
    held_out_tokens: float
    held_out_bytes: float
    held_out_documents: float


class StageStarted(_Record):
    stage: str
    precision: str | None = None


class Comparison(_Record):
    """Parent and child on the same tokens in one precision."""

    max_abs_logit_difference: float
    kl: float
    loss_before: float
    loss_after: float
    max_abs_logit: float | None = None


class Verification(_Record):
    claims_preservation: bool
    passed: bool | None
    float32: Comparison
    float64: Comparison


class Grown(_Record):
    stage: str
    parent: str
    description: str = ""
    verification: Verification | None = None
    seconds: float = 0.0


class Interrupted(_Record):
    stage: str
    step: int


class StageResumed(_Record):
    stage: str
    step: int


class StageFinished(_Record):
    stage: str
    steps: int
    tokens: float
    epochs: float
    seconds: float
    final_loss: float | None = None
    """None for a stage at patch level, or without steps."""
    flops: Flops
    not_forecast: str | None = None
    """Why its end was never forecast while it trained."""


class HeldOut(_Record):
    loss: float
    perplexity: float
    bits_per_byte: float
    bits_per_byte_low: float | None = None
    bits_per_byte_high: float | None = None
    tokens: float
    bytes: float


class Sample(_Record):
    prompt: str
    continuation: str


class Divergence(_Record):
    """How far a member is from the one before it, on held-out text."""

    previous: str
    kl_small_to_large: float
    kl_large_to_small: float
    top1_agreement: float


class MemberFinished(_Record):
    member: str
    stage: str
    path: str
    sha256: str
    held_out: HeldOut
    samples: tuple[Sample, ...] = ()
    kl_from_previous: Divergence | None = None


class Outlook(_Record):
    """What was forecast of a stage's end beside one of its held-out losses."""

    step: int
    forecast_loss: float
    forecast_low: float
    forecast_high: float
    advised_decay_step: float | None = None
    """Where a law would begin the decay, if that is significantly better than planned."""
    advised_gain: float | None = None


class ForecastChecked(_Record):
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
    | BuildFinished
    | DataPrepared
    | StageStarted
    | Grown
    | Interrupted
    | StageResumed
    | StageFinished
    | MemberFinished
    | ForecastChecked
)

EVENTS: dict[str, type[Event]] = {
    "build_started": BuildStarted,
    "build_finished": BuildFinished,
    "data_prepared": DataPrepared,
    "stage_started": StageStarted,
    "grown": Grown,
    "interrupted": Interrupted,
    "stage_resumed": StageResumed,
    "stage_finished": StageFinished,
    "member_finished": MemberFinished,
    "forecast_checked": ForecastChecked,
}
