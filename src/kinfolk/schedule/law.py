"""A schedule law that can be kept: its kind and numbers, where it was fitted, and how far it can be trusted."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.laws.law_file import read_law
from kinfolk.schedule import ensemble
from kinfolk.schedule.kinds import KINDS
from kinfolk.schedule.shapes import (
    Array,
    NamedSchedule,
    Schedule,
    Shape,
    Steps,
    end_ratio_of,
    length,
    peak_of,
    warmup_of,
)
from kinfolk.schedule.stability import Stability

KindName = Literal["sixteen", "annealing", "annealing-free", "multipower", "functional", "convex", "ensemble"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Record):
    """A named schedule as JSON."""

    steps: int
    peak_lr: float
    shape: Shape
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    end_ratio: float = 0.0
    power: float = 1.0
    warmup_from: float = 0.0

    @classmethod
    def of(cls, schedule: NamedSchedule) -> "Settings":
        return cls(
            steps=schedule.steps,
            peak_lr=schedule.peak,
            shape=schedule.shape,
            warmup_steps=schedule.warmup_steps,
            decay_fraction=schedule.decay_fraction,
            end_ratio=schedule.end_ratio,
            power=schedule.power,
            warmup_from=schedule.warmup_from,
        )

    def schedule(self, steps: int | None = None) -> NamedSchedule:
        """The schedule; of other length with `steps`, with the same warm-up."""
        return NamedSchedule(
            steps=steps or self.steps,
            peak=self.peak_lr,
            shape=self.shape,
            warmup_steps=min(self.warmup_steps, steps or self.steps),
            decay_fraction=self.decay_fraction,
            end_ratio=self.end_ratio,
            power=self.power,
            warmup_from=self.warmup_from,
        )


class Measured(_Record):
    """A run that the law was fitted to."""

    settings: Settings
    loss: float


class FittedRange(_Record):
    """Where the runs of a fit lie; beyond it the law extrapolates."""

    runs: int
    peak_lr: tuple[float, float]
    steps: tuple[int, int]
    warmup_steps: tuple[int, int]
    decay_fraction: tuple[float, float] | None
    """None without named schedules."""
    end_ratio: tuple[float, float]
    """Rate over peak at the ends of runs, and at points of their curves where these were fitted."""
    shapes: tuple[str, ...]
    size: float | None
    tokens_per_step: float | None

    def outside(self, schedule: Schedule) -> dict[str, str]:
        """In which ways a schedule lies outside: what does, and a sentence about it."""
        found = {}
        values: list[tuple[str, float, tuple[float, float] | None]] = [
            ("peak", peak_of(schedule), self.peak_lr),
            ("horizon", length(schedule), self.steps),
            ("end ratio", end_ratio_of(schedule), self.end_ratio),
            ("warm-up", warmup_of(schedule), self.warmup_steps),
        ]
        if isinstance(schedule, NamedSchedule) and schedule.decay_steps:
            values.append(("decay fraction", schedule.decay_fraction, self.decay_fraction))
            if schedule.shape not in self.shapes:
                found["shape"] = f"shape {schedule.shape} was not fitted"
        for name, value, limits in values:
            if limits is None:
                continue
            low, high = limits
            slack = 0.01 if name == "end ratio" else 1e-6 * max(abs(high), 1e-12)
            if not low - slack <= value <= high + slack:
                span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
                found[name] = f"{name} {value:g} is outside the fitted {span}"
        return found


class Calibration(_Record):
    """How wide a forecast's interval is: found by leaving out runs, never from the fit's own residuals."""

    level: float = 0.9
    half_width: float = Field(gt=0)
    """Of ln loss, within the fitted horizon."""
    difference: float = Field(gt=0)
    """The same of the difference between two schedules of one horizon, whose errors are partly shared."""
    basis: Literal["left-out runs", "assumed"]
    errors: int
    """Left-out losses that it was measured on."""
    medians: dict[str, float] = {}
    """Median size of those errors by what was left out: family, peak, horizon."""
    coverage: dict[str, float] = {}
    """Share of them inside such an interval, by what was left out."""


class HeldOut(_Record):
    """What a kind of law was worth on runs that it had not seen."""

    kind: KindName
    mean_absolute_error: float | None
    """In nats; None if the kind could not be tested."""
    eligible: bool
    reason: str


class ScheduleLaw(_Record):
    """A law that can predict."""

    name: str = "schedule law"
    kind: KindName
    numbers: dict[str, float]
    source: str
    fitted: FittedRange
    calibration: Calibration
    noise: float = Field(ge=0)
    """Standard deviation of the loss between repeats of one run, in nats."""
    noise_basis: Literal["repeats", "assumed"]
    held_out: tuple[HeldOut, ...] = ()
    measured: tuple[Measured, ...] = ()
    """Named schedules of the fit."""
    stability: Stability
    cautions: tuple[str, ...] = ()

    def predict(self, schedule: Schedule, steps: Steps | None = None) -> Array:
        """Loss (point,) after each of `steps` (point,), by default at the end."""
        at = np.array([length(schedule)]) if steps is None else steps
        return KINDS[self.kind].predict(self.numbers, schedule, at)

    def half_width(self, schedule: Schedule, steps: Steps | None = None) -> Array:
        """Half the 90 % interval of ln loss (point,): wider beyond the fitted horizon, or where an ensemble differs."""
        at = np.array([length(schedule)]) if steps is None else steps
        beyond = np.maximum(0.0, np.log(at / self.fitted.steps[1]))
        half = self.calibration.half_width * (1 + beyond)
        if self.kind != "ensemble":
            return np.asarray(half)
        said = np.log(ensemble.members(self.numbers, schedule, at))
        return np.asarray(np.hypot(half, np.ptp(said, axis=0) / 2))

    @property
    def tie(self) -> float:
        """Losses closer than this, in nats, cannot be told apart: twice the noise, at least 0.0024."""
        return max(2 * self.noise, 0.0024)

    def tie_at(self, loss: float, steps: int) -> float:
        """The same of forecasts around `loss` for a horizon, whose comparison the law itself may get wrong."""
        beyond = max(0.0, math.log(steps / self.fitted.steps[1]))
        return max(self.tie, self.calibration.difference * (1 + beyond) * loss)


def save_law(path: Path, law: ScheduleLaw) -> None:
    """Write a law as JSON, atomically."""
    files.write_json(path, law.model_dump(mode="json"))


def load_law(path: Path) -> ScheduleLaw:
    """The law in a file of `kinfolk schedule fit` (`--output`, or its JSON); KinfolkError for anything else."""
    fix = "give a file that `kinfolk schedule fit --output` has written"
    law = read_law(path, ScheduleLaw, fix)
    try:
        # A file with a number missing is found here, not in the middle of a ranking.
        probe = law.predict(NamedSchedule(steps=law.fitted.steps[1], peak=law.fitted.peak_lr[1]))
    except KeyError as error:
        raise KinfolkError(f"numbers: {error} is missing", where=str(path), fix=fix) from error
    if not math.isfinite(probe[0]):
        raise KinfolkError("numbers: the law has no finite value", where=str(path), fix=fix)
    return law
