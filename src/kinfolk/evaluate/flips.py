"""What equal accuracy hides: items that one model gets right and another gets wrong.

Flips between models of equal accuracy show how differently they behave (Dutta et al., arXiv 2407.09141); negative flips
are what a user of the old model notices of the new one (Echterhoff et al., arXiv 2407.09435).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.bootstrap import ratio_interval


@dataclass(frozen=True)
class Rate:
    """A share of items, with its 90 % interval over items (None for fewer than five)."""

    share: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Flips:
    """How the answers of two models to the same items differ in being right."""

    items: int
    right_before: Rate
    """Right with the first (old, or small) model."""
    right_after: Rate
    """Right with the second."""
    flips: Rate
    """Right with one of them only."""
    negative_flips: Rate
    """Right with the first and wrong with the second."""
    positive_flips: Rate
    """Wrong with the first and right with the second."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def prediction_flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Compare whether two models got the same items right. KinfolkError for lists of different lengths or empty ones.

    >>> prediction_flips([True, True, False], [True, False, True]).negative_flips.share * 3
    1.0
    """
    if len(before) != len(after) or not before:
        raise KinfolkError(
            f"results of {len(before)} and of {len(after)} items", fix="give results of the same items, one or more"
        )
    old, new = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    return Flips(
        items=len(old),
        right_before=_rate(old),
        right_after=_rate(new),
        flips=_rate(old != new),
        negative_flips=_rate(old & ~new),
        positive_flips=_rate(~old & new),
    )


def _rate(items: np.ndarray[Any, np.dtype[np.bool_]]) -> Rate:
    return Rate(float(items.mean()), *ratio_interval(items.astype(np.float64), np.ones(len(items))))
