"""One run: its schedule, its final loss, and its curve where there is one."""

from dataclasses import dataclass, field

import numpy as np

from kinfolk.schedule.shapes import Array, NamedSchedule, Schedule, Steps, end_ratio_of, length, peak_of


def _no_steps() -> Steps:
    return np.zeros(0, dtype=np.int64)


def _no_losses() -> Array:
    return np.zeros(0)


@dataclass(frozen=True)
class Run:
    """A run of one model; its loss in nats per token, at the end of its schedule."""

    name: str
    schedule: Schedule
    loss: float | None
    """None for a run that diverged."""
    curve_steps: Steps = field(default_factory=_no_steps)
    """Steps done at each point of its curve (point,); empty without a curve."""
    curve_loss: Array = field(default_factory=_no_losses)
    size: float | None = None
    """Parameters of the model."""
    tokens_per_step: float | None = None
    stopped_at: int | None = None
    """Steps after which a run that diverged was stopped, where that is known."""

    @property
    def diverged(self) -> bool:
        return self.loss is None

    @property
    def steps(self) -> int:
        """Of the whole schedule."""
        return length(self.schedule)

    @property
    def peak(self) -> float:
        return float(f"{peak_of(self.schedule):.6g}")

    @property
    def family(self) -> str:
        """What is held out together: shape, share and end of a named schedule, otherwise the run alone."""
        return self.schedule.family if isinstance(self.schedule, NamedSchedule) else f"the curve {self.name}"

    @property
    def end_ratio(self) -> float:
        return end_ratio_of(self.schedule)
