"""The plots, as plotly figures in plain JSON.

Colours are names of the page's CSS variables; the page's script puts in their values, so that a plot follows the theme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kinfolk.report import numbers
from kinfolk.report.curves import Axis, settled_range, smooth, span, thin
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.run import Points, Run, StageRun

COLOURS = 7
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square-open", "triangle-up", "diamond-open")
TITLES: dict[Axis, str] = {
    "six_nd": "training FLOPs of the lineage, 6ND",
    "matmul": "training FLOPs of the lineage, matmul",
    "tokens": "training tokens of the lineage",
}


@dataclass(frozen=True)
class Plot:
    """One figure: a view for each axis that the reader can choose, and the same in words."""

    key: str
    title: str
    views: dict[str, dict[str, Any]]
    """Plotly figures by the name of their axis; the first is drawn first."""
    summary: str
    empty: bool


def loss_plot(runs: Sequence[Run], key: Literal["flops", "tokens"]) -> Plot:
    """Loss of every stage of every run against compute or tokens."""
    axes: dict[str, Axis] = {"tokens": "tokens"} if key == "tokens" else {"6ND": "six_nd", "matmul": "matmul"}
    return Plot(
        key=key,
        title="Loss against training tokens" if key == "tokens" else "Loss against training FLOPs",
        views={label: _figure(runs, axis) for label, axis in axes.items()},
        summary=_summary(runs, "tokens" if key == "tokens" else "six_nd"),
        empty=not any(stage.train or stage.held_out for run in runs for stage in run.stages),
    )


def _figure(runs: Sequence[Run], axis: Axis) -> dict[str, Any]:
    colours = stage_colours(runs)
    traces: list[dict[str, Any]] = []
    seen: list[Points] = []
    for number, run in enumerate(runs):
        for stage in run.stages:
            if not stage.train and not stage.held_out:
                continue
            train, held_out = (_finite(points) for points in (stage.train, stage.held_out))
            seen += [smooth(train), held_out]
            label = f"{stage.plan.name}, {run.name}" if len(runs) > 1 else stage.plan.name
            style = _Style(colours[stage.plan.name], number, f"{number}/{stage.plan.name}", as_shown(label))
            traces += _stage_traces(run, stage, axis, style, thin(smooth(train)), thin(held_out))
    return {"data": traces, "layout": _layout(axis, settled_range(seen), _settled_axis(runs, axis))}


@dataclass(frozen=True)
class _Style:
    colour: str
    """CSS variable."""
    run: int
    group: str
    label: str


def _stage_traces(
    run: Run, stage: StageRun, axis: Axis, style: _Style, train: Points, held_out: Points
) -> list[dict[str, Any]]:
    place = span(run, stage, axis)

    def trace(points: Points, what: str, **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "name": style.label,
            "legendgroup": style.group,
            "x": [_short(place.at(step)) for step, _ in points],
            "y": [_short(loss) for _, loss in points],
            "customdata": [step for step, _ in points],
            "hovertemplate": f"<b>{style.label}</b><br>{what} %{{y:.4f}}<br>step %{{customdata:,}}, %{{x:.4s}}"
            "<extra></extra>",
            **more,
        }

    line = {"color": style.colour, "width": 2, "dash": DASHES[style.run % len(DASHES)]}
    marker = {"color": style.colour, "size": 7, "symbol": SYMBOLS[style.run % len(SYMBOLS)]}
    traces = [
        trace(train, "training loss", mode="lines", line=line),
        trace(held_out, "held-out loss", mode="markers", marker=marker, showlegend=not train),
    ]
    parent = run.by_name.get(stage.plan.parent or "")
    if stage.plan.source.kind == "grow" and parent and (train or held_out):
        ends = _finite(parent.held_out) or smooth(_finite(parent.train)) or train or held_out
        mark = trace(((0, ends[-1][1]),), "", mode="markers", showlegend=False)
        mark["hovertemplate"] = (
            f"<b>growth</b><br>{as_shown(parent.plan.name)} → {as_shown(stage.plan.name)}<extra></extra>"
        )
        mark["marker"] = {"symbol": "star", "size": 15, "color": "--ink", "line": {"color": "--paper", "width": 1.5}}
        traces.append(mark)
    return traces


def _layout(axis: Axis, losses: tuple[float, float] | None, settled: list[float] | None) -> dict[str, Any]:
    exponents: Literal["B", "SI"] = "B" if axis == "tokens" else "SI"
    return layout(TITLES[axis], "loss, nats per token", settled, list(losses) if losses else None, exponents)


def _settled_axis(runs: Sequence[Run], axis: Axis) -> list[float] | None:
    """The part of a logarithmic axis on which the losses worth looking at lie, as powers of ten."""
    drawn = [(span(run, stage, axis), stage) for run in runs for stage in run.stages if stage.train or stage.held_out]
    starts = [place.at(max(1, stage.steps_done // 20)) for place, stage in drawn]
    ends = [place.at(stage.steps_done) for place, stage in drawn]
    if not drawn or min(starts) <= 0 or max(ends) <= min(starts):
        return None
    low, high = math.log10(min(starts)), math.log10(max(ends))
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)]


def stage_colours(runs: Sequence[Run]) -> dict[str, str]:
    """One CSS variable for each name of a stage, the same in every run: twins look alike."""
    names = dict.fromkeys(stage.plan.name for run in runs for stage in run.stages)
    return {name: f"--series-{index % COLOURS + 1}" for index, name in enumerate(names)}


def _summary(runs: Sequence[Run], axis: Axis) -> str:
    """What the plot shows, for who cannot see it."""
    sentences = []
    for run in runs:
        ends = []
        for stage in run.stages:
            points = stage.held_out or smooth(stage.train)
            if points:
                step, loss = points[-1]
                place = span(run, stage, axis).at(step)
                where = f"{numbers.count(place)} tokens" if axis == "tokens" else f"{numbers.flops(place)} (6ND)"
                kind = "held-out" if stage.held_out else "training"
                ends.append(f"{stage.plan.name} stands at a {kind} loss of {loss:.3f} after {where}")
        sentences.append(f"{run.name}: {'; '.join(ends)}." if ends else f"{run.name}: nothing was recorded.")
    return " ".join(sentences)


def _finite(points: Points) -> Points:
    return tuple((step, loss) for step, loss in points if math.isfinite(loss))


def _short(value: float) -> float:
    """Six significant digits: more cannot be seen."""
    return float(f"{value:.6g}")
