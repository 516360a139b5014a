"""What plan.json says, as data.

Fields that the page does not show are left out, and unknown ones are ignored, so that an older page can read a newer
run. A field that is missing or of the wrong kind is a ValidationError.
"""

from bisect import bisect_left
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinfolk.plan.batches import Stretch, part_at


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Flops(Record):
    """Training compute, counted in the two ways that are always named."""

    six_nd: float
    matmul: float


class Cost(Flops):
    """What training takes: never nothing, so that others can be given as shares of it."""

    six_nd: float = Field(gt=0, allow_inf_nan=False)
    matmul: float = Field(gt=0, allow_inf_nan=False)


class Source(Record):
    kind: Literal["scratch", "load", "continue", "grow"]
    seed: int | None = None
    folder: str | None = None
    operator: dict[str, Any] | None = None
    dynamics: dict[str, Any] | None = None


class Parameters(Record):
    counted: float
    total: float
    non_embedding: float


class PlannedRate(Record):
    peak: float
    warmup_steps: int = 0
    decay_steps: int = 0
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    end_ratio: float = 0.0


class Alone(Cost):
    """What the stage's member would cost if it were trained alone."""

    tokens: float


class PlannedStage(Record):
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
    flops: Cost
    alone: Alone | None = None

    @property
    def batches(self) -> float:
        """Whole batches; fewer than steps under a batch-size warm-up. The learning rate counts in them."""
        return part_at(self.batch_warmup, self.steps).begin

    @property
    def patch_size(self) -> int:
        """Tokens of a patch; 1 for ordinary next-token prediction."""
        return int(self.objective.get("size", 1)) if self.objective.get("kind") == "patch" else 1

    @property
    def decay_share(self) -> float | None:
        """Share of the tokens after which the rate decays; None for a stage whose rate does not."""
        return 1 - self.rate.decay_steps / self.batches if self.rate.decay_steps else None

    def share_after(self, step: int) -> float:
        """Share of the stage's tokens that its first `step` steps read."""
        return part_at(self.batch_warmup, step).begin / self.batches

    def step_of(self, share: float) -> int:
        """The first step after which at least this share of the tokens has been read."""
        return bisect_left(range(self.steps), share, key=self.share_after)


class Forecast(Record):
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


class ForecastLaw(Record):
    name: str
    unit: str
    source: str | None = None


class PlanForecast(Record):
    law: ForecastLaw
    stages: tuple[PlannedForecast, ...] = ()


class Plan(Record):
    family: str
    strategy: str
    vocab_size: int
    context_length: int
    tokens_per_step: int
    counted_parameters: str
    independent: Cost
    total: Cost
    warnings: tuple[str, ...] = ()
    forecast: PlanForecast | None = None
    stages: tuple[PlannedStage, ...] = Field(min_length=1)

    @property
    def patched(self) -> bool:
        """Whether a stage trains at patch level."""
        return any(stage.patch_size > 1 for stage in self.stages)
