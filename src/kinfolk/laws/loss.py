"""The loss law L(N, D) = E + A N^-alpha + B D^-beta, and what follows from it.

Source: Hoffmann et al., arXiv 2203.15556, section 3.3. C = 6 N D throughout, with the N that the law counts.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.laws.law_file import read_law
from kinfolk.laws.objectives import Array

Counting = Literal["total", "non_embedding"]
"""Which parameters N counts: all of them, or all but the vocabulary tables. Mixing the two is the commonest silent
error with these laws, so every law says which one it was fitted with."""

Standing = Literal["published", "recomputed", "fitted", "borrowed"]
"""printed by its source; fitted by us to its source's public data; fitted to the user's runs; fitted with exponents
of another law."""

Value = TypeVar("Value", float, Array)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FittedRange(_Record):
    """Where the runs of a fit lie; beyond it the law extrapolates."""

    runs: int
    parameters: tuple[float, float]
    tokens: tuple[float, float]
    compute: tuple[float, float]
    """6 N D, in FLOPs."""
    ratio: tuple[float, float]
    """Tokens per parameter."""

    def holds(self, parameters: float, tokens: float) -> bool:
        """Whether a point lies in the range of sizes, tokens and tokens per parameter of the fitted runs."""
        slack = 1e-9
        pairs = ((parameters, self.parameters), (tokens, self.tokens), (tokens / parameters, self.ratio))
        return all(low * (1 - slack) <= value <= high * (1 + slack) for value, (low, high) in pairs)

    def distance(self, parameters: Value, tokens: Value) -> Value:
        """How far a point lies outside the fitted runs: the largest of its logarithmic distances from their ranges of
        compute, parameters, tokens, and tokens per parameter, each zero inside its range.

        For runs that grow in size and data together it is ln(C / largest fitted C).
        """
        ranges = (
            (6.0 * parameters * tokens, self.compute),
            (parameters, self.parameters),
            (tokens, self.tokens),
            (tokens / parameters, self.ratio),
        )
        outside = [part for value, (low, high) in ranges for part in (np.log(value / high), np.log(low / value))]
        return np.maximum(0.0, np.max(outside, axis=0))  # type: ignore[no-any-return]


class Calibration(_Record):
    """How wide a forecast's interval is: found by hiding the larger runs, never from the fit's own residuals."""

    level: float = 0.9
    half_width: float = Field(gt=0)
    """Of ln loss: what `level` of the hidden runs' errors stayed below."""
    reach: float = Field(ge=0)
    """Distance (`FittedRange.distance`) up to which `half_width` was measured; beyond, the interval widens in
    proportion."""
    hidden_runs: int
    """Errors that it was measured on; 0 if it is an assumption."""
    basis: Literal["rolling hold-out", "assumed"]
    coverage: float | None = None
    """Share of hidden larger runs that such intervals held in a back-test on the same runs; None if too few."""
    coverage_runs: int = 0

    def half_width_at(self, distance: Value) -> Value:
        """Half the interval, of ln loss, at a distance from the fitted runs (`FittedRange.distance`)."""
        return self.half_width * np.maximum(1.0, (1.0 + distance) / (1.0 + self.reach))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Forecast:
    """A loss with its interval, and whether the point lies among the fitted runs."""

    loss: float
    low: float | None
    """None for a law that nothing calibrated."""
    high: float | None
    level: float
    within_fitted_range: bool | None
    """None for a law whose runs are not known."""


@dataclass(frozen=True)
class Optimum:
    """The split of a compute budget between parameters and tokens that a law holds for best."""

    parameters: float
    tokens: float
    loss: float

    @property
    def ratio(self) -> float:
        """Tokens per parameter."""
        return self.tokens / self.parameters


