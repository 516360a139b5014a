"""What a fit of a loss law minimises: sums over runs of a penalty of the residuals.

Sums, not means: a mean makes quasi-Newton methods stop too early, the known cause of the misfit in arXiv 2203.15556
(found in arXiv 2404.10102).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

Objective = Literal["huber_log", "absolute_log", "squared", "huber", "asymmetric"]
"""huber_log: Huber of ln(prediction / loss), the default (arXiv 2203.15556, appendix A.3). absolute_log: its absolute
value. squared, huber: of prediction - loss. asymmetric: mean absolute error of prediction - loss, ten times as heavy
where the prediction is above the loss: the lower envelope (the `chinchilla` package)."""

HUBER_DELTA = 1e-3
ASYMMETRY = 10.0
SHARPEST = 1e-7
"""The last smoothing of the absolute error."""


def is_logarithmic(objective: Objective) -> bool:
    """Whether residuals are differences of logarithms rather than of losses."""
    return objective in ("huber_log", "absolute_log")


def penalty(objective: Objective, residuals: Array, smoothing: float) -> tuple[float, Array]:
    """The objective at some residuals, and its gradient with respect to each of them.

    `smoothing` is Huber's delta; for the kinked objectives, the width below which the kink is rounded off.
    """
    if objective == "squared":
        return float(residuals @ residuals), 2 * residuals
    if objective == "asymmetric":
        root = np.sqrt(residuals**2 + smoothing**2)
        weight = np.where(residuals > 0, ASYMMETRY, 1.0) / len(residuals)
        return float(weight @ (root - smoothing)), weight * residuals / root
    size = np.abs(residuals)
    huber = np.where(size <= smoothing, residuals**2 / 2, smoothing * (size - smoothing / 2))
    return float(huber.sum()), np.clip(residuals, -smoothing, smoothing)


def objective_value(objective: Objective, residuals: Array) -> float:
    """The objective as it is reported: Huber's delta at 1e-3, the absolute error with its last smoothing.

    That last one is Huber's loss at 1e-7 over 1e-7: less than the sum of |r| by at most 5e-8 for each run. The optima
    that are published for it are such values.
    """
    if objective == "absolute_log":
        return penalty(objective, residuals, SHARPEST)[0] / SHARPEST
    if objective == "asymmetric":
        return float(np.mean(np.abs(residuals) * np.where(residuals > 0, ASYMMETRY, 1.0)))
    return penalty(objective, residuals, HUBER_DELTA)[0]


def smoothing_path(objective: Objective) -> tuple[float, ...]:
    """Smoothings from rough to the last one: the smooth problem leads into the basin of the sharp one."""
    if objective == "squared":
        return (1.0,)
    path = (0.1, 0.01, 0.003, 0.001)
    if objective == "absolute_log":
        return (*path, 1e-4, 1e-5, 1e-6, SHARPEST)
    if objective == "asymmetric":
        return (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    return path
