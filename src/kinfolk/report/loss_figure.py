"""Loss of every stage of every run against compute, tokens and time, in nats per token and in bits per byte."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.report import numbers
from kinfolk.report.curves import Axis, settled_range, smooth, span, thin
from kinfolk.report.figures import DASHES, SYMBOLS, Plot, stage_colours
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.loss_marks import evaluated, marks
from kinfolk.report.metrics import finite
from kinfolk.report.run import Run, StageRun
from kinfolk.report.series import AXES, Measure, Rates, Series, drawn_range, rates_of, series

TITLES: dict[Axis, str] = {
    "six_nd": "training FLOPs of the lineage, 6ND",
    "matmul": "training FLOPs of the lineage, matmul",
    "tokens": "training tokens of the lineage",
    "seconds": "training time of the lineage",
}
UNITS: dict[Measure, str] = {"loss": "loss, nats per token", "bits per byte": "loss, bits per byte"}
POINTS = 16_000
"""Points of all curves together, at most 600 of one: more cannot be seen, and they make the page large."""


@dataclass(frozen=True)
class Drawn:
    """One trace with the name of its columns; `settles` says whether it decides how much of the axes is shown."""

    key: str
    series: Series
    settles: bool


def loss_plot(runs: Sequence[Run]) -> Plot:
    """The plot, with a view for every axis in every unit that the runs have."""
    rates = {run.name: rates_of(run.data) for run in runs}
    drawn = _drawn(runs, rates)
    measures: tuple[Measure, ...] = ("loss", "bits per byte") if any(rates.values()) else ("loss",)
    unit, seconds = _unit_of_time(runs)
    columns = {name: values for each in drawn for name, values in each.series.columns(each.key).items()}
    for name, values in columns.items():
        if name.endswith(".seconds"):
            columns[name] = [value / seconds for value in values]
    views = {}
    for label, axis in AXES.items():
        shown = _shown_stretch(runs, axis, seconds if axis == "seconds" else 1.0)
        for measure in measures:
            name = f"{label}, {measure}" if len(measures) > 1 else label
            views[name] = _figure(drawn, axis, measure, shown, unit)
    return Plot(
        key="loss",
        title="Loss of every stage",
        views=views,
        summary=_summary(runs),
        empty=not drawn,
        choices=(tuple(AXES), measures),
        columns=columns,
    )


def _drawn(runs: Sequence[Run], rates: Mapping[str, Rates | None]) -> list[Drawn]:
    colours = stage_colours(runs)
    stages = sum(len(run.stages) for run in runs)
    limit = max(60, min(600, POINTS // stages))
    found: list[Drawn] = []
    for number, run in enumerate(runs):
        rate = rates[run.name]
        for place, stage in enumerate(run.stages):
            label = as_shown(f"{stage.plan.name}, {run.name}" if len(runs) > 1 else stage.plan.name)
            look = _look(label, colours[stage.plan.name], number, f"{number}/{stage.plan.name}")
            found += _curves(run, stage, rate, look, label, f"{number}.{place}", limit)
        found += [Drawn(f"{number}.{kind}", each, False) for kind, each in marks(run, number, len(runs), rate).items()]
    return found


def _curves(
    run: Run, stage: StageRun, rate: Rates | None, look: dict[str, dict[str, Any]], label: str, key: str, limit: int
) -> list[Drawn]:
    found = []
    train, held_out = thin(smooth(finite(stage.metrics.train)), limit), thin(finite(stage.metrics.held_out), limit)
    if train:
        what = {**look["line"], "hovertemplate": _hover(label, "training loss")}
        found.append(Drawn(f"{key}.train", series(run, stage, train, rate.train if rate else None, what), True))
    if held_out:
        what = {**look["points"], "hovertemplate": _hover(label, "held-out loss"), "showlegend": not train}
        points = series(run, stage, held_out, rate.held_out if rate else None, what)
        found.append(Drawn(f"{key}.held_out", points, True))
    member = evaluated(run, stage, look["points"], label)
    return [*found, *([Drawn(f"{key}.member", member, True)] if member else [])]


def _look(label: str, colour: str, number: int, group: str) -> dict[str, dict[str, Any]]:
    """Of a stage's line and of its points: colour tells the stage, the kind of line and point the run."""
    shared = {"name": label, "legendgroup": group}
    marker = {"color": colour, "size": 7, "symbol": SYMBOLS[number % len(SYMBOLS)]}
    line = {"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]}
    return {
        "line": {**shared, "mode": "lines", "line": line},
        "points": {**shared, "mode": "markers", "marker": marker},
    }


def _hover(label: str, what: str) -> str:
    return f"<b>{label}</b><br>{what} %{{y:.4f}}<br>step %{{customdata:,}}, %{{x:.4s}}<extra></extra>"


def _figure(
    drawn: Sequence[Drawn], axis: Axis, measure: Measure, shown: list[float] | None, unit: str
) -> dict[str, Any]:
    losses = settled_range(drawn_range([each.series for each in drawn if each.settles], measure))
    title = f"{TITLES[axis]}, {unit}" if axis == "seconds" else TITLES[axis]
    exponents: Any = "SI" if axis in ("six_nd", "matmul") else "B"
    return {
        "data": [each.series.trace(each.key, axis, measure) for each in drawn if measure in each.series.y],
        "layout": layout(title, UNITS[measure], shown, list(losses) if losses else None, exponents),
    }


def _unit_of_time(runs: Sequence[Run]) -> tuple[str, float]:
    """In which to count time, and its seconds."""
    longest = max(span(run, stage, "seconds").at(stage.steps_done) for run in runs for stage in run.stages)
    units = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0))
    return next(((name, size) for name, size in units if longest >= 3 * size), ("seconds", 1.0))


def _shown_stretch(runs: Sequence[Run], axis: Axis, unit: float) -> list[float] | None:
    """The part of a logarithmic axis on which the losses worth looking at lie, as powers of ten."""
    drawn = [(span(run, stage, axis), stage) for run in runs for stage in run.stages if stage.metrics.last_step]
    starts = [place.at(max(1, stage.steps_done // 20)) / unit for place, stage in drawn]
    ends = [place.at(stage.steps_done) / unit for place, stage in drawn]
    if not drawn or min(starts) <= 0 or max(ends) <= min(starts):
        return None
    low, high = math.log10(min(starts)), math.log10(max(ends))
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)]


def _summary(runs: Sequence[Run]) -> str:
    """What the plot shows, for who cannot see it."""
    sentences = []
    for run in runs:
        ends = []
        for stage in run.stages:
            points = stage.metrics.held_out or smooth(stage.metrics.train)
            if points:
                step, loss = points[-1]
                compute, tokens = (span(run, stage, axis).at(step) for axis in ("six_nd", "tokens"))
                kind = "held-out" if stage.metrics.held_out else "training"
                where = f"{numbers.flops(compute)} (6ND) and {numbers.count(tokens)} tokens"
                ends.append(f"{stage.plan.name} stands at a {kind} loss of {loss:.3f} after {where}")
        sentences.append(f"{run.name}: {'; '.join(ends)}." if ends else f"{run.name}: nothing was recorded.")
    return " ".join(sentences)
