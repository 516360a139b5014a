"""Back-tests: hide the larger runs, forecast them from the smaller ones, and see what the forecast was worth."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.borrowed import ASSUMED
from kinfolk.laws.intervals import FREE, LEVEL, Method, Progress, bootstrap, calibrate, fitted_range
from kinfolk.laws.objectives import Array, Mask

QUANTILES = (0.5, 0.6, 0.7, 0.8)
"""Cuts of a back-test for which none is asked."""


@dataclass(frozen=True)
class Split:
    """One cut: the runs below it were fitted, those above it forecast."""

    cut: float
    """6 N D in FLOPs."""
    fitted: int
    hidden: int
    reach: float
    """Largest hidden compute over largest fitted compute."""
    mean_error: float
    """Mean of |forecast / loss - 1|."""
    worst_error: float
    covered: int
    """Hidden runs inside their 90 % interval."""
    mean_width: float
    """Of the intervals, in the unit of the loss."""
    mean_relative_width: float
    """Of the intervals, as a share of the forecast."""
    basis: str
    bootstrap_covered: int | None = None
    """Hidden runs inside the nominal 90 % bootstrap interval, for comparison."""

    @property
    def coverage(self) -> float:
        """Share of hidden runs inside their interval."""
        return self.covered / self.hidden


def backtest(
    parameters: Array,
    tokens: Array,
    loss: Array,
    cuts: Sequence[float] | None = None,
    *,
    method: Method = FREE,
    resamples: int = 0,
    progress: Progress | None = None,
) -> list[Split]:
    """Back-test runs of shape (run,) at each cut of compute, by default at several quantiles.

    The intervals come from the runs below the cut alone. With `resamples` the bootstrap is back-tested beside them.
    KinfolkError for a cut that leaves too few runs below for the method (ten for the free fit) or none above; default
    cuts of that kind are left out.
    """
    compute = 6 * parameters * tokens
    chosen = [float(np.quantile(compute, quantile)) for quantile in QUANTILES] if cuts is None else list(cuts)
    splits = []
    for index, cut in enumerate(chosen):
        below = compute <= cut
        if below.sum() >= method.fewest and not below.all():
            splits.append(_split(parameters, tokens, loss, below, cut, method, resamples))
        elif cuts is not None:
            raise KinfolkError(
                f"{below.sum()} runs are below {cut:.4g} FLOPs and {(~below).sum()} above",
                where="--below",
                fix=f"choose a cut with {method.fewest} or more runs below and one or more above",
            )
        if progress:
            progress(index + 1, len(chosen))
    return splits


def _split(
    parameters: Array, tokens: Array, loss: Array, below: Mask, cut: float, method: Method, resamples: int
) -> Split:
    above, compute = ~below, 6 * parameters * tokens
    law = method.law(parameters[below], tokens[below], loss[below])
    calibration = calibrate(parameters[below], tokens[below], loss[below], method) or ASSUMED
    forecast = law.predict(parameters[above], tokens[above])
    distance = fitted_range(parameters[below], tokens[below]).distance(parameters[above], tokens[above])
    half = calibration.half_width_at(distance)
    errors = np.log(loss[above] / forecast)
    bootstrapped = None
    if resamples:
        drawn = bootstrap(parameters[below], tokens[below], loss[below], law, resamples=resamples)
        low, high = np.quantile(drawn.predictions(parameters[above], tokens[above]), [0.05, 0.95], axis=0)
        bootstrapped = int(((loss[above] >= low) & (loss[above] <= high)).sum())
    return Split(
        cut=cut,
        fitted=int(below.sum()),
        hidden=int(above.sum()),
        reach=float(compute[above].max() / compute[below].max()),
        mean_error=float(np.abs(forecast / loss[above] - 1).mean()),
        worst_error=float(np.abs(forecast / loss[above] - 1).max()),
        covered=int((np.abs(errors) <= half).sum()),
        mean_width=float((forecast * (np.exp(half) - np.exp(-half))).mean()),
        mean_relative_width=float((np.exp(half) - np.exp(-half)).mean()),
        basis=calibration.basis,
        bootstrap_covered=bootstrapped,
    )


def backtest_document(splits: Sequence[Split]) -> dict[str, Any]:
    """A back-test as JSON: every split, and the coverage over all hidden runs together.

    KinfolkError if there is no split: then there were too few runs to hide any.
    """
    if not splits:
        raise KinfolkError(
            "there are too few runs for a back-test", fix=f"give {2 * FREE.fewest} or more, of different compute"
        )
    hidden = sum(split.hidden for split in splits)
    bootstrapped = [split.bootstrap_covered for split in splits if split.bootstrap_covered is not None]
    return {
        "level": LEVEL,
        "splits": [{**asdict(split), "coverage": split.coverage} for split in splits],
        "hidden": hidden,
        "coverage": sum(split.covered for split in splits) / hidden,
        "bootstrap_coverage": sum(bootstrapped) / hidden if bootstrapped else None,
        "mean_error": sum(split.mean_error * split.hidden for split in splits) / hidden,
        "mean_width": sum(split.mean_width * split.hidden for split in splits) / hidden,
    }