class LossLaw(_Record):
    """A law that can predict: five numbers, what N counts, where they come from, and how far they can be trusted."""

    name: str
    E: float = Field(ge=0)
    A: float = Field(ge=0)
    B: float = Field(ge=0)
    alpha: float
    beta: float
    counting: Counting
    unit: str = "nats per token"
    """Of the loss."""
    standing: Standing
    source: str
    """Citation, or what it was fitted to."""
    fitted: FittedRange | None = None
    calibration: Calibration | None = None

    @overload
    def predict(self, parameters: float, tokens: float) -> float: ...
    @overload
    def predict(self, parameters: Array, tokens: Array | float) -> Array: ...
    @overload
    def predict(self, parameters: Array | float, tokens: Array) -> Array: ...
    def predict(self, parameters: Array | float, tokens: Array | float) -> Array | float:
        """Loss of a model of N `parameters` after D `tokens`; arrays broadcast. What overflows is infinite."""
        with np.errstate(over="ignore"):
            loss = self.E + self.A * np.power(parameters, -self.alpha) + self.B * np.power(tokens, -self.beta)
        return loss if isinstance(loss, np.ndarray) else float(loss)

    def interval(self, parameters: float, tokens: float) -> tuple[float, float] | None:
        """The 90 % interval of the loss of a run there; None if nothing calibrated the law."""
        if self.calibration is None or self.fitted is None:
            return None
        half = float(self.calibration.half_width_at(self.fitted.distance(parameters, tokens)))
        loss = self.predict(parameters, tokens)
        return loss * math.exp(-half), loss * math.exp(half)

    def forecast(self, parameters: float, tokens: float) -> Forecast:
        """Loss, interval, and whether the point lies in the fitted range."""
        low, high = self.interval(parameters, tokens) or (None, None)
        within = None if self.fitted is None else self.fitted.holds(parameters, tokens)
        level = self.calibration.level if self.calibration else 0.9
        return Forecast(self.predict(parameters, tokens), low, high, level, within)

    def optimum(self, compute: float) -> Optimum:
        """The best N and D for `compute` = 6 N D FLOPs (arXiv 2203.15556, equation 4).

        KinfolkError for a law in which size or data does not matter: it has no interior optimum.
        """
        ratio = self._balance()
        total = self.alpha + self.beta
        parameters = ratio * (compute / 6) ** (self.beta / total)
        tokens = (compute / 6) ** (self.alpha / total) / ratio
        return Optimum(parameters, tokens, self.predict(parameters, tokens))

    def compute_for(self, loss: float) -> float:
        """FLOPs, optimally split, that reach `loss`; KinfolkError below E, which no compute reaches."""
        if loss <= self.E:
            raise KinfolkError(
                f"a loss of {loss:.6g} is not above the law's irreducible loss, {self.E:.6g}",
                where=f"law {self.name}",
                fix="ask for a higher loss",
            )
        # At the optimum both terms fall as C^-gamma.
        gamma = self.alpha * self.beta / (self.alpha + self.beta)
        return float(((loss - self.E) / (self.optimum(1.0).loss - self.E)) ** (-1 / gamma))

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens after which a model of N `parameters` reaches `loss`; KinfolkError if it never does."""
        rest = loss - self.E - self.A * parameters**-self.alpha
        if rest <= 0 or self.B <= 0:
            raise KinfolkError(
                f"a model of {parameters:.4g} parameters does not reach a loss of {loss:.6g} on any number of tokens",
                where=f"law {self.name}",
                fix="ask for a larger model or a higher loss",
            )
        return float((rest / self.B) ** (-1 / self.beta))

    def effective_compute(self, parameters: float, tokens: float) -> float:
        """The share of 6 N D that, optimally split, would reach the same loss: 1 at the optimum, less away from it.

        It prices over-training (and under-training). A law in compute alone says 1 everywhere.
        """
        return self.compute_for(self.predict(parameters, tokens)) / (6.0 * parameters * tokens)

    def optimum_parameters_for(self, tokens: float) -> float:
        """Parameters of the compute-optimal model on `tokens` tokens."""
        ratio = self._balance()
        return float((tokens * ratio) ** (self.beta / self.alpha) * ratio)

    def _balance(self) -> float:
        """G of the optimum N = G (C / 6)^(beta / (alpha + beta))."""
        if min(self.A, self.B, self.alpha, self.beta) <= 0:
            raise KinfolkError(
                "the law has no optimum: a term of it vanished", where=f"law {self.name}", fix="fit it to more runs"
            )
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)))


def save_law(path: Path, law: LossLaw) -> None:
    """Write a law as JSON, atomically."""
    files.write_json(path, law.model_dump(mode="json"))


def load_law(path: Path) -> LossLaw:
    """The law in a file that `save_law` or `kinfolk laws fit --json` wrote; KinfolkError for anything else."""
    return read_law(path, LossLaw, "give a file that `kinfolk laws fit --output` has written")
