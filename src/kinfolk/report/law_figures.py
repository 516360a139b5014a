"""The plots of a fitted law, as plotly figures in plain JSON."""

import math
from typing import Any

import numpy as np

from kinfolk.laws.fitted import LawFit
from kinfolk.report import numbers
from kinfolk.report.figures import COLOURS, Plot
from kinfolk.report.layout import as_shown, decades, layout

COMPUTE = "training FLOPs, 6ND"


def loss_against_compute(fitted: LawFit) -> Plot:
    """Every run, coloured by its size, and the law at the best split with its interval."""
    table, law = fitted.table, fitted.law
    traces: list[dict[str, Any]] = []
    if _has_optimum(fitted):
        reach = np.geomspace(table.compute.min(), table.compute.max() * 100, 60)
        best = [law.optimum(float(compute)) for compute in reach]
        bands = [law.interval(point.parameters, point.tokens) for point in best]
        lows, highs = zip(*(band for band in bands if band), strict=True)
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        traces += [
            {**_line(reach, lows, "low"), **edge, "showlegend": False},
            {**_line(reach, highs, "90 % interval"), **edge, "fill": "tonexty", "fillcolor": "--grid"},
            {**_line(reach, [point.loss for point in best], "best split"), "line": {"color": "--ink", "width": 2}},
        ]
    for number, (low, high) in enumerate(_size_bins(fitted)):
        inside = (table.parameters >= low * (1 - 1e-9)) & (table.parameters <= high * (1 + 1e-9))
        rows = np.flatnonzero(inside)
        label = str(numbers.count(low)) if low == high else f"{numbers.count(low)} to {numbers.count(high)}"
        traces.append(
            {
                **_points(fitted, rows, [float(value) for value in table.loss[rows]]),
                "name": label,
                "marker": {"color": f"--series-{number % COLOURS + 1}", "size": 7},
                "hovertemplate": "%{customdata}<br>loss %{y:.4f}, %{x:.4s} FLOP<extra></extra>",
            }
        )
    reached = [float(value) for trace in traces for value in trace["x"]]
    summary = (
        f"{len(table)} runs from {numbers.flops(float(table.compute.min()))} to "
        f"{numbers.flops(float(table.compute.max()))}, losses from {table.loss.max():.3f} down to "
        f"{table.loss.min():.3f}."
    )
    figure = {"data": traces, "layout": layout(COMPUTE, f"loss, {table.unit}", decades(reached))}
    return Plot("loss", "Loss against training FLOPs", {"6ND": figure}, summary, empty=False)


def residuals_against_compute(fitted: LawFit) -> Plot:
    """How far each run is from the law, in percent of the prediction."""
    table = fitted.table
    rows = np.arange(len(table))
    percent = [100 * math.expm1(value) for value in fitted.residuals.tolist()]
    trace = {
        **_points(fitted, rows, percent),
        "name": "run",
        "showlegend": False,
        "marker": {"color": "--series-1", "size": 7},
        "hovertemplate": "%{customdata}<br>%{y:+.2f} %<extra></extra>",
    }
    figure = {"data": [trace], "layout": layout(COMPUTE, "loss above the law, %", decades(table.compute.tolist()))}
    summary = (
        f"Residuals lie between {min(percent):+.2f} and {max(percent):+.2f} percent, half of them within "
        f"{float(np.median(np.abs(percent))):.2f}."
    )
    return Plot("residuals", "Residuals", {"6ND": figure}, summary, empty=False)


def price_of_the_split(fitted: LawFit) -> Plot:
    """The share of the compute that a split is worth, by the law in N and D and by the compute-only law."""
    title, key = "What a split of the compute is worth", "split"
    if not _has_optimum(fitted):
        return Plot(key, title, {}, "The law has no optimum.", empty=True)
    law, compute = fitted.law, float(fitted.table.compute.max())
    ratios = np.geomspace(1, 3000, 60)
    sizes = np.sqrt(compute / (6 * ratios))
    worth = [100 * law.effective_compute(float(n), float(n * m)) for n, m in zip(sizes, ratios, strict=True)]
    traces = [
        {**_line(ratios, worth, "law in N and D"), "line": {"color": "--series-1", "width": 2}},
        {
            **_line(ratios, [100.0] * 60, "compute-only law"),
            "line": {"color": "--series-2", "width": 2, "dash": "dash"},
        },
    ]
    best = law.optimum(compute)
    summary = (
        f"At {numbers.flops(compute)} the law in N and D holds {best.ratio:.3g} tokens per parameter for best; at "
        f"{ratios[-1]:.3g} a budget is worth {worth[-1]:.0f} % of itself. The compute-only law says 100 % everywhere."
    )
    figure = {
        "data": traces,
        "layout": layout("tokens per parameter", "worth, % of the FLOPs", decades(ratios.tolist()), exponents="B"),
    }
    return Plot(key, title, {"split": figure}, summary, empty=False)


def _has_optimum(fitted: LawFit) -> bool:
    law = fitted.law
    return min(law.A, law.B, law.alpha, law.beta) > 0


def _size_bins(fitted: LawFit) -> list[tuple[float, float]]:
    """The smallest and the largest size of each group of runs with a colour of its own."""
    distinct = np.unique(fitted.table.parameters)
    return [(float(part[0]), float(part[-1])) for part in np.array_split(distinct, min(COLOURS, len(distinct)))]


def _points(fitted: LawFit, rows: Any, values: list[float]) -> dict[str, Any]:
    table = fitted.table
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [float(f"{value:.6g}") for value in table.compute[rows]],
        "y": [float(f"{value:.6g}") for value in values],
        "customdata": [
            f"{as_shown(table.names[row])}: {numbers.count(table.parameters[row])} on "
            f"{numbers.count(table.tokens[row])}"
            for row in rows
        ],
    }


def _line(x: Any, y: Any, name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [float(f"{value:.6g}") for value in x],
        "y": [float(f"{value:.6g}") for value in y],
        "hovertemplate": f"{name}<br>%{{y:.4f}} at %{{x:.4s}}<extra></extra>",
    }
