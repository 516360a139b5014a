"""From a runs table to everything that is said about it: the law, how well the runs hold it, how far it forecasts."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kinfolk.laws.backtest import Split, backtest
from kinfolk.laws.borrowed import ASSUMED, FEWEST_BORROWED, FEWEST_RUNS, borrow
from kinfolk.laws.compute import ComputeLaw, SaturatingLaw, fit_compute_law, fit_saturating
from kinfolk.laws.fitting import FitResult, Parameters, fit, random_starts
from kinfolk.laws.identify import Identification, NextRun, identify, next_run
from kinfolk.laws.intervals import FREE, Bootstrap, Method, bootstrap, calibrate, fitted_range
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.objectives import HUBER_DELTA, Array, Mask, objective_value
from kinfolk.laws.published import published_law
from kinfolk.laws.runs import RunTable

NAMES = ("E", "A", "B", "alpha", "beta")
MIDDLE = (10.0, 60.0)
"""Tokens per parameter between which the unified compute law is said to hold."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many parts are done."""


@dataclass(frozen=True)
class ComputeOnly:
    """The compute-only law beside the loss law, on the same runs: root mean square errors of the loss."""

    law: SaturatingLaw
    unified: ComputeLaw
    """The same linear in ln compute, as arXiv 2404.19484 has it, with an intercept per family."""
    rmse: float
    loss_law_rmse: float
    middle_rmse: float | None
    """The same two on the runs at 10 to 60 tokens per parameter alone; None if too few."""
    middle_loss_law_rmse: float | None


@dataclass(frozen=True)
class LawFit:
    """A law that can forecast, and what the runs say of it."""

    table: RunTable
    law: LossLaw
    free: FitResult | None
    """The fit of all five numbers; None under five different runs."""
    fit_seconds: float | None
    """Processor seconds of `free`."""
    best_random: float | None
    """The best objective of 20 random starts: the certificate of `free`."""
    identification: Identification
    borrowed_from: str | None
    """The law whose exponents were borrowed, if they were."""
    objective: float
    """Of `law` on the runs: sum of Huber losses of ln residuals at 1e-3."""
    residuals: Array
    """ln(loss / prediction) of each run."""
    resampled: Bootstrap | None
    next_run: NextRun
    splits: tuple[Split, ...]
    compute_only: ComputeOnly | None
    findings: tuple[str, ...]


def fit_runs(
    table: RunTable, *, borrow_from: str = "besiroglu", resamples: int = 200, progress: Progress | None = None
) -> LawFit:
    """Fit a law to a table of runs, calibrate it, and find what the runs cannot tell.

    With fewer than five different runs, or where they cannot tell the exponents, the shape of the published law
    `borrow_from` is borrowed. KinfolkError if that law counts other parameters than the table.
    """
    n, d, loss = table.parameters, table.tokens, table.loss
    lender = published_law(borrow_from)
    began = time.process_time()
    free = fit(n, d, loss) if _distinct(table) >= FEWEST_RUNS else None
    seconds = time.process_time() - began
    found = _identification(table, free)
    findings = [*table.findings, *found.findings]
    if table.families is not None and len(set(table.families.tolist())) > 1:
        findings.append("families differ by a constant: a law in N and D holds for one of them (--where picks one)")
    borrowed = None if free and found.forecasts else borrow_from
    if borrowed or free is None:
        method = Method(partial(borrow, lender), FEWEST_BORROWED)
        numbers = method.law(n, d, loss)
        findings.append(
            f"alpha, beta and A/B are borrowed from {borrow_from} ({lender.source}); only E and one scale are fitted"
        )
        if table.counting != lender.counting:
            findings.append(f"{borrow_from} counts {lender.counting} parameters, these runs {table.counting} ones")
    else:
        method, numbers = FREE, free.parameters
    calibration = calibrate(n, d, loss, method)
    splits = tuple(backtest(n, d, loss, method=method)) if calibration else ()
    if calibration is None:
        calibration = ASSUMED
        findings.append("too few runs to calibrate an interval by hiding some: its width is an assumption")
    elif splits:
        hidden = sum(split.hidden for split in splits)
        share = sum(split.covered for split in splits) / hidden
        calibration = calibration.model_copy(update={"coverage": share, "coverage_runs": hidden})
    law = LossLaw(
        name="fit",
        **asdict(numbers),
        counting=table.counting,
        unit=table.unit,
        standing="borrowed" if borrowed else "fitted",
        source=f"{len(table)} runs of {table.source}" + (f", exponents of {borrowed}" if borrowed else ""),
        fitted=fitted_range(n, d),
        calibration=calibration,
    )
    residuals = np.log(loss / law.predict(n, d))
    findings += _outliers(table, residuals)
    resampled = best = None
    if not borrowed and free is not None:
        best = random_starts(n, d, loss)
        report = (lambda done, of: progress("bootstrap", done, of)) if progress else None
        if resamples:
            resampled = bootstrap(n, d, loss, numbers, resamples=resamples, groups=table.groups, progress=report)
    return LawFit(
        table=table,
        law=law,
        free=free,
        fit_seconds=seconds if free else None,
        best_random=best,
        identification=found,
        borrowed_from=borrowed,
        objective=objective_value("huber_log", residuals),
        residuals=residuals,
        resampled=resampled,
        next_run=next_run(n, d, numbers if not borrowed else Parameters(**_numbers(lender))),
        splits=splits,
        compute_only=_compute_only(table, law) if free else None,
        findings=tuple(findings),
    )


