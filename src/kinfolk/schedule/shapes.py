"""Named schedules: warm-up, hold, decay, as frozen data that gives the rate of any step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError

Array = NDArray[np.float64]
Steps = NDArray[np.int64]

Shape = Literal["constant", "linear", "cosine", "1-sqrt", "power", "exponential", "two-stage"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class NamedSchedule:
    """Linear warm-up, hold at the peak, and a decay over the last share of the steps.

    KinfolkError for values that make no schedule.
    """

    steps: int
    peak: float
    shape: Shape = "constant"
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    """Share of all steps that the decay takes; it never begins before the end of the warm-up."""
    end_ratio: float = 0.0
    """Rate over peak that the decay would reach one step after the last."""
    power: float = 1.0
    """Of the shape `power`: the rate falls as (1 - u)^power."""
    warmup_from: float = 0.0
    """Rate over peak of step 0, if there is a warm-up."""

    def __post_init__(self) -> None:
        whole = isinstance(self.steps, int) and isinstance(self.warmup_steps, int)
        for wrong, problem, fix in (
            (self.shape not in SHAPES, f"{self.shape!r} is no shape", f"use one of {', '.join(SHAPES)}"),
            (not whole or self.steps < 1, f"{self.steps} is not a number of steps", "use a whole number above 0"),
            (not 0 < self.peak < math.inf, f"{self.peak} is not a peak learning rate", "use a number above 0"),
            (
                not whole or not 0 <= self.warmup_steps <= self.steps,
                f"{self.warmup_steps} steps of warm-up do not fit into {self.steps} steps",
                "use a whole number from 0 to the number of steps",
            ),
            (not 0 <= self.decay_fraction <= 1, f"decay_fraction is {self.decay_fraction}", "use 0 to 1"),
            (not 0 <= self.end_ratio <= 1, f"end_ratio is {self.end_ratio}", "use 0 to 1, as a share of the peak"),
            (not 0 <= self.warmup_from <= 1, f"warmup_from is {self.warmup_from}", "use 0 to 1"),
            (not 0 < self.power < math.inf, f"power is {self.power}", "use a number above 0"),
            (
                self.shape == "exponential" and self.end_ratio == 0,
                "an exponential decay does not reach 0",
                "set end_ratio above 0",
            ),
        ):
            if wrong:
                raise KinfolkError(problem, where="schedule", fix=fix)

    @property
    def decay_steps(self) -> int:
        """Steps of the decay; 0 for a constant schedule."""
        if self.shape == "constant":
            return 0
        # A share such as 0.29 of 100 is 28.999... in binary.
        return min(int(self.decay_fraction * self.steps + 1e-9), self.steps - self.warmup_steps)

    @property
    def family(self) -> str:
        """Shape, share and end: what is held out together when a law is tested on unseen families."""
        if self.decay_steps == 0:
            return "constant"
        shape = f"power {self.power:g}" if self.shape == "power" else self.shape
        return f"{shape} {self.decay_steps / self.steps:.2g} to {self.end_ratio:.2g}"

    def rate_at(self, steps: Array | Steps) -> Array:
        """Learning rate of 0-based steps, of any shape; a step past the end has the rate of the end."""
        step = np.minimum(np.asarray(steps, dtype=np.float64), self.steps)
        rate = np.ones_like(step)
        if self.decay_steps:
            decayed = (step - (self.steps - self.decay_steps)) / self.decay_steps
            rate = np.where(decayed >= 0, self._remaining(np.clip(decayed, 0.0, 1.0)), 1.0)
        if self.warmup_steps:
            rising = self.warmup_from + (1 - self.warmup_from) * step / self.warmup_steps
            rate = np.where(step < self.warmup_steps, rising, rate)
        return self.peak * rate

    def _remaining(self, u: Array) -> Array:
        """Rate over peak once the share u of the decay is over."""
        match self.shape:
            case "exponential":
                return np.asarray(self.end_ratio**u)
            case "two-stage":
                return np.full_like(u, self.end_ratio)
            case "cosine":
                left = (1 + np.cos(np.pi * u)) / 2
            case "1-sqrt":
                left = 1 - np.sqrt(u)
            case "power":
                left = (1 - u) ** self.power
            case _:
                left = 1 - u
        return self.end_ratio + (1 - self.end_ratio) * left


Schedule = NamedSchedule | Array
"""A named schedule, or the rate of every step as an array of shape (steps,)."""


def length(schedule: Schedule) -> int:
    """Steps of a schedule."""
    return schedule.steps if isinstance(schedule, NamedSchedule) else len(schedule)


def rates(schedule: Schedule) -> Array:
    """The rate of every step, of shape (steps,)."""
    if isinstance(schedule, NamedSchedule):
        return schedule.rate_at(np.arange(schedule.steps))
    return schedule


def peak_of(schedule: Schedule) -> float:
    """The largest rate."""
    return schedule.peak if isinstance(schedule, NamedSchedule) else float(schedule.max())


def warmup_of(schedule: Schedule) -> int:
    """Steps of warm-up; of an array, the steps before its rate first reaches the peak, if it rises up to there."""
    if isinstance(schedule, NamedSchedule):
        return schedule.warmup_steps
    first = int(np.argmax(schedule >= schedule.max() * (1 - 1e-9)))
    rises = first > 0 and bool(np.all(np.diff(schedule[: first + 1]) >= 0))
    return first if rises else 0


def end_ratio_of(schedule: Schedule) -> float:
    """The last rate over the peak; of a named schedule, what its decay leads to."""
    if isinstance(schedule, NamedSchedule):
        return schedule.end_ratio if schedule.decay_steps else 1.0
    return float(schedule[-1] / schedule.max())


def multiplier(schedule: NamedSchedule) -> Callable[[int], float]:
    """Rate over peak of a step, as `torch.optim.lr_scheduler.LambdaLR` takes it (base rate: the peak)."""
    return lambda step: float(schedule.rate_at(np.array(float(step))) / schedule.peak)
