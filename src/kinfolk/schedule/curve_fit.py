"""Fits a law whose parameters are all positive: Huber's loss of ln(prediction / loss), from several starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from kinfolk.schedule.changes import Changes, changes
from kinfolk.schedule.shapes import Array
from kinfolk.schedule.targets import Numbers, Target

HUBER_DELTA = 1e-3
MOST_POINTS = 400
"""Of all curves together that are fitted, at most a hundred each and never fewer than five; neighbours say the same."""
EVALUATIONS = 150

Evaluate = Callable[[Array, Changes], tuple[Array, Array]]
"""From logarithms of the parameters (k,) to losses (point,) and their derivatives by those logarithms (point, k)."""


@dataclass(frozen=True)
class Prior:
    """Where the logarithm of a parameter is believed to be, in natural units, and how far from it it may be."""

    centre: float
    deviation: float
    """Of the logarithm."""


def fit_curves(
    evaluate: Evaluate,
    starts: Sequence[Mapping[str, float]],
    targets: Sequence[Target],
    priors: Mapping[str, Prior] | None = None,
) -> Numbers:
    """The best parameters that any of the `starts` leads to; each start names every parameter, in natural units.

    A prior pulls as a point would whose residual is HUBER_DELTA when the parameter is one deviation off, times the
    root of the number of points: it counts as much as the data do, whatever their number.
    """
    most = min(100, max(5, MOST_POINTS // len(targets)))
    thinned = [_thin(target, most) for target in targets]
    pairs = changes([(target.schedule, target.steps) for target in thinned])
    wanted = np.log(np.concatenate([target.loss for target in thinned]))
    root = np.sqrt(np.concatenate([target.weight for target in thinned]))
    names = list(starts[0])
    pulls = [(names.index(name), prior) for name, prior in (priors or {}).items()]
    strength = HUBER_DELTA * np.sqrt(root @ root)

    def residuals(theta: Array) -> Array:
        with np.errstate(all="ignore"):
            loss, _ = evaluate(theta, pairs)
            missed = root * (np.log(np.maximum(loss, 1e-6)) - wanted)
        extra = [strength * (theta[at] - np.log(prior.centre)) / prior.deviation for at, prior in pulls]
        return np.asarray(np.nan_to_num(np.concatenate([missed, extra]), nan=1e3, posinf=1e3, neginf=-1e3))

    def slopes(theta: Array) -> Array:
        with np.errstate(all="ignore"):
            loss, jacobian = evaluate(theta, pairs)
            rows = root[:, None] * jacobian / np.maximum(loss, 1e-6)[:, None]
        extra = np.zeros((len(pulls), len(theta)))
        for row, (at, prior) in enumerate(pulls):
            extra[row, at] = strength / prior.deviation
        return np.asarray(np.nan_to_num(np.vstack([rows, extra]), posinf=1e6, neginf=-1e6))

    best, lowest = None, np.inf
    for start in starts:
        theta = np.log([start[name] for name in names])
        # Wide bounds keep exponentials within floating point.
        found = least_squares(
            residuals,
            theta,
            slopes,
            bounds=(theta - 12.0, theta + 12.0),
            loss="huber",
            f_scale=HUBER_DELTA,
            x_scale="jac",
            max_nfev=EVALUATIONS,
        )
        if found.cost < lowest:
            best, lowest = found.x, found.cost
    assert best is not None
    return {name: float(value) for name, value in zip(names, np.exp(best), strict=True)}


def _thin(target: Target, most: int) -> Target:
    count = len(target.loss)
    if count <= most:
        return target
    kept = np.unique(np.round(np.linspace(0, count - 1, most)).astype(np.int64))
    # The points that are left stand for all.
    weight = target.weight[kept] * count / len(kept)
    return Target(target.schedule, target.steps[kept], target.loss[kept], weight)


def scale_of(targets: Sequence[Target]) -> tuple[float, float]:
    """For starting points: the lowest loss, and the largest sum of rates at any point."""
    pairs = changes([(target.schedule, target.steps[-1:]) for target in targets])
    return float(min(target.loss.min() for target in targets)), float(pairs.total.max())
