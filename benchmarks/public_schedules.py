"""Reads the public runs of learning-rate schedules: curves of arXiv 2503.12811 and the grid of arXiv 2501.18965."""

import csv
from pathlib import Path

import numpy as np

from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, Shape, Steps

FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
TESTED = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
"""Curves that laws are fitted to, and that they are tested on."""
OFFSET = 0.0358
"""Between the evaluation sets of curves and final losses of the grid, as its source says."""


def named(name: str) -> NamedSchedule:
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


def curve(folder: Path, size: str, name: str) -> tuple[Steps, Array]:
    """Steps done and losses of one published curve, in the folder `mpl`."""
    table = np.loadtxt(folder / f"csv_{size}" / f"{name}.csv", delimiter=",", skiprows=1)
    table = table[table[:, 0] < named(name).steps]
    return table[:, 0].astype(np.int64) + 1, table[:, 2]


def grid(folder: Path) -> list[Run]:
    """The 56 runs of the 124M model, in the folder `fsp`, with their curves raised to the final losses."""
    with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["params"] == "123587328" and "124" in row["name"].split("_")[0]
        ]
    points: dict[str, list[tuple[int, float]]] = {}
    with open(folder / "val_curves.csv", encoding="utf-8", newline="") as file:
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
