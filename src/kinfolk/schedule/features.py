"""The sixteen features of the convergence and escape law (ours, after the abstract of arXiv 2409.04777).

A model in a quadratic valley with noise: convergence falls as powers of the learning-rate time S; noise is the mean of
the rate over a memory in learning-rate time, for six memories; and the curvature that is left at the end follows the
peak, so the noise counts relative to the peak.
"""

from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.blocks import block_sums, edges_until
from kinfolk.schedule.shapes import Array, Schedule, peak_of

CURVATURES = (0.02, 0.1, 0.4, 1.6, 8.0, 50.0)
"""Inverse memories of the noise, per unit of relative learning-rate time (`Units.steps` steps at the peak)."""
PEAK_EXPONENT = 0.33
"""r: noise relative to the peak grows as peak^r. Measured on one 124M model, so a hypothesis elsewhere."""

NAMES = (
    *("convergence S^-0.2", "convergence S^-0.4", "convergence S^-0.8"),
    *("horizon T^-0.25", "horizon T^-0.5", "horizon T^-1"),
    *(f"noise {curvature:g}" for curvature in CURVATURES),
    *("peak^0.3", "peak^2", "peak^-0.5 T^-0.5", "escape exp(-1/peak)"),
)


MEANINGS = {
    "convergence": "falls with the sum of rates: slow directions that more training closes",
    "horizon": "falls with the steps, whatever the rate: what data alone bring",
    "noise": "mean rate over a memory, relative to the peak: what a longer or deeper decay takes away",
    "peak": "the peak itself: too high costs through noise, too low through little progress",
    "escape": "escape from sharp valleys, which a high peak makes easier",
}
"""Of the features of the 16-feature law, by the first word of their names."""


def meaning(name: str) -> str:
    """What a feature stands for, in words."""
    return MEANINGS[name.split()[0].split("^")[0]]


@dataclass(frozen=True)
class Units:
    """What rates and steps are measured in: those at which the features' constants were chosen."""

    rate: float = 1e-3
    steps: float = 1e3


def features(
    schedule: Schedule, steps: int, units: Units, edges: Array | None = None, exponent: float = PEAK_EXPONENT
) -> Array:
    """The features (16,) of a schedule that stops after `steps` of its steps; its peak stays that of the whole.

    `edges` are those of the blocks, by default about a hundred.
    """
    edges = edges_until(schedule, steps) if edges is None else edges
    n = np.diff(edges) / units.steps
    e = block_sums(schedule, edges) / np.diff(edges) / units.rate
    peak, horizon = peak_of(schedule) / units.rate, steps / (10 * units.steps)
    total = float(n @ e)
    clock = n * e / peak
    after = clock.sum() - np.cumsum(clock)  # left of the clock after each block
    h = np.array(CURVATURES)[:, None]
    memory = np.exp(-h * after) - np.exp(-h * (after + clock))  # (curvature, block)
    noise = peak**exponent * (memory @ (e / peak))
    return np.array(
        [
            *(total**-0.2, total**-0.4, total**-0.8),
            *(horizon**-0.25, horizon**-0.5, 1 / horizon),
            *noise,
            *(peak**0.3, peak**2, (peak * horizon) ** -0.5, np.exp(-1 / peak)),
        ]
    )
