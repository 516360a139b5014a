"""What metrics.jsonl says of a stage while it trains, as curves by step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kinfolk.report.events import Outlook

Points = tuple[tuple[int, float], ...]
"""(step within the stage, value), by step."""


@dataclass(frozen=True)
class Metrics:
    """The curves of one stage; where a step was done twice, the later record counts."""

    train: Points = ()
    """Next-token loss, in nats."""
    patch: Points = ()
    """Training loss at patch level, which is not to be compared with the others."""
    held_out: Points = ()
    gradient_norm: Points = ()
    clock: Points = ()
    """Seconds of training."""
    outlooks: tuple[Outlook, ...] = ()
    """Forecasts of the stage's end, by step."""
    damaged: int = 0
    """Lines that could not be read."""

    @property
    def last_step(self) -> int:
        return max((step for step, _ in (*self.train, *self.patch, *self.held_out)), default=0)

    @property
    def not_finite(self) -> int:
        """Losses and gradients that are no numbers."""
        curves = (self.train, self.patch, self.held_out, self.gradient_norm)
        return sum(not math.isfinite(value) for points in curves for _, value in points)


FIELDS = {
    "loss": "train",
    "patch_loss": "patch",
    "held_out_loss": "held_out",
    "gradient_norm": "gradient_norm",
    "seconds": "clock",
}


def metrics_of(records: Iterable[dict[str, Any]], damaged: int = 0) -> Metrics:
    """The curves in the records of a stage; `damaged` lines were not readable at all."""
    curves: dict[str, dict[int, float]] = {name: {} for name in FIELDS}
    outlooks: dict[int, Outlook] = {}
    for record in records:
        step = record.get("step")
        if not isinstance(step, int):
            damaged += 1
            continue
        for name, points in curves.items():
            if isinstance(record.get(name), int | float):
                points[step] = float(record[name])
        if "forecast_loss" in record:
            try:
                outlooks[step] = Outlook.model_validate(record)
            except ValidationError:
                damaged += 1
    found = {FIELDS[name]: tuple(sorted(points.items())) for name, points in curves.items()}
    return Metrics(**found, outlooks=tuple(outlooks[step] for step in sorted(outlooks)), damaged=damaged)


def finite(points: Points) -> Points:
    """Without what is no number."""
    return tuple((step, value) for step, value in points if math.isfinite(value))