def method_for(table: RunTable, borrow_from: str = "besiroglu") -> Method:
    """How `fit_runs` would get a law from these runs: freely, or with borrowed exponents."""
    enough = _distinct(table) >= FEWEST_RUNS
    free = fit(table.parameters, table.tokens, table.loss) if enough else None
    if _identification(table, free).forecasts:
        return FREE
    return Method(partial(borrow, published_law(borrow_from)), FEWEST_BORROWED)


def _distinct(table: RunTable) -> int:
    return len(set(zip(table.parameters.tolist(), table.tokens.tolist(), strict=True)))


def _identification(table: RunTable, free: FitResult | None) -> Identification:
    if free is not None:
        return identify(table.parameters, table.tokens, free)
    distinct = _distinct(table)
    count = "is only 1 point" if distinct == 1 else f"are only {distinct} points"
    few = f"there {count} of N and D; five numbers need {FEWEST_RUNS} or more"
    return Identification(None, False, False, (few,))


def _numbers(law: LossLaw) -> dict[str, float]:
    return {name: getattr(law, name) for name in NAMES}


def _outliers(table: RunTable, residuals: Array) -> list[str]:
    """Runs that the law misses by far more than the others: a slip in the table, or a run that went wrong."""
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    limit = max(8 * spread, 0.02)
    far = [
        f"{name} ({np.expm1(residual):+.1%})"
        for name, residual in sorted(zip(table.names, residuals, strict=True), key=lambda pair: -abs(pair[1]))
        if abs(residual) > limit
    ]
    if not far or len(residuals) < 2 * FEWEST_RUNS:
        return []
    runs = "1 run lies" if len(far) == 1 else f"{len(far)} runs lie"
    return [f"{runs} far from the law: {', '.join(far[:3])}{' and more' if len(far) > 3 else ''}"]


def _compute_only(table: RunTable, law: LossLaw) -> ComputeOnly:
    def errors(rows: Mask) -> tuple[SaturatingLaw, float]:
        compute_law = fit_saturating(table.compute[rows], table.loss[rows])
        own = fit(table.parameters[rows], table.tokens[rows], table.loss[rows], "squared").parameters
        misses = table.loss[rows] - own.predict(table.parameters[rows], table.tokens[rows])
        return compute_law, float(np.sqrt(np.mean(misses**2)))

    ratios = table.tokens / table.parameters
    whole, rmse = errors(np.ones(len(table), dtype=bool))
    inside = (ratios >= MIDDLE[0]) & (ratios <= MIDDLE[1])
    middle = errors(inside) if 2 * FEWEST_RUNS <= inside.sum() < len(table) else None
    return ComputeOnly(
        law=whole,
        unified=fit_compute_law(table.parameters, table.tokens, table.loss, table.families),
        rmse=whole.rmse,
        loss_law_rmse=rmse,
        middle_rmse=middle[0].rmse if middle else None,
        middle_loss_law_rmse=middle[1] if middle else None,
    )


def fit_document(fitted: LawFit) -> dict[str, Any]:
    """Everything as JSON. E, A, B, alpha and beta are null where the runs cannot tell them; `law` forecasts anyway."""
    told = fitted.identification.identified and fitted.borrowed_from is None
    resampled = fitted.resampled
    target = fitted.next_run
    return {
        **{name: getattr(fitted.law, name) if told else None for name in NAMES},
        "objective": fitted.objective,
        "rows": len(fitted.table),
        "intervals": {name: list(resampled.interval(name)) if told and resampled else None for name in NAMES},
        "level": 0.9,
        "identified": told,
        "fit_seconds": fitted.fit_seconds,
        "condition_number": fitted.identification.condition_number,
        "borrowed_from": fitted.borrowed_from,
        "counting": fitted.table.counting,
        "unit": fitted.table.unit,
        "huber_delta": HUBER_DELTA,
        "certificate": {
            "best_of_random_starts": fitted.best_random,
            "gradient_norm": fitted.free.gradient_norm if told and fitted.free else None,
        },
        "findings": list(fitted.findings),
        "residuals": [
            {"row": name, "parameters": n, "tokens": d, "loss": loss, "log_residual": residual}
            for name, n, d, loss, residual in zip(
                fitted.table.names,
                fitted.table.parameters.tolist(),
                fitted.table.tokens.tolist(),
                fitted.table.loss.tolist(),
                fitted.residuals.tolist(),
                strict=True,
            )
        ],
        "next_run": asdict(target),
        "backtest": [{**asdict(split), "coverage": split.coverage} for split in fitted.splits],
        "compute_only": asdict(fitted.compute_only) if fitted.compute_only else None,
        "law": fitted.law.model_dump(mode="json"),
    }
