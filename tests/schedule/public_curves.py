"""The public runs and curves, where this machine has them: a test that needs one is skipped elsewhere."""

import csv
from pathlib import Path

import numpy as np
import pytest

from kinfolk.schedule.features import Units
from kinfolk.schedule.points import curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, Shape, Steps

DATA = Path(__file__).parents[3] / "shared" / "data" / "schedules"
CURVES = (
    *("constant_24000", "constant_72000", "cosine_24000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000"),
    *("wsdcon_3", "wsdcon_9", "wsdcon_18"),
)
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
TESTED = tuple(name for name in CURVES if name not in FITTED)
OFFSET = 0.0358
"""Between the two evaluation sets of the grid, as its source says."""


def path_of(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the public data set schedules/{name} is not here")
    return path


def curve_schedule(name: str) -> NamedSchedule:
    """The schedules of arXiv 2503.12811: peak 3e-4, end 3e-5, warm-up from 0 over 2,160 steps."""
    kind, *numbers = name.split("_")
    steps = 16_000 if kind == "wsdcon" else int(numbers[-1])
    shapes: dict[str, tuple[Shape, float, float]] = {
        "constant": ("constant", 0.0, 1.0),
        "cosine": ("cosine", 1.0, 0.1),
        "wsd": ("exponential", 4000 / 24000, 0.1),
        "wsdld": ("linear", 4000 / 24000, 0.1),
        "wsdcon": ("two-stage", 0.5, int(numbers[0]) / 30),
    }
    shape, fraction, end = shapes[kind]
    return NamedSchedule(steps=steps, peak=3e-4, shape=shape, warmup_steps=2160, decay_fraction=fraction, end_ratio=end)


def curve(size: str, name: str) -> tuple[Steps, Array]:
    """Steps done and losses of one published curve."""
    table = np.loadtxt(path_of(f"mpl/csv_{size}") / f"{name}.csv", delimiter=",", skiprows=1)
    table = table[table[:, 0] < curve_schedule(name).steps]
    return table[:, 0].astype(np.int64) + 1, table[:, 2]


def metrics(said: Array, loss: Array) -> tuple[float, float, float]:
    """R2, mean absolute error, and largest relative error."""
    rest = 1 - np.sum((said - loss) ** 2) / np.sum((loss - loss.mean()) ** 2)
    return float(rest), float(np.abs(said - loss).mean()), float(np.abs(said / loss - 1).max())


def grid() -> list[Run]:
    """The 56 runs of the 124M model of arXiv 2501.18965, with their curves raised to the final losses."""
    with open(path_of("fsp/runs.csv"), encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["params"] == "123587328" and "124" in row["name"].split("_")[0]
        ]
    points: dict[str, list[tuple[int, float]]] = {}
    with open(path_of("fsp/val_curves.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row["val_loss"].startswith("F"):
                points.setdefault(row["run"], []).append((int(row["step"]), float(row["val_loss"])))
    runs = []
    for row in rows:
        cosine = row["sched"] == "cos"
        schedule = NamedSchedule(
            steps=int(row["iters"]),
            peak=float(row["lr"]),
            shape="cosine" if cosine else "1-sqrt" if row["decay_type"] == "sqrt" else "linear",
            warmup_steps=300,
            warmup_from=0.01,
            decay_fraction=1.0 if cosine else float(row["fract"]),
            end_ratio=0.1 if row["name"].startswith("cos-10") else 0.0,
        )
        found = sorted(points[row["run"]])
        steps, losses = np.array([step for step, _ in found]), np.array([loss for _, loss in found])
        runs.append(Run(row["run"], schedule, float(row["final_val"]), steps, losses + OFFSET))
    return runs


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
