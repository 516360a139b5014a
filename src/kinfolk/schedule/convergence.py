"""The 16-feature convergence and escape law: ln L = c + sum of non-negative weights times features.

Convex, deterministic, without starting points. Ours; the features are in `features`.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from kinfolk.schedule.features import NAMES, Units, features
from kinfolk.schedule.shapes import Array, Schedule, Steps
from kinfolk.schedule.targets import Numbers, Target

RIDGE = 1e-2
"""Of the weights, on features divided by their maximum."""
PASSES = 4
ROBUST = 2e-3
"""A residual of ln L above this counts for less in the next pass."""


def fit(targets: Sequence[Target], units: Units = Units()) -> Numbers:  # noqa: B008 (frozen)
    """Weights, constant and units, by non-negative least squares in four passes."""
    matrix = np.concatenate([_features(target.schedule, target.steps, units) for target in targets])
    wanted = np.log(np.concatenate([target.loss for target in targets]))
    weights = np.concatenate([target.weight for target in targets])
    scale = matrix.max(axis=0)
    columns = np.hstack([matrix / scale, np.ones((len(matrix), 1))])  # (row, 16 + 1)
    ridge = np.hstack([RIDGE * np.eye(len(scale)), np.zeros((len(scale), 1))])
    robust = np.ones(len(wanted))
    for _ in range(PASSES):
        root = np.sqrt(weights * robust)
        rows = np.vstack([columns * root[:, None], ridge])
        solution, _ = nnls(rows, np.concatenate([wanted * root, np.zeros(len(scale))]))
        robust = np.minimum(1.0, ROBUST / np.maximum(np.abs(columns @ solution - wanted), 1e-300))
    numbers = {name: float(value) for name, value in zip(NAMES, solution[:-1] / scale, strict=True)}
    return {**numbers, "constant": float(solution[-1]), "unit rate": units.rate, "unit steps": units.steps}


def predict(numbers: Numbers, schedule: Schedule, steps: Steps) -> Array:
    """Loss (point,) of the schedule if it stopped after each of `steps` (point,)."""
    matrix = _features(schedule, steps, Units(numbers["unit rate"], numbers["unit steps"]))
    return np.asarray(np.exp(numbers["constant"] + matrix @ np.array([numbers[name] for name in NAMES])))


def _features(schedule: Schedule, steps: Steps, units: Units) -> Array:
    return np.stack([features(schedule, int(step), units) for step in steps])
