"""When to save a checkpoint: every so many steps, or by the clock at a bounded cost."""

import time
from collections.abc import Callable
from typing import TypeVar

from kinfolk.family.recipe import Checkpoints

T = TypeVar("T")

CHECKPOINT_SHARE = 0.02
"""The most that saving by the clock may cost, as a share of the time since training began."""


class SavingClock:
    """Decides when a checkpoint is due, and keeps count of what saving costs.

    By the clock, a checkpoint is due once the wished time has passed since the last and the time spent on saving,
    with what the next save is expected to take, is within `CHECKPOINT_SHARE`.
    """

    def __init__(self, settings: Checkpoints, expected: float, now: Callable[[], float] = time.monotonic) -> None:
        """`expected` is a first guess of what a save takes, in seconds; later, each is expected to take as the last."""
        self._settings = settings
        self._expected = expected
        self._now = now
        self._began = self._last = now()
        self.spent = 0.0
        """Seconds spent on saving so far."""

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps should be saved."""
        if self._settings.steps is not None:
            return step % self._settings.steps == 0
        now = self._now()
        affordable = self.spent + self._expected <= CHECKPOINT_SHARE * (now - self._began)
        return affordable and now - self._last >= self._settings.seconds

    def timed(self, work: Callable[[], T], is_rest: bool = False) -> T:
        """Call `work`, which saves, and count its time; `is_rest` for what is left to do of the save before."""
        began = self._now()
        result = work()
        self._last = self._now()
        seconds = self._last - began
        self._expected = seconds + (self._expected if is_rest else 0.0)
        self.spent += seconds
        return result
