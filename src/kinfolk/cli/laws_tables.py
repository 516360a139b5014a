"""What `kinfolk laws` shows to people."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinfolk.cli.numbers import short
from kinfolk.cli.tables import print_table
from kinfolk.laws.compute import ComputeLaw
from kinfolk.laws.fitted import NAMES, LawFit
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.shown import rounded, shown_parameter


def print_fit(fitted: LawFit) -> None:
    """The law, its parameters, the compute-only law beside it, what the runs cannot tell, and the next run."""
    law = fitted.law
    print(f"L(N, D) = E + A N^-alpha + B D^-beta, {len(fitted.table)} runs")
    print_table(None, ("", "value", "90 % interval"), [[name, *shown_parameter(fitted, name)] for name in NAMES])
    size = np.expm1(fitted.residuals)
    odd = int(np.argmax(np.abs(size)))
    print(f"N counts {_counted(law)}; loss in {law.unit}; objective (Huber 1e-3 of ln loss) {fitted.objective:.6g}")
    print(
        f"residuals: median size {np.median(np.abs(size)):.2%}, largest {size[odd]:+.2%} at {fitted.table.names[odd]}"
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
        print(f"  linear in ln(N D / 1e21): {_linear(both.unified)}")
    run = fitted.next_run
    print(
        f"next run: {short(run.parameters)} parameters on {short(run.tokens)} tokens would leave "
        f"{run.variance_ratio:.0%} of the forecast's variance at {run.target_compute:.2g} FLOPs"
    )
    for finding in fitted.findings:
        print(f"note: {finding}")


def _linear(law: ComputeLaw) -> str:
    """Slope and intercepts of the unified law, with their intervals where there are any."""
    slope = law.slope_interval
    parts = [f"slope {law.slope:.4f}" + (f" (95 %: {slope[0]:.4f} to {slope[1]:.4f})" if slope else "")]
    for name, value in law.intercepts.items():
        between = law.intercept_intervals and law.intercept_intervals[name]
        label = "intercept" if name == "all" else f"intercept of {name}"
        parts.append(f"{label} {value:.4f}" + (f" ({between[0]:.4f} to {between[1]:.4f})" if between else ""))
    return ", ".join(parts)


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
    rows = [
        (f"parameters ({document['counting']})", short(document["parameters"])),
        ("tokens", short(document["tokens"])),
    ]
    if document["tokens_worth"] != document["tokens"]:
        rows.append(("worth, as unique tokens", short(document["tokens_worth"])))
    rows += [
        ("tokens per parameter", rounded(document["ratio"], 4)),
        ("6ND FLOPs", f"{document['compute']:.4g}"),
        (f"loss, {document['unit']}", f"{document['loss']:.4f}"),
        ("90 % interval", "-" if low is None else f"{low:.4f} to {high:.4f}"),
        ("held in back-tests", _held(document)),
    ]
    inside = document["within_fitted_range"]
    rows.append(("among the fitted runs", "unknown" if inside is None else "yes" if inside else "no"))
    if document["optimum"]:
        best = document["optimum"]
        split = f"{short(best['parameters'])} on {short(best['tokens'])} ({best['ratio']:.3g} each): {best['loss']:.4f}"
        rows.append(("best split of the same FLOPs", split))
        rows.append(("this split is worth", f"{document['effective_compute']:.1%} of its FLOPs"))
    bits = document["compute_law"]["bits_per_character"]
    rows.append(("compute-only law says", f"100 % of its FLOPs; {bits:.3f} bits per character"))
    print_table(None, ("", "forecast"), rows)
    for caution in document["cautions"]:
        print(f"note: {caution}")


def _held(document: dict[str, Any]) -> str:
    if document["coverage"] is None:
        return "not measured"
    return f"{document['coverage']:.0%} of {document['coverage_runs']} runs"


def print_backtest(document: dict[str, Any]) -> None:
    """Every split, and all of them together."""
    headings = ["fitted below", "runs", "hidden", "reach", "mean error", "worst", "90 % interval held", "mean width"]
    bootstrapped = document["bootstrap_coverage"] is not None
    rows = [
        [
            f"{split['cut']:.3g}",
            str(split["fitted"]),
            str(split["hidden"]),
            f"{split['reach']:.3g}x",
            f"{split['mean_error']:.2%}",
            f"{split['worst_error']:.2%}",
            f"{split['coverage']:.0%}" + ("" if split["basis"] == "rolling hold-out" else " (assumed width)"),
            f"{split['mean_width']:.3f}",
            *([f"{split['bootstrap_covered'] / split['hidden']:.0%}"] if bootstrapped else []),
        ]
        for split in document["splits"]
    ]
    headings += ["bootstrap held"] if bootstrapped else []
    print_table(f"back-test: {document['source']}", headings, rows, left=())
    print(
        f"together: {document['coverage']:.0%} of {document['hidden']} hidden runs inside the 90 % interval, "
        f"mean width {document['mean_width']:.3f} {document['unit']}, mean error {document['mean_error']:.2%}"
    )
    for finding in document["findings"]:
        print(f"note: {finding}")


def print_published(laws: Sequence[LossLaw]) -> None:
    """The library of published fits."""
    rows = [[law.name, *(f"{getattr(law, name):.6g}" for name in NAMES), law.counting] for law in laws]
    print_table("published fits of L(N, D) = E + A N^-alpha + B D^-beta", ("name", *NAMES, "N counts"), rows)
    for law in laws:
        print(f"{law.name}: {law.source}")
