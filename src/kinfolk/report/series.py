"""Points of a stage on every axis at once, in nats per token and in bits per byte."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kinfolk.report.curves import Axis, span
from kinfolk.report.events import DataPrepared
from kinfolk.report.figures import short
from kinfolk.report.metrics import Points
from kinfolk.report.run import Run, StageRun

Measure = Literal["loss", "bits per byte"]
AXES: dict[str, Axis] = {"6ND": "six_nd", "matmul": "matmul", "tokens": "tokens", "time": "seconds"}
"""What the reader calls them."""

Interval = tuple[float, float]
"""How far an interval reaches below and above its value."""


@dataclass(frozen=True)
class Rates:
    """Bits per byte of a nat per token, which depends on how long the tokens of a text are."""

    train: float
    held_out: float


def rates_of(data: DataPrepared | None) -> Rates | None:
    """From the counts of a run's data; None where they are not known."""
    if data is None or not (data.train_bytes and data.held_out_bytes):
        return None
    tokens_per_byte = data.train_tokens / data.train_bytes, data.held_out_tokens / data.held_out_bytes
    return Rates(*(tokens / math.log(2) for tokens in tokens_per_byte))


@dataclass(frozen=True)
class Series:
    """What one trace draws, whichever axes are chosen."""

    x: dict[Axis, list[float]]
    y: dict[Measure, list[float]]
    text: list[Any]
    """What is said of each point."""
    look: dict[str, Any]
    """The trace's other fields."""
    errors: dict[Measure, list[Interval]] = field(default_factory=dict)

    def __add__(self, other: "Series") -> "Series":
        """Both together, with the look of the first."""
        return Series(
            {axis: values + other.x[axis] for axis, values in self.x.items()},
            {measure: values + other.y[measure] for measure, values in self.y.items() if measure in other.y},
            self.text + other.text,
            self.look,
            {measure: values + other.errors[measure] for measure, values in self.errors.items()},
        )

    def columns(self, key: str) -> dict[str, list[Any]]:
        """The values, under names that begin with `key`."""
        values: list[tuple[str, list[float]]] = [*self.x.items(), *self.y.items()]
        rounded = {f"{key}.{name}": [short(each) for each in found] for name, found in values}
        return {**rounded, f"{key}.text": self.text}

    def trace(self, key: str, axis: Axis, measure: Measure) -> dict[str, Any]:
        """The trace in one view; it draws what `columns` holds."""
        drawn = {"type": "scatter", "x": f"{key}.{axis}", "y": f"{key}.{measure}", "customdata": f"{key}.text"}
        intervals = self.errors.get(measure)
        return {**drawn, **self.look, **({"error_y": _bars(intervals, self.look)} if intervals else {})}


def series(run: Run, stage: StageRun, points: Points, rate: float | None, look: dict[str, Any]) -> Series:
    """Losses of a stage in nats per token by step; with a `rate` in bits per byte too."""
    places = {axis: span(run, stage, axis) for axis in AXES.values()}
    losses = [loss for _, loss in points]
    return Series(
        x={axis: [place.at(step) for step, _ in points] for axis, place in places.items()},
        y={"loss": losses, **({"bits per byte": [rate * loss for loss in losses]} if rate else {})},
        text=[step for step, _ in points],
        look=look,
    )


def mark(
    run: Run,
    stage: StageRun,
    point: tuple[int, float],
    rate: float | None,
    look: dict[str, Any],
    said: str,
    interval: Interval | None = None,
) -> Series:
    """One point, with what is to be said of it and an interval in nats."""
    one = series(run, stage, (point,), rate, look)
    if interval is None:
        return replace(one, text=[said])
    scales = {measure: 1.0 if measure == "loss" else rate or 0.0 for measure in one.y}
    errors = {measure: [(scale * interval[0], scale * interval[1])] for measure, scale in scales.items()}
    return replace(one, text=[said], errors=errors)


def drawn_range(found: Sequence[Series], measure: Measure) -> list[list[float]]:
    """The values of every curve in a measure, for choosing how much of an axis to show."""
    return [each.y[measure] for each in found if measure in each.y]


def _bars(intervals: list[Interval], look: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [short(above) for _, above in intervals],
        "arrayminus": [short(below) for below, _ in intervals],
        "color": look["marker"]["color"],
        "thickness": 1.5,
        "width": 5,
    }
