"""Fits L(N, D) = E + A N^-alpha + B D^-beta without a lottery of starting points.

At given exponents the law is linear in E, A and B, so those three are solved for exactly and only two unknowns are
searched (variable projection); what that finds is polished with the analytic gradient of the wanted objective.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import minimize

from kinfolk.laws.objectives import (
    Array,
    Objective,
    is_logarithmic,
    objective_value,
    penalty,
    smoothing_path,
)

EXPONENTS = (0.05, 1.0)
"""Where exponents are searched; a fit that ends at these bounds or outside is one that the data do not hold."""

EXPONENT_LIMITS = (0.01, 2.0)
"""Where the polish may lead: beyond, A and B leave floating point."""

GRID = 20
NEGLIGIBLE = 1e-3
"""A term that is nowhere more than this share of the loss has vanished."""


@dataclass(frozen=True)
class Parameters:
    """The five numbers of the law; losses in the unit of the runs, N and D as counts."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, parameters: Array | float, tokens: Array | float) -> Array:
        """Loss at N `parameters` and D `tokens`."""
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)


@dataclass(frozen=True)
class FitResult:
    """Where a fit ended, and whether it is a minimum."""

    parameters: Parameters
    objective: float
    gradient_norm: float
    """Of the scaled objective, per unit of ln A, ln B, ln E, alpha, beta; near zero at a minimum."""
    at_bound: tuple[str, ...]
    """Parameters that vanished or left the range of plausible exponents: not identified."""


@dataclass(frozen=True)
class _Problem:
    """Runs with centred logarithms: x = ln N - mean, z = ln D - mean, so that A and B do not follow their exponents."""

    x: Array  # (run,)
    z: Array  # (run,)
    loss: Array  # (run,)
    objective: Objective

    def residuals(self, point: Array) -> tuple[Array, Array]:
        """Residuals (run,) and their Jacobian (run, 5) at point = (ln A', ln B', ln E, alpha, beta)."""
        terms = np.stack([point[0] - point[3] * self.x, point[1] - point[4] * self.z, np.full_like(self.x, point[2])])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        jacobian = np.stack([*shares, -shares[0] * self.x, -shares[1] * self.z], axis=1)
        log_prediction = top + np.log(total)
        if is_logarithmic(self.objective):
            return log_prediction - np.log(self.loss), jacobian
        prediction = np.exp(log_prediction)
        return prediction - self.loss, prediction[:, None] * jacobian


def fit(parameters: Array, tokens: Array, loss: Array, objective: Objective = "huber_log") -> FitResult:
    """The best law for runs of N `parameters`, D `tokens` and `loss`, each of shape (run,).

    The search of 20 x 20 exponents with non-negative least squares is exact in E, A and B; its best cell starts the
    polish, which follows the objective from a smoothed form to the sharp one.
    """
    centres, problem = _problem(parameters, tokens, loss, objective)
    return _result(problem, centres, *_polish(problem, _projected_start(problem), smoothing_path(objective)))


def refit(
    parameters: Array, tokens: Array, loss: Array, near: Parameters, objective: Objective = "huber_log"
) -> FitResult:
    """The best law from the start `near`: for resampled runs, whose best law is not far from that of the whole."""
    centres, problem = _problem(parameters, tokens, loss, objective)
    start = _point(near, centres)
    return _result(problem, centres, *_polish(problem, start, smoothing_path(objective)[1:] or (1.0,)))


def random_starts(
    parameters: Array,
    tokens: Array,
    loss: Array,
    objective: Objective = "huber_log",
    *,
    starts: int = 20,
    seed: int = 0,
) -> float:
    """The best objective of polishing from random starts: a certificate that `fit` missed nothing better."""
    centres, problem = _problem(parameters, tokens, loss, objective)
    generator = np.random.default_rng(seed)
    scale = np.log(loss.mean())
    best = np.inf
    for _ in range(starts):
        exponents = generator.uniform(*EXPONENTS, size=2)
        start = np.concatenate([scale + generator.uniform(-3.0, 0.0, size=3), exponents])
        best = min(best, _result(problem, centres, *_polish(problem, start, smoothing_path(objective))).objective)
    return float(best)


def log_jacobian(parameters: Array, tokens: Array, law: Parameters) -> Array:
    """d ln L / d (ln A', ln B', ln E, alpha, beta) of shape (run, 5), ln N and ln D centred on these runs."""
    centres, problem = _problem(parameters, tokens, np.ones_like(parameters), "huber_log")
    return problem.residuals(_point(law, centres))[1]


def _problem(
    parameters: Array, tokens: Array, loss: Array, objective: Objective
) -> tuple[tuple[float, float], _Problem]:
    x, z = np.log(parameters), np.log(tokens)
    centres = float(x.mean()), float(z.mean())
    return centres, _Problem(x - centres[0], z - centres[1], np.asarray(loss, dtype=np.float64), objective)


