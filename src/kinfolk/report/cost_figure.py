"""What the family cost beside what its members cost alone, as two bars."""

from collections.abc import Sequence
from typing import Any

from kinfolk.report import numbers
from kinfolk.report.figures import Plot, short, stage_colours
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.run import Run, StageRun

WAYS = {"6ND": "six_nd", "matmul": "matmul"}


def cost_plot(runs: Sequence[Run]) -> Plot:
    """One bar for each run, stage upon stage, and above it one for its members trained alone, by the plan."""
    shown = [run for run in runs if not run.is_baseline] or list(runs)
    said = [
        f"{run.name}: {numbers.flops(run.spent.six_nd)} spent of {numbers.flops(run.plan.total.six_nd)} planned; "
        f"each member alone {numbers.flops(run.plan.independent.six_nd)}"
        for run in shown
    ]
    views = {label: _figure(shown, way) for label, way in WAYS.items()}
    return Plot("cost", "Cost beside training each alone", views, f"{'; '.join(said)} (6ND).", empty=False)


def _figure(runs: Sequence[Run], way: str) -> dict[str, Any]:
    colours = stage_colours(runs)
    traces: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        name = f" of {run.name}" if len(runs) > 1 else ""
        for stage in run.stages:
            first = number == 0 or stage.plan.name not in {each["name"] for each in traces}
            look = _look(stage, colours[stage.plan.name], first)
            bars = [(f"this family{name}", float(getattr(stage.flops, way)))]
            if stage.plan.alone:
                bars.append((f"each alone{name}", float(getattr(stage.plan.alone, way))))
            traces.append({**look, "y": [as_shown(bar) for bar, _ in bars], "x": [short(cost) for _, cost in bars]})
    drawn = layout(f"training FLOPs, {'6ND' if way == 'six_nd' else 'matmul'}", "", x_type="linear")
    drawn["yaxis"] |= {"type": "category", "autorange": "reversed", "title": {"text": ""}}
    return {"data": traces, "layout": {**drawn, "barmode": "stack", "bargap": 0.35}}


def _look(stage: StageRun, colour: str, first: bool) -> dict[str, Any]:
    name = as_shown(stage.plan.name)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "legendgroup": name,
        "showlegend": first,
        "marker": {"color": colour, "line": {"color": "--paper", "width": 1}},
        "hovertemplate": f"<b>{name}</b><br>%{{y}}: %{{x:.4s}}FLOP<extra></extra>",
    }
