"""The annealing law with a prior, for one curve that is not finished: loss / level = l + s (S / S_now)^-a + g n.

S is the sum of the rates so far and n the annealed rate, from 0 to 1: past changes of the rate, each by what has come
of it. Tissue's form (arXiv 2408.11029) with the kernel of the multi-power law (arXiv 2503.12811). Level is the latest
loss, so that the priors are shares of it. One curve cannot hold a kernel, an exponent or, before the rate falls, the
gain g: these are averaged over a grid by how well they explain the points (Bayesian model averaging), and l and s
follow in closed form. No starting points, and a few milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.changes import changes
from kinfolk.schedule.shapes import Array, Schedule, Steps, peak_of

EXPONENTS = np.array([0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0])
GAINS = np.geomspace(0.012, 0.22, 10)
Kernel = tuple[float | None, float]
"""Speed C with which a change of the rate takes effect (None: at once), and the power of the rate that is annealed."""
KERNELS: tuple[Kernel, ...] = ((0.1, 1.0), (None, 1.0), (0.1, 0.7), (None, 0.7))
"""For forecasts. The published fits of two models have C = 0.11 (peak 3e-4)."""
COMPARING: tuple[Kernel, ...] = ((0.1, 1.0), (0.01, 1.0))
"""For comparing decays: a decay that takes effect at once would always be best as short as can be."""
POWER, RATE_POWER = 0.59, 0.65
"""Of the kernel 1 - (1 + C x)^-b, x = (rate / peak)^-g times the sum of rates since, in steps at the peak: b and g as
published for those models."""
FLOOR, FLOOR_DEVIATION = 0.8, 0.15
"""l: where the loss would end without noise, as a share of the latest loss."""
PROGRESS, PROGRESS_DEVIATION = 0.15, 0.15
"""s: what more training would take away."""
RESIDUAL = 0.003
"""Smallest standard deviation of a point from the law; a curve that scatters more counts for less."""
INDEPENDENT = 20
"""A curve counts as at most so many points where kernels, exponents and gains are weighed: neighbours err alike."""
FIRST_SHARE = 0.15
"""Points before this share of the sum of rates are left out: no power law holds from the beginning."""


@dataclass(frozen=True)
class Gain:
    """What is believed of the gain before a curve is seen: ln g is normal."""

    centre: float = 0.06
    deviation: float = 0.7
    """Of ln g. On public curves g is 0.03 to 0.08, on tiny models at high rates 0.1 to 0.2."""


@dataclass(frozen=True)
class Posterior:
    """What a curve says, over the grid (exponent, kernel, gain)."""

    level: float
    """The latest loss."""
    now: float
    """Sum of the rates up to the latest point, in steps at the peak."""
    weights: Array
    """(exponent, kernel, gain), sum 1."""
    means: Array
    """Of l and s: (exponent, kernel, gain, 2)."""
    covariances: Array
    """Of l and s: (exponent, 2, 2)."""
    kernels: tuple[Kernel, ...]

    def gain(self) -> Gain:
        """Mean and deviation of ln g."""
        weights = self.weights.sum(axis=(0, 1))
        mean = float(weights @ np.log(GAINS))
        return Gain(float(np.exp(mean)), float(np.sqrt(weights @ (np.log(GAINS) - mean) ** 2)))

    def predict(self, points: Sequence[tuple[Schedule, int]]) -> tuple[Array, Array]:
        """Losses (point,) of schedules after so many steps, and their covariance (point, point)."""
        found, inner = self._cells(points)
        mean = np.einsum("ekg,ekgp->p", self.weights, found)
        apart = found - mean
        outer = np.einsum("ekg,ekgp,ekgq->pq", self.weights, apart, apart)
        return self.level * mean, self.level**2 * (inner + outer)

    def quantiles(self, schedule: Schedule, step: int, shares: Sequence[float]) -> tuple[Array, float]:
        """Losses (share,) below which so much of the grid lies, and the deviation within a cell of it.

        The gain's prior is skewed: the median is nearer to what comes than the mean.
        """
        cells, inner = self._cells([(schedule, step)])
        order = np.argsort(cells[..., 0], axis=None)
        # The middle of each cell's share of the weight.
        weights = self.weights.ravel()[order]
        reached = np.cumsum(weights) - weights / 2
        return (
            self.level * np.interp(shares, reached, cells[..., 0].ravel()[order]),
            self.level * float(np.sqrt(inner[0, 0])),
        )

    def _cells(self, points: Sequence[tuple[Schedule, int]]) -> tuple[Array, Array]:
        """Loss over level by every cell of the grid (exponent, kernel, gain, point); mean covariance within a cell."""
        total, annealed = _basis([(schedule, np.array([step])) for schedule, step in points], self.kernels)
        rows = _rows(total / self.now)  # (exponent, point, 2)
        found = np.einsum("epi,ekgi->ekgp", rows, self.means) + GAINS[:, None] * annealed[:, None, :]
        inner = np.einsum("e,epi,eij,eqj->pq", self.weights.sum(axis=(1, 2)), rows, self.covariances, rows)
        return found, inner


def fit(
    schedule: Schedule,
    steps: Steps,
    losses: Array,
    gain: Gain = Gain(),
    kernels: tuple[Kernel, ...] = KERNELS,
) -> Posterior:
    """What the losses (point,) after so many `steps` (point,) of a schedule say; at least one point."""
    total, annealed = _basis([(schedule, steps)], kernels)
    level, now = float(losses[-1]), float(total[-1])
    kept = total >= FIRST_SHARE * now
    rows = _rows(total[kept] / now)  # (exponent, point, 2)
    without = losses[kept] / level - GAINS[:, None] * annealed[:, None, kept]  # (kernel, gain, point)
    log_prior = -0.5 * ((np.log(GAINS) - np.log(gain.centre)) / gain.deviation) ** 2
    found = _averaged(rows, without, log_prior, RESIDUAL)
    scatter = _scatter(rows, without, *found[:2])
    if scatter > RESIDUAL:
        found = _averaged(rows, without, log_prior, scatter)
    return Posterior(level, now, *found, kernels)


def _averaged(rows: Array, without: Array, log_prior: Array, residual: float) -> tuple[Array, Array, Array]:
    """Weights (exponent, kernel, gain), means of l and s (..., 2) and covariances (exponent, 2, 2).

    From rows (exponent, point, 2) and what is left of the losses without the gain's part (kernel, gain, point).
    """
    prior_mean = np.array([FLOOR, PROGRESS])
    precision = np.diag([FLOOR_DEVIATION**-2, PROGRESS_DEVIATION**-2])
    covariances = np.linalg.inv(precision + np.einsum("epi,epj->eij", rows, rows) / residual**2)
    missed = without - (rows @ prior_mean)[:, None, None, :]  # (exponent, kernel, gain, point)
    pull = np.einsum("epi,ekgp->ekgi", rows, missed) / residual**2
    shift = np.einsum("eij,ekgj->ekgi", covariances, pull)
    misfit = (missed**2).sum(axis=-1) / residual**2 - (shift * pull).sum(axis=-1)
    log_weight = (
        -0.5 * misfit * min(1.0, INDEPENDENT / rows.shape[1])
        + 0.5 * np.linalg.slogdet(covariances)[1][:, None, None]
        + log_prior
    )
    weights = np.exp(log_weight - log_weight.max())
    return weights / weights.sum(), prior_mean + shift, covariances


def _scatter(rows: Array, without: Array, weights: Array, means: Array) -> float:
    """Root mean square of what the likeliest cell leaves, two parameters taken off."""
    e, k, g = np.unravel_index(int(weights.argmax()), weights.shape)
    left = without[k, g] - rows[e] @ means[e, k, g]
    return float(np.sqrt(left @ left / max(len(left) - 2, 1)))


def _rows(relative: Array) -> Array:
    """1 and (S / S_now)^-a of each point: (exponent, point, 2)."""
    falling = relative[None, :] ** -EXPONENTS[:, None]
    return np.stack([np.ones_like(falling), falling], axis=-1)


def _basis(items: Sequence[tuple[Schedule, Steps]], kernels: Sequence[Kernel]) -> tuple[Array, Array]:
    """Of all points of all items: sum of the rates in steps at the peak (point,), annealed rate (kernel, point)."""
    totals, parts = [], []
    for schedule, steps in items:
        peak = peak_of(schedule)
        pairs = changes([(schedule, steps)])
        after = np.minimum(pairs.rate / peak, 1.0)
        before = np.clip(after - pairs.change / peak, 0.0, None)
        since = after**-RATE_POWER * pairs.lag / peak
        parts.append(
            [
                pairs.sum((after**p - before**p) * (1.0 if speed is None else 1 - (1 + speed * since) ** -POWER))
                for speed, p in kernels
            ]
        )
        totals.append(pairs.total / peak)
    return np.concatenate(totals), np.concatenate([np.array(part) for part in parts], axis=1)
