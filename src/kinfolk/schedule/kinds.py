"""Every kind of schedule law behind one interface: a function that fits, and a function that predicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kinfolk.schedule import annealing, convergence, convex, ensemble, functional, multipower
from kinfolk.schedule.features import Units
from kinfolk.schedule.shapes import Array, Schedule, Steps
from kinfolk.schedule.targets import Numbers, Target

Fit = Callable[[Sequence[Target], Units, Numbers | None], Numbers]
"""Parameters from targets; units are those of the features; the last argument is a start near the solution."""
Predict = Callable[[Numbers, Schedule, Steps], Array]
"""Loss (point,) after each of some steps (point,) of a schedule."""


@dataclass(frozen=True)
class Kind:
    """One kind of law."""

    name: str
    formula: str
    source: str
    parameters: int
    """Numbers that are fitted."""
    tells_peaks: bool
    """Whether runs of several peaks can be on it."""
    fit: Fit
    predict: Predict


def _without_units(fit: Callable[[Sequence[Target], Numbers | None], Numbers]) -> Fit:
    return lambda targets, _, near: fit(targets, near)


SIXTEEN = Kind(
    "sixteen",
    "ln L = c + sum of 16 features, weights >= 0",
    "ours, after arXiv 2409.04777",
    17,
    True,
    lambda targets, units, _: convergence.fit(targets, units),
    convergence.predict,
)
ANNEALING = Kind(
    "annealing",
    "L0 + A S1^-a - C S2, memory 1,000 steps",
    "arXiv 2408.11029",
    4,
    False,
    _without_units(annealing.fit),
    annealing.predict,
)
ANNEALING_FREE = Kind(
    "annealing-free",
    "L0 + A S1^-a - C S2, memory fitted",
    "arXiv 2408.11029",
    5,
    False,
    _without_units(annealing.fit_free),
    annealing.predict,
)
MULTIPOWER = Kind(
    "multipower",
    "L0 + A S1^-a + B sum of changes G(rate^-g S_k), prior on G",
    "arXiv 2503.12811",
    7,
    False,
    _without_units(multipower.fit),
    multipower.predict,
)
FUNCTIONAL = Kind(
    "functional",
    "L0 + c1 S^-s - c2 sum of changes (c3 + S_k^-s) G(S - S_k)",
    "arXiv 2509.19189",
    7,
    False,
    _without_units(functional.fit),
    functional.predict,
)
CONVEX = Kind(
    "convex",
    "C + M x the last-iterate bound",
    "arXiv 2501.18965",
    3,
    False,
    lambda targets, units, near: convex.fit(targets),
    convex.predict,
)
ENSEMBLE = Kind(
    "ensemble",
    "mean of annealing, annealing-free, multipower and functional",
    "ours",
    23,
    False,
    _without_units(ensemble.fit),
    ensemble.predict,
)

KINDS = {kind.name: kind for kind in (SIXTEEN, ANNEALING, ANNEALING_FREE, MULTIPOWER, FUNCTIONAL, CONVEX, ENSEMBLE)}
