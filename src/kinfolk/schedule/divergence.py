"""Whether a run diverges, told from its peak, its warm-up and its size (ours; signs after arXiv 2309.14322)."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize

from kinfolk.family.peak_rules import olmo_ladder_peak
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, Schedule, peak_of, warmup_of

PENALTY = 1.0
"""Of the squared weights of the regression, on features of unit deviation."""
FEWEST = 3
"""Runs of each outcome that a regression needs."""

Triple = tuple[float, float, float]


class Regression(BaseModel):
    """L2-penalised logistic regression on ln peak, ln (1 + warm-up) and ln of the steepest rise of the rate.

    Where sizes are known, peak and rise are multiples of the size's reference rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    centre: Triple
    scale: Triple
    weights: Triple
    constant: float
    sized: bool = False
    """Whether the runs said their sizes."""

    def probability(self, schedule: Schedule, size: float | None = None) -> float:
        """Of divergence, for a model of `size` parameters."""
        x = _features(peak_of(schedule), warmup_of(schedule), size if self.sized else None)
        return float(1 / (1 + math.exp(-np.clip(self._logit(x), -500, 500))))

    def boundary(self, warmup_steps: int, size: float | None = None) -> float | None:
        """The peak at which divergence is as likely as not; None if a higher peak is no riskier."""
        one = _features(1.0, warmup_steps, size if self.sized else None)
        slope = self.weights[0] / self.scale[0] + self.weights[2] / self.scale[2]
        at = -self._logit(one) / slope if slope > 0 else math.inf
        return math.exp(at) if abs(at) < 100 else None

    def _logit(self, features: Array) -> float:
        standard = (features - np.array(self.centre)) / np.array(self.scale)
        return float(self.constant + standard @ np.array(self.weights))


def reference_rate(size: float | None) -> float:
    """The rate that peaks are multiples of: by the rule of the OLMo ladder, which knows nothing but the size.

    Only its ratio between sizes matters: a model 8 times as large is as likely to diverge at half the peak.
    """
    return 1.0 if size is None else olmo_ladder_peak(size)


def fit_regression(runs: Sequence[Run]) -> Regression | None:
    """The regression on runs that did and did not diverge; None where fewer than three did, or did not."""
    label = np.array([1.0 if run.diverged else -1.0 for run in runs])
    if min((label > 0).sum(), (label < 0).sum()) < FEWEST:
        return None
    sized = all(run.size is not None for run in runs)
    x = np.stack(
        [_features(peak_of(run.schedule), warmup_of(run.schedule), run.size if sized else None) for run in runs]
    )
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    standard = (x - centre) / scale

    def objective(at: Array) -> tuple[float, Array]:
        margin = label * (at[0] + standard @ at[1:])
        value = float(np.logaddexp(0.0, -margin).sum() + PENALTY / 2 * at[1:] @ at[1:])
        slope = -label / (1 + np.exp(np.clip(margin, -500, 500)))
        return value, np.append(slope.sum(), slope @ standard + PENALTY * at[1:])

    found = minimize(objective, np.zeros(4), jac=True, method="BFGS").x
    return Regression(
        centre=_triple(centre),
        scale=_triple(scale),
        weights=_triple(found[1:]),
        constant=float(found[0]),
        sized=sized,
    )


def _features(peak: float, warmup_steps: int, size: float | None) -> Array:
    relative = peak / reference_rate(size)
    return np.log([relative, 1.0 + warmup_steps, relative / max(warmup_steps, 1)])


def _triple(values: Array) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
