"""When to go over from a cheap way of training to a better one (Anagnostidis et al., arXiv 2311.03233).

Each configuration (a patch size, a context length, a width) has a curve of its own, loss = a (C + d)^-b + c in compute
C. At each loss the configuration is trained that lowers it for the least compute. It takes for granted that what was
learned is carried over by the loss alone, which growth and patches keep only in part.
"""

import math
from dataclasses import dataclass

from scipy.optimize import brentq

from kinfolk.errors import KinfolkError


@dataclass(frozen=True)
class Curve:
    """loss = a (C + d)^-b + c."""

    a: float
    b: float
    c: float
    d: float = 0.0

    def compute_at(self, loss: float) -> float:
        """Compute at which the loss is reached; infinity at or below c."""
        return float(((loss - self.c) / self.a) ** (-1 / self.b) - self.d) if loss > self.c else math.inf

    def price(self, loss: float) -> float:
        """Compute for lowering the loss by one, there: -dC / dL; infinity at or below c."""
        if loss <= self.c:
            return math.inf
        return float(self.a ** (1 / self.b) * (loss - self.c) ** (-1 / self.b - 1) / self.b)


@dataclass(frozen=True)
class Switch:
    """Where to go over from the first configuration to the second, and what that saves."""

    loss: float
    first: float
    """Compute of the first configuration up to there."""
    cost: float
    """Compute of both together up to the target."""
    saving: float
    """Against the second configuration alone."""


def best_switch(first: Curve, second: Curve, target: float) -> Switch:
    """Train `first` while it is the cheaper one, then `second` until the loss `target`.

    KinfolkError where `second` never reaches the target, or `first` is not the cheaper one at first.
    """
    whole = second.compute_at(target)
    if not math.isfinite(whole):
        raise KinfolkError(
            f"a loss of {target:g} is not above {second.c:g}, where the second curve ends", fix="ask for a higher loss"
        )

    def dearer(loss: float) -> float:
        return math.log(first.price(loss)) - math.log(second.price(loss))

    # High up the cheaper of the two is found by their exponents; walk down from where the first has just begun.
    high = first.c + first.a * max(1.0, first.d) ** -first.b
    low = max(first.c, target) + 1e-12 * (high - first.c)
    if high <= low or dearer(high) >= 0:
        raise KinfolkError(
            "the first curve is not the cheaper one at the beginning", fix="exchange the two, or train the second alone"
        )
    loss = low if dearer(low) <= 0 else float(brentq(dearer, low, high, xtol=1e-14, rtol=1e-14))
    begun = first.compute_at(loss)
    cost = begun + whole - second.compute_at(loss)
    return Switch(loss, begun, cost, 1 - cost / whole)
