"""Families in one chart: their loss while they train, against what the lineage of each stage had cost by then."""

from collections.abc import Iterator, Sequence
from typing import Any

from kinfolk.report.compare.comparison import Comparison
from kinfolk.report.compare.member_figures import colour, said_of_members
from kinfolk.report.compare.sides import Side
from kinfolk.report.curves import Axis, settled_range, smooth, span, thin
from kinfolk.report.figures import DASHES, SYMBOLS, Plot
from kinfolk.report.layout import as_shown, decades, layout
from kinfolk.report.loss_figure import TITLES, UNITS
from kinfolk.report.metrics import finite
from kinfolk.report.series import AXES, Measure, Series, drawn_range, rates_of, series

POINTS = 16_000
"""Points of all curves together, at most 400 of one: more cannot be seen, and they make the page large."""


def curves_plot(comparison: Comparison) -> Plot:
    """Loss of every stage; a family has one colour. Losses per token only where they can be compared."""
    limit = max(40, min(400, POINTS // max(1, sum(len(build.run.stages) for build in comparison.runs))))
    drawn = {
        f"{number}.{place}": each
        for number, side in enumerate(comparison.sides)
        for place, each in enumerate(_curves(side, number, limit))
    }
    measures: tuple[Measure, ...] = ("bits per byte", "loss") if comparison.per_token else ("bits per byte",)
    views = {}
    for label, axis in AXES.items():
        for measure in measures:
            name = f"{label}, {measure}" if len(measures) > 1 else label
            views[name] = _figure(comparison, drawn, axis, measure)
    return Plot(
        key="curves",
        title="Loss while training, at equal cost",
        views=views,
        summary=said_of_members(comparison),
        empty=not drawn,
        choices=(tuple(AXES), measures),
        columns={name: values for key, each in drawn.items() for name, values in each.columns(key).items()},
    )


def _curves(side: Side, number: int, limit: int) -> Iterator[Series]:
    """Training and held-out loss of every stage of every seed; runs whose bytes are not known have none."""
    width = 2.0 if len(side.builds) == 1 else 1.2
    line = {"color": colour(number), "width": width, "dash": DASHES[number % len(DASHES)]}
    marker = {"color": colour(number), "size": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]}
    first = True
    for run in side.runs:
        rates = rates_of(run.data)
        for stage in run.stages if rates else ():
            assert rates is not None
            of = f"<b>{as_shown(stage.plan.name)}</b>, {as_shown(run.name)}<br>"
            curves = (
                (smooth(finite(stage.metrics.train)), rates.train, "training", {"mode": "lines", "line": line}),
                (finite(stage.metrics.held_out), rates.held_out, "held-out", {"mode": "markers", "marker": marker}),
            )
            for points, rate, kind, look in curves:
                if points:
                    shared = {"name": as_shown(side.name), "legendgroup": side.name, "showlegend": first}
                    hover = f"{of}{kind} %{{y:.4f}}<br>step %{{customdata:,}}, %{{x:.4s}}<extra></extra>"
                    whole = {**shared, **look, "hovertemplate": hover}
                    yield series(run, stage, thin(points, limit), rate, whole)
                    first = False


def _figure(comparison: Comparison, drawn: dict[str, Series], axis: Axis, measure: Measure) -> dict[str, Any]:
    losses = settled_range(drawn_range(list(drawn.values()), measure))
    exponents: Any = "SI" if axis in ("six_nd", "matmul") else "B"
    title = f"{TITLES[axis]}, seconds" if axis == "seconds" else TITLES[axis]
    shown = _settled(comparison.sides, axis)
    return {
        "data": [each.trace(key, axis, measure) for key, each in drawn.items()],
        "layout": layout(title, UNITS[measure], shown, list(losses) if losses else None, exponents),
    }


def _settled(sides: Sequence[Side], axis: Axis) -> list[float] | None:
    """The part of a logarithmic axis on which the losses worth looking at lie, as powers of ten."""
    drawn = [
        (span(run, stage, axis), stage)
        for side in sides
        for run in side.runs
        for stage in run.stages
        if stage.metrics.last_step
    ]
    places = [place.at(step) for place, stage in drawn for step in (max(1, stage.steps_done // 20), stage.steps_done)]
    known = [place for place in places if place > 0]
    return decades(known) if known else None
