"""The over-training law of Gadre et al., arXiv 2403.08540: loss in compute and tokens per parameter, error in loss.

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta        M = D / N, C = 6 N D, N all parameters
    Err(L)  = epsilon - k exp(-gamma L)              mean top-1 error over tasks

It is the loss law with alpha = beta = 2 eta, written so that a few small runs fix it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from kinfolk.laws.loss import LossLaw, Value
from kinfolk.laws.objectives import Array


@dataclass(frozen=True)
class OverTrainingLaw:
    """L(C, M); `eta` is half the common exponent of size and data."""

    E: float
    a: float
    b: float
    eta: float

    def predict(self, parameters: Value, tokens: Value) -> Value:
        """Loss at N `parameters` and D `tokens`."""
        ratio, compute = tokens / parameters, 6.0 * parameters * tokens
        return self.E + (self.a * ratio**self.eta + self.b * ratio**-self.eta) * compute**-self.eta  # type: ignore[no-any-return]

    def loss_law(self, name: str, source: str) -> LossLaw:
        """The same law in the form E + A N^-alpha + B D^-beta."""
        # M / C = 1 / (6 N^2) and 1 / (M C) = 1 / (6 D^2).
        scale = 6.0**-self.eta
        return LossLaw(
            name=name,
            E=self.E,
            A=self.a * scale,
            B=self.b * scale,
            alpha=2 * self.eta,
            beta=2 * self.eta,
            counting="total",
            standing="fitted",
            source=source,
        )


@dataclass(frozen=True)
class ErrorLaw:
    """Mean top-1 error of downstream tasks as a function of loss."""

    epsilon: float
    k: float
    gamma: float

    def predict(self, loss: Value) -> Value:
        """Error at a loss in nats per token."""
        return self.epsilon - self.k * np.exp(-self.gamma * loss)  # type: ignore[no-any-return]


def fit_over_training(parameters: Array, tokens: Array, loss: Array) -> OverTrainingLaw:
    """Least squares of the law on runs of shape (run,), four or more; not all at one number of tokens per parameter."""
    ratio, compute = tokens / parameters, 6.0 * parameters * tokens

    def solve(eta: float) -> tuple[Array, float]:
        basis = np.stack([np.ones_like(loss), (ratio / compute) ** eta, (ratio * compute) ** -eta], axis=1)
        scale = np.linalg.norm(basis, axis=0)
        factors, residual = nnls(basis / scale, loss)
        return factors / scale, float(residual**2)

    eta = _best(lambda value: solve(value)[1], 0.02, 0.6)
    (constant, size, data), _ = solve(eta)
    return OverTrainingLaw(float(constant), float(size), float(data), eta)


def fit_error(loss: Array, error: Array) -> ErrorLaw:
    """Least squares of the error law on models of shape (model,), three or more."""

    def solve(gamma: float) -> tuple[Array, float]:
        basis = np.stack([np.ones_like(loss), -np.exp(-gamma * loss)], axis=1)
        factors, *_ = np.linalg.lstsq(basis, error, rcond=None)
        return factors, float(((basis @ factors - error) ** 2).sum())

    gamma = _best(lambda value: solve(value)[1], 0.05, 3.0)
    (epsilon, k), _ = solve(gamma)
    return ErrorLaw(float(epsilon), float(k), gamma)


def _best(error: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one variable is least: the best point of a grid, refined."""
    grid = np.linspace(low, high, 300)
    best = float(grid[int(np.argmin([error(float(value)) for value in grid]))])
    step = float(grid[1] - grid[0])
    found = minimize_scalar(error, bounds=(best - step, best + step), method="bounded", options={"xatol": 1e-12})
    return float(found.x)