def _point(law: Parameters, centres: tuple[float, float]) -> Array:
    tiny = 1e-300
    return np.array(
        [
            np.log(max(law.A, tiny)) - law.alpha * centres[0],
            np.log(max(law.B, tiny)) - law.beta * centres[1],
            np.log(max(law.E, tiny)),
            law.alpha,
            law.beta,
        ]
    )


def _projected_start(problem: _Problem) -> Array:
    """The best cell of a grid of exponents, refined on a finer grid around it: the squared-error fit."""
    low, high = (np.full(2, bound) for bound in EXPONENTS)
    for _ in range(3):
        alphas, betas = (np.linspace(low[axis], high[axis], GRID) for axis in (0, 1))
        alpha, beta = (grid.ravel() for grid in np.meshgrid(alphas, betas, indexing="ij"))
        errors, factors = _nonnegative_least_squares(problem, alpha, beta)
        best = int(errors.argmin())
        cell = np.array([alphas[1] - alphas[0], betas[1] - betas[0]])
        centre = np.array([alpha[best], beta[best]])
        low, high = np.maximum(centre - cell, EXPONENTS[0]), np.minimum(centre + cell, EXPONENTS[1])
    constant, size, data = np.maximum(factors[best], 1e-2 * problem.loss.mean())
    return np.array([np.log(size), np.log(data), np.log(constant), *centre])


def _nonnegative_least_squares(problem: _Problem, alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Squared errors (cell,) and E, A', B' (cell, 3) that are the least with none of the three negative.

    With three unknowns the best non-negative solution is the best of the seven subsets of positive ones.
    """
    basis = np.stack(
        [
            np.ones((len(alpha), len(problem.x))),
            np.exp(-alpha[:, None] * problem.x),
            np.exp(-beta[:, None] * problem.z),
        ],
        axis=1,
    )  # (cell, 3, run)
    gram, moments = basis @ basis.transpose(0, 2, 1), basis @ problem.loss
    ridge = 1e-14 * len(problem.x)
    best = np.full(len(alpha), float(problem.loss @ problem.loss))
    factors = np.zeros((len(alpha), 3))
    for count in (1, 2, 3):
        for chosen in map(list, combinations(range(3), count)):
            square = gram[:, chosen][:, :, chosen] + ridge * np.eye(count)
            solution = np.linalg.solve(square, moments[:, chosen, None])[..., 0]
            error = problem.loss @ problem.loss - (solution * moments[:, chosen]).sum(axis=1)
            better = (solution > 0).all(axis=1) & (error < best)
            best = np.where(better, error, best)
            factors[better] = 0.0
            factors[np.ix_(better, chosen)] = solution[better]
    return best, factors


def _polish(problem: _Problem, start: Array, smoothings: tuple[float, ...]) -> tuple[Array, float]:
    """The minimum near `start`, and the norm of the gradient there."""
    point, gradient = start, np.inf
    for smoothing in smoothings:
        tolerance = 1e-8 if smoothing == smoothings[-1] else 1e-4
        # Divided by the smoothing, the objective stays of the order of one however sharp it is.
        scale = 1.0 if problem.objective in ("squared", "asymmetric") else 1.0 / smoothing

        def value(at: Array, smoothing: float = smoothing, scale: float = scale) -> tuple[float, Array]:
            residuals, jacobian = problem.residuals(at)
            total, slope = penalty(problem.objective, residuals, smoothing)
            return scale * total, scale * (slope @ jacobian)

        with np.errstate(all="ignore"):
            found = minimize(value, point, jac=True, method="BFGS", options={"gtol": tolerance, "maxiter": 500})
            if not _usable(found.x):
                limits = [(None, None)] * 3 + [EXPONENT_LIMITS] * 2
                found = minimize(value, point, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 500})
        if _usable(found.x):
            point, gradient = found.x, float(np.abs(found.jac).max())
    return point, gradient


def _usable(point: Array) -> bool:
    low, high = EXPONENT_LIMITS
    return bool(np.all(np.isfinite(point)) and np.all(point[3:] >= low) and np.all(point[3:] <= high))


def _result(problem: _Problem, centres: tuple[float, float], point: Array, gradient: float) -> FitResult:
    size, data, constant, alpha, beta = (float(value) for value in point)
    law = Parameters(
        E=float(np.exp(constant)),
        A=float(np.exp(size + alpha * centres[0])),
        B=float(np.exp(data + beta * centres[1])),
        alpha=alpha,
        beta=beta,
    )
    residuals, jacobian = problem.residuals(point)
    shares = jacobian[:, :3] if is_logarithmic(problem.objective) else jacobian[:, :3] / problem.loss[:, None]
    vanished = [name for name, share in zip("ABE", shares.max(axis=0), strict=True) if share < NEGLIGIBLE]
    low, high = EXPONENTS
    outside = [name for name, value in (("alpha", alpha), ("beta", beta)) if not low < value < high]
    return FitResult(law, objective_value(problem.objective, residuals), gradient, (*vanished, *outside))
