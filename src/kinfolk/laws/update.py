"""A law after new points of the family that is being built: few points, one data set, one tokenizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.laws.borrowed import ASSUMED, borrow
from kinfolk.laws.intervals import fitted_range
from kinfolk.laws.loss import FittedRange, LossLaw


@dataclass(frozen=True)
class Point:
    """A finished model: N as the law counts it, tokens, and its loss in the law's unit."""

    parameters: float
    tokens: float
    loss: float


def updated(law: LossLaw, points: Sequence[Point]) -> LossLaw:
    """The law with the points taken in; the law itself without points.

    A published law keeps its exponents and A/B; its level, which belongs to other data, is fitted to the points. A law
    of one's own keeps its shape and is shifted by n / (n + 1) of the points' mean log residual: the posterior mean if
    families scatter around the law as much as members around their family. Its intervals stay as wide.
    """
    if not points:
        return law
    parameters, tokens, loss = (
        np.array([getattr(point, field) for point in points], dtype=np.float64)
        for field in ("parameters", "tokens", "loss")
    )
    here = fitted_range(parameters, tokens)
    if law.standing in ("published", "recomputed"):
        level = borrow(law, parameters, tokens, loss)
        changes = {"E": level.E, "A": level.A, "B": level.B, "standing": "borrowed", "fitted": here}
        return law.model_copy(update={**changes, "calibration": ASSUMED})
    shift = float(np.log(loss / law.predict(parameters, tokens)).sum()) / (len(points) + 1)
    factor = math.exp(shift)
    return law.model_copy(
        update={
            "E": law.E * factor,
            "A": law.A * factor,
            "B": law.B * factor,
            "fitted": _both(law.fitted, here) if law.fitted else None,
        }
    )


def _both(one: FittedRange, other: FittedRange) -> FittedRange:
    """The range of two sets of runs."""
    spans = {}
    for field in ("parameters", "tokens", "compute", "ratio"):
        (low, high), (lower, higher) = getattr(one, field), getattr(other, field)
        spans[field] = (min(low, lower), max(high, higher))
    return FittedRange(runs=one.runs + other.runs, **spans)
