"""The public runs and curves, where this machine has them: a test that needs one is skipped elsewhere."""

from pathlib import Path

import numpy as np
import public_schedules
import pytest

from kinfolk.schedule.features import Units
from kinfolk.schedule.points import curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, Steps

DATA = Path(__file__).parents[3] / "shared" / "data" / "schedules"


def path_of(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the public data set schedules/{name} is not here")
    return path


def curve(size: str, name: str) -> tuple[Steps, Array]:
    return public_schedules.curve(path_of("mpl"), size, name)


def metrics(said: Array, loss: Array) -> tuple[float, float, float]:
    """R2, mean absolute error, and largest relative error."""
    rest = 1 - np.sum((said - loss) ** 2) / np.sum((loss - loss.mean()) ** 2)
    return float(rest), float(np.abs(said - loss).mean()), float(np.abs(said / loss - 1).max())


def grid() -> list[Run]:
    return public_schedules.grid(path_of("fsp"))


def fraction(run: Run) -> float:
    assert isinstance(run.schedule, NamedSchedule)
    return run.schedule.decay_fraction


def is_linear(run: Run) -> bool:
    return isinstance(run.schedule, NamedSchedule) and run.schedule.shape == "linear"


def without_curve(run: Run) -> Run:
    return Run(run.name, run.schedule, run.loss)


def losses(runs: list[Run]) -> Array:
    return np.array([run.loss for run in runs], dtype=np.float64)


def points_of(runs: list[Run]) -> int:
    return sum(len(curve_points(run, Units())[0]) for run in runs)
