"""What every kind of law is fitted to: schedules, and losses measured after some of their steps."""

from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.shapes import Array, Schedule, Steps

Numbers = dict[str, float]
"""The parameters of a fitted law by name, in natural units; plain JSON."""


@dataclass(frozen=True)
class Target:
    """One run: losses (point,) in nats after so many `steps` (point,) of its schedule, and what each counts."""

    schedule: Schedule
    steps: Steps
    loss: Array
    weight: Array


def target(schedule: Schedule, steps: object, loss: object, weight: float = 1.0) -> Target:
    """A target from plain sequences or numbers."""
    losses = np.atleast_1d(np.asarray(loss, dtype=np.float64))
    return Target(schedule, np.atleast_1d(np.asarray(steps, dtype=np.int64)), losses, np.full(len(losses), weight))
