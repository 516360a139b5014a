"""What `kinfolk laws` shows to people."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from kinfolk.cli.numbers import short
from kinfolk.laws.fitted import NAMES, LawFit
from kinfolk.laws.loss import LossLaw

WIDTH = 140


def with_error(value: float, error: float | None) -> str:
    """A value with as many digits as its standard error lets it have: two of the error's.

    >>> with_error(477.83, 117.0), with_error(0.34731, 0.0146), with_error(1.8, None)
    ('480 ± 120', '0.347 ± 0.015', '1.8')
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.2g}"
    digits = 1 - math.floor(math.log10(error))
    places = max(digits, 0)
    return f"{round(value, digits):.{places}f} ± {round(error, digits):.{places}f}"


def print_fit(fitted: LawFit) -> None:
    """The law, its parameters, the compute-only law beside it, what the runs cannot tell, and the next run."""
    law, console = fitted.law, _console()
    print(f"L(N, D) = E + A N^-alpha + B D^-beta, {len(fitted.table)} runs")
    table = Table()
    for heading in ("", "value", "90 % interval"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in NAMES:
        table.add_row(name, *_parameter(fitted, name))
    console.print(table)
    size, odd = fitted.residuals, max(range(len(fitted.residuals)), key=lambda index: abs(fitted.residuals[index]))
    print(f"N counts {_counted(law)}; loss in {law.unit}; objective (Huber 1e-3 of ln loss) {fitted.objective:.6g}")
    print(
        f"residuals: median size {sorted(abs(size))[len(size) // 2]:.2%}, "
        f"largest {size[odd]:+.2%} at {fitted.table.names[odd]}"
    )
    _print_interval(fitted)
    if fitted.compute_only:
        both = fitted.compute_only
        print(
            f"compute-only law: error {both.rmse:.4f}, loss law {both.loss_law_rmse:.4f} (root mean square, {law.unit})"
            + (
                f"; at 10 to 60 tokens per parameter {both.middle_rmse:.4f} and {both.middle_loss_law_rmse:.4f}"
                if both.middle_rmse is not None
                else ""
            )
        )
        unified = both.unified
        offsets = ", ".join(
            f"{value:.4f} {'' if name == 'all' else name}".strip() for name, value in unified.intercepts.items()
        )
        print(f"  linear in ln(N D / 1e21): slope {unified.slope:.4f}, intercept {offsets}")
    run = fitted.next_run
    print(
        f"next run: {short(run.parameters)} parameters on {short(run.tokens)} tokens would leave "
        f"{run.variance_ratio:.0%} of the forecast's variance at {run.target_compute:.2g} FLOPs"
    )
    for finding in fitted.findings:
        print(f"note: {finding}")


def _parameter(fitted: LawFit, name: str) -> tuple[str, str]:
    value = getattr(fitted.law, name)
    if fitted.borrowed_from and name in ("alpha", "beta"):
        return f"{value:.3g}", f"borrowed from {fitted.borrowed_from}"
    if not fitted.identification.identified or fitted.resampled is None:
        return f"{value:.2g}" if value > 1e-6 else "0", "not known"
    low, high = fitted.resampled.interval(name)
    return with_error(value, fitted.resampled.standard_error(name)), f"{low:.3g} to {high:.3g}"


def _counted(law: LossLaw) -> str:
    return "all parameters" if law.counting == "total" else "parameters without embeddings"


def _print_interval(fitted: LawFit) -> None:
    calibration = fitted.law.calibration
    assert calibration is not None
    share = math.expm1(calibration.half_width)
    reach = math.exp(calibration.reach)
    basis = "by hiding the larger runs" if calibration.basis == "rolling hold-out" else "an assumption"
    print(
        f"90 % interval of a forecast: ±{share:.1%} up to {reach:.3g} times the largest compute, wider beyond ({basis})"
    )
    if calibration.coverage is not None:
        print(f"  back-test: such intervals held {calibration.coverage:.0%} of {calibration.coverage_runs} hidden runs")


def print_prediction(document: dict[str, Any]) -> None:
    """A forecast with what belongs to it."""
    low, high = document["low"], document["high"]
    print(f"{document['law']}: {document['source']}")
    table = Table(show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row(f"parameters ({document['counting']})", short(document["parameters"]))
    table.add_row("tokens", short(document["tokens"]))
    if document["tokens_worth"] != document["tokens"]:
        table.add_row("worth, as unique tokens", short(document["tokens_worth"]))
    table.add_row("tokens per parameter", f"{document['ratio']:.4g}")
    table.add_row("6ND FLOPs", f"{document['compute']:.4g}")
    table.add_row(f"loss, {document['unit']}", f"{document['loss']:.4f}")
    table.add_row("90 % interval", "-" if low is None else f"{low:.4f} to {high:.4f}")
    table.add_row("held in back-tests", _held(document))
    inside = document["within_fitted_range"]
    table.add_row("among the fitted runs", "unknown" if inside is None else "yes" if inside else "no")
    if document["optimum"]:
        best = document["optimum"]
        split = f"{short(best['parameters'])} on {short(best['tokens'])} ({best['ratio']:.3g} each): {best['loss']:.4f}"
        table.add_row("best split of the same FLOPs", split)
        table.add_row("this split is worth", f"{document['effective_compute']:.1%} of its FLOPs")
    bits = document["compute_law"]["bits_per_character"]
    table.add_row("compute-only law says", f"100 % of its FLOPs; {bits:.3f} bits per character")
    _console().print(table)
    for caution in document["cautions"]:
        print(f"note: {caution}")


def _held(document: dict[str, Any]) -> str:
    if document["coverage"] is None:
        return "not measured"
    return f"{document['coverage']:.0%} of {document['coverage_runs']} runs"


def print_backtest(document: dict[str, Any]) -> None:
    """Every split, and all of them together."""
    table = Table(title=f"back-test: {document['source']}", title_justify="left")
    for heading in (
        "fitted below",
        "runs",
        "hidden",
        "reach",
        "mean error",
        "worst",
        "90 % interval held",
        "mean width",
    ):
        table.add_column(heading, justify="right")
    bootstrapped = document["bootstrap_coverage"] is not None
    if bootstrapped:
        table.add_column("bootstrap held", justify="right")
    for split in document["splits"]:
        table.add_row(
            f"{split['cut']:.3g}",
            str(split["fitted"]),
            str(split["hidden"]),
            f"{split['reach']:.3g}x",
            f"{split['mean_error']:.2%}",
            f"{split['worst_error']:.2%}",
            f"{split['coverage']:.0%}" + ("" if split["basis"] == "rolling hold-out" else " (assumed width)"),
            f"{split['mean_width']:.3f}",
            *([f"{split['bootstrap_covered'] / split['hidden']:.0%}"] if bootstrapped else []),
        )
    _console().print(table)
    print(
        f"together: {document['coverage']:.0%} of {document['hidden']} hidden runs inside the 90 % interval, "
        f"mean width {document['mean_width']:.3f} {document['unit']}, mean error {document['mean_error']:.2%}"
    )
    for finding in document["findings"]:
        print(f"note: {finding}")


def print_published(laws: Sequence[LossLaw]) -> None:
    """The library of published fits."""
    table = Table(title="published fits of L(N, D) = E + A N^-alpha + B D^-beta", title_justify="left")
    table.add_column("name")
    for name in NAMES:
        table.add_column(name, justify="right")
    table.add_column("N counts")
    table.add_column("source", overflow="fold")
    for law in laws:
        table.add_row(law.name, *(f"{getattr(law, name):.6g}" for name in NAMES), law.counting, law.source)
    _console().print(table)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else WIDTH)
