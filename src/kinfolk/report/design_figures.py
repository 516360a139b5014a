"""The plots of a designed family, as plotly figures in plain JSON."""

from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.choose import ChosenLaw
from kinfolk.plan.design import Design, at_budget, design
from kinfolk.plan.forecast import StageForecast, forecast_members
from kinfolk.report import numbers
from kinfolk.report.figures import COLOURS, Plot
from kinfolk.report.layout import as_shown, decades, layout

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Budgets of the frontier, as multiples of the wish's."""


def member_forecasts(made: Design, chosen: ChosenLaw) -> Plot:
    """Every member's forecast with its interval, against its size."""
    found = [member for member in _forecasts(made, chosen) if member.loss is not None]
    key, title = "members", "Forecast of every member"
    if not found:
        return Plot(key, title, {}, "The law cannot forecast members of these sizes.", empty=True)
    sizes, losses = [member.parameters or 0.0 for member in found], [member.loss for member in found]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers+text",
        "text": [as_shown(member.stage) for member in found],
        "textposition": "top right",
        "cliponaxis": False,
        "name": "forecast",
        "showlegend": False,
        "x": sizes,
        "y": losses,
        "customdata": [as_shown(member.stage) for member in found],
        "marker": {"color": "--series-1", "size": 8},
        "line": {"color": "--series-1", "width": 1},
        "hovertemplate": "%{customdata}<br>loss %{y:.3f}<extra></extra>",
    }
    if all(member.low is not None for member in found):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [(member.high or 0) - (member.loss or 0) for member in found],
            "arrayminus": [(member.loss or 0) - (member.low or 0) for member in found],
        }
    figure = {
        "data": [trace],
        "layout": layout("parameters", f"loss, {chosen.law.unit}", decades(sizes), exponents="B"),
    }
    texts = [f"{member.member} {member.loss:.3f}" for member in found]
    return Plot(key, title, {"members": figure}, f"Forecast losses: {', '.join(texts)}.", empty=False)


def iso_flop(made: Design, chosen: ChosenLaw) -> Plot:
    """Loss against size at the compute that each member has alone: where it sits on the curve of its budget."""
    law = chosen.law
    found = [member for member in _forecasts(made, chosen) if member.loss is not None]
    key, title = "isoflop", "Sizes at equal compute"
    if not found:
        return Plot(key, title, {}, "The law cannot forecast members of these sizes.", empty=True)
    traces: list[dict[str, Any]] = []
    for number, member in enumerate(found):
        size, tokens = member.parameters or 0.0, member.tokens or 0.0
        colour, label = f"--series-{number % COLOURS + 1}", f"{member.member}, {numbers.flops(6 * size * tokens)}"
        reach = size * np.geomspace(0.05, 20, 41)
        traces.append(
            {
                **_line(reach, law.predict(reach, size * tokens / reach), label),
                "line": {"color": colour, "width": 2},
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "showlegend": False,
                "x": [size],
                "y": [member.loss],
                "marker": {"color": colour, "size": 10},
                "hovertemplate": f"{as_shown(member.stage)}: loss %{{y:.3f}}<extra></extra>",
            }
        )
    summary = "Each curve is what the law says of one compute spent on other sizes; the point is the member."
    reached = [float(value) for trace in traces for value in trace["x"]]
    figure = {"data": traces, "layout": layout("parameters", f"loss, {law.unit}", decades(reached), exponents="B")}
    return Plot(key, title, {"isoflop": figure}, summary, empty=False)


def frontier(made: Design, chosen: ChosenLaw) -> Plot:
    """What a smaller or larger budget would buy with the same wishes."""
    points: list[tuple[float, list[StageForecast]]] = []
    for factor in FACTORS:
        try:
            other = made if factor == 1 else design(at_budget(made.wish, factor), chosen)
        except KinfolkError:
            continue  # too small a budget for these wishes
        members = _forecasts(other, chosen)
        if all(member.loss is not None for member in members):
            points.append((made.wish.budget.flops * factor, members))
    key, title = "frontier", "What other budgets would buy"
    if not points:
        return Plot(key, title, {}, "The law cannot forecast members of these sizes.", empty=True)
    budgets = [flops for flops, _ in points]
    traces = []
    for index in range(len(points[0][1])):
        place = {0: "smallest", len(points[0][1]) - 1: "largest"}.get(index, f"member {index + 1}")
        losses = [members[index].loss for _, members in points]
        traces.append(
            {
                **_line(budgets, losses, place),
                "mode": "lines+markers",
                "line": {"color": f"--series-{index % COLOURS + 1}", "width": 2},
                "customdata": [as_shown(members[index].stage) for _, members in points],
                "hovertemplate": "%{customdata}<br>loss %{y:.3f} at %{x:.4s}<extra></extra>",
            }
        )
    last = [f"{numbers.flops(flops)}: {members[-1].loss:.3f}" for flops, members in points]
    summary = f"Forecast loss of the largest member: {'; '.join(last)}."
    counted = {"six_nd": "6ND", "matmul": "matmul"}[made.wish.budget.counting]
    figure = {
        "data": traces,
        "layout": layout(f"budget, FLOPs ({counted})", f"loss, {chosen.law.unit}", decades(budgets)),
    }
    return Plot(key, title, {"frontier": figure}, summary, empty=False)


def _forecasts(made: Design, chosen: ChosenLaw) -> list[StageForecast]:
    return forecast_members(made.family, made.plan, chosen, made.wish.unique_tokens)


def _line(x: Any, y: Any, name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": as_shown(name),
        "x": [float(f"{value:.6g}") for value in x],
        "y": [float(f"{value:.6g}") for value in y],
        "hovertemplate": f"{as_shown(name)}<br>%{{y:.3f}} at %{{x:.4s}}<extra></extra>",
    }
