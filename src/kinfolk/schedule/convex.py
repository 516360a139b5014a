"""The last-iterate bound of convex optimisation, Schaipp et al., arXiv 2501.18965, as a law of three constants.

C + M (D^2 / (2 sum eta) + sum eta^2 G^2 / (2 sum eta) + 1/2 sum_k [eta_k / sum_{>k} eta] [sum_{>=k} eta^2 G^2 /
sum_{>=k} eta]) is linear in C, M D^2 and M G^2, which non-negative least squares finds.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from kinfolk.schedule.shapes import Array, Schedule, Steps, rates
from kinfolk.schedule.targets import Numbers, Target

MOST_POINTS = 60
"""Of a curve that are fitted: every point sums over the whole schedule."""


def fit(targets: Sequence[Target]) -> Numbers:
    """The constants C, M D^2 and M G^2 with the least relative squared error."""
    rows, losses, weights = [], [], []
    for target in targets:
        kept = np.unique(np.linspace(0, len(target.steps) - 1, MOST_POINTS).astype(np.int64))
        rows.append(_terms(target.schedule, target.steps[kept]))
        losses.append(target.loss[kept])
        weights.append(np.sqrt(target.weight[kept]))
    loss, weight = np.concatenate(losses), np.concatenate(weights)
    matrix = np.concatenate(rows) * (weight / loss)[:, None]
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    solution, _ = nnls(matrix / scale, weight)
    return {name: float(value) for name, value in zip(("C", "M D^2", "M G^2"), solution / scale, strict=True)}


def predict(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """Loss (point,) after each of `steps` (point,) of a schedule."""
    return np.asarray(_terms(schedule, steps) @ np.array([numbers[name] for name in ("C", "M D^2", "M G^2")]))


def _terms(schedule: Schedule, steps: Steps) -> Array:
    """1, and what M D^2 and M G^2 are multiplied with, of shape (point, 3)."""
    whole = rates(schedule)
    found = []
    for step in steps:
        eta = whole[:step]
        eta = eta[: int(np.nonzero(eta)[0][-1]) + 1]  # the sums after the last step that moves are empty
        total = eta.sum()
        from_here = np.cumsum(eta[::-1])[::-1]  # sum_{>=k} eta
        squares = np.cumsum((eta**2)[::-1])[::-1]
        after = from_here[:-1] - eta[:-1]
        last = 0.5 * np.sum(eta[:-1] / after * squares[:-1] / from_here[:-1])
        found.append((1.0, 1 / (2 * total), squares[0] / (2 * total) + last))
    return np.array(found)
