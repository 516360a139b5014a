"""The unified compute law: loss follows compute alone, whatever its split between parameters and tokens.

Source: Guo, arXiv 2404.19484. It is right for rough planning at 10 to 60 tokens per parameter and wrong away from there
(a loss law in N and D fits the Chinchilla points three times as closely over their whole range), so whatever shows it
shows the loss law's price of the split beside it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls
from scipy.stats import t as student

from kinfolk.laws.loss import Value
from kinfolk.laws.objectives import Array

SCALE = 1e21
"""Parameters in billions times tokens in trillions: what the law takes the logarithm of."""


@dataclass(frozen=True)
class ComputeLaw:
    """bits = slope ln(N D / 1e21) + intercept; one intercept per family, because families differ by a constant."""

    slope: float
    intercepts: dict[str, float]
    slope_interval: tuple[float, float] | None = None
    intercept_intervals: dict[str, tuple[float, float]] | None = None
    rmse: float | None = None
    source: str = ""

    @property
    def intercept(self) -> float:
        """The intercept of a law with a single family; ValueError otherwise."""
        (value,) = self.intercepts.values()
        return value

    def predict(self, parameters: Value, tokens: Value, family: str | None = None) -> Value:
        """Loss, in the unit that was fitted, at N `parameters` (all of them) and D `tokens`."""
        intercept = self.intercept if family is None else self.intercepts[family]
        return self.slope * np.log(parameters * tokens / SCALE) + intercept  # type: ignore[no-any-return]

    def compute_for(self, bits: float, family: str | None = None) -> float:
        """FLOPs, as 6 N D, that reach `bits`."""
        intercept = self.intercept if family is None else self.intercepts[family]
        return 6.0 * SCALE * math.exp((bits - intercept) / self.slope)

    def smallest_parameters(self, bits: float, tokens: float, family: str | None = None) -> float:
        """The smallest model that reaches `bits` on `tokens`: the cheapest one to serve."""
        return self.compute_for(bits, family) / (6.0 * tokens)


UNIFIED = ComputeLaw(
    slope=-0.0308,
    intercepts={"all": 0.5727},
    slope_interval=(-0.0349, -0.0278),
    intercept_intervals={"all": (0.559, 0.592)},
    rmse=0.0086,
    source="bits per character of 18 dense models (github.com/hkust-nlp/llm-compression-intelligence); form of arXiv "
    "2404.19484",
)
"""Recomputed by least squares; intervals at 95 %. Mixtures of experts and models below a few billion parameters are not
in it."""


def fit_compute_law(
    parameters: Array, tokens: Array, bits: Array, families: NDArray[Any] | None = None, *, level: float = 0.95
) -> ComputeLaw:
    """Least squares of one slope and an intercept per family, with Student's t intervals at `level`.

    Arrays of shape (model,). Families of one member fix their own intercept and say nothing about the slope.
    """
    names = np.full(len(bits), "all") if families is None else np.asarray(families).astype(str)
    distinct = sorted(set(names.tolist()))
    logs = np.log(parameters * tokens / SCALE)
    basis = np.stack([logs, *(np.where(names == name, 1.0, 0.0) for name in distinct)], axis=1)
    factors, *_ = np.linalg.lstsq(basis, bits, rcond=None)
    residuals = bits - basis @ factors
    freedom = len(bits) - basis.shape[1]
    rmse = float(np.sqrt(np.mean(residuals**2)))
    intercepts = dict(zip(distinct, (float(value) for value in factors[1:]), strict=True))
    if freedom < 1 or np.ptp(logs) == 0:
        return ComputeLaw(float(factors[0]), intercepts, rmse=rmse)
    covariance = np.linalg.inv(basis.T @ basis) * float(residuals @ residuals) / freedom
    half = student.ppf((1 + level) / 2, freedom) * np.sqrt(np.diag(covariance))
    intervals = [(float(value - width), float(value + width)) for value, width in zip(factors, half, strict=True)]
    return ComputeLaw(
        float(factors[0]), intercepts, intervals[0], dict(zip(distinct, intervals[1:], strict=True)), rmse
    )


@dataclass(frozen=True)
class SaturatingLaw:
    """L = E + k C^-g: the compute-only law for losses that approach a floor, to be set beside a law in N and D."""

    E: float
    k: float
    g: float
    rmse: float

    def predict(self, compute: Value) -> Value:
        """Loss at 6 N D FLOPs."""
        return self.E + self.k * compute**-self.g  # type: ignore[no-any-return]


def fit_saturating(compute: Array, loss: Array) -> SaturatingLaw:
    """Least squares of a power law in compute with a floor, on runs of shape (run,)."""
    centred = np.log(compute) - np.log(compute).mean()

    def solve(exponent: float) -> tuple[Array, float]:
        basis = np.stack([np.ones_like(loss), np.exp(-exponent * centred)], axis=1)
        factors, residual = nnls(basis, loss)
        return factors, float(residual)

    grid = np.linspace(0.01, 1.0, 200)
    best = float(grid[int(np.argmin([solve(float(value))[1] for value in grid]))])
    found = minimize_scalar(
        lambda value: solve(value)[1], bounds=(max(best - 0.005, 1e-3), best + 0.005), method="bounded"
    )
    exponent = float(found.x)
    (constant, factor), residual = solve(exponent)
    scale = float(factor) * math.exp(exponent * float(np.log(compute).mean()))
    return SaturatingLaw(float(constant), scale, exponent, residual / math.sqrt(len(loss)))
