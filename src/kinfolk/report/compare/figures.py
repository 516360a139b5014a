"""Families in one chart: their loss while they train, and their members, against what each had cost by then."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from kinfolk.report import numbers
from kinfolk.report.compare.comparison import Comparison
from kinfolk.report.compare.differences import Difference, Interval
from kinfolk.report.compare.members import Entry
from kinfolk.report.compare.sides import Build, Side
from kinfolk.report.curves import Axis, settled_range, smooth, span, thin
from kinfolk.report.figures import COLOURS, DASHES, SYMBOLS, TITLES, Plot
from kinfolk.report.layout import as_shown, decades, layout
from kinfolk.report.run import Points, StageRun

POINTS = 60_000
"""Of all curves in all views together: about two megabytes."""

BITS = "bits per byte"
AXES: dict[str, Axis] = {"6ND": "six_nd", "matmul": "matmul", "tokens": "tokens"}
MEMBER_TITLES: dict[str, str] = {**TITLES, "seconds": "seconds of training of the lineage", "parameters": "parameters"}


def colour(place: int) -> str:
    """The CSS variable of a family."""
    return f"--series-{place % COLOURS + 1}"


def curves_plot(comparison: Comparison) -> Plot:
    """Loss of every stage of every family against the cost of its lineage; a family has one colour."""
    drawn = sum(len(build.run.stages) for build in comparison.runs)
    limit = max(40, min(400, POINTS // (2 * len(AXES) * max(1, drawn))))
    return Plot(
        key="curves",
        title="Loss while training, at equal cost",
        views={label: _curves(comparison, axis, limit) for label, axis in AXES.items()},
        summary=_summary(comparison),
        empty=not any(stage.train or stage.held_out for build in comparison.runs for stage in build.run.stages),
    )


def members_plot(comparison: Comparison) -> Plot:
    """Bits per byte of the finished members against the cost of their lineage and their size."""
    axes = {**AXES, "time": "seconds", "parameters": "parameters"}
    return Plot(
        key="members",
        title="Members at equal cost",
        views={label: _members(comparison, axis) for label, axis in axes.items()},
        summary=_summary(comparison),
        empty=not comparison.rows,
    )


def differences_plot(comparison: Comparison) -> Plot:
    """How far every member is from the first family's, with the intervals that decide whether that is chance."""
    others = list(enumerate(comparison.sides))[1:]
    traces = []
    sentences = []
    for number, side in others:
        own = [
            (place, row.name, difference)
            for place, (row, line) in enumerate(zip(comparison.rows, comparison.differences, strict=True))
            if (difference := line[number])
        ]
        shift = 0.5 * ((number - 0.5) / len(others) - 0.5)
        intervals = [difference.interval or difference.seed_interval for _, _, difference in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": as_shown(side.name),
                "showlegend": True,
                "x": [place + shift for place, _, _ in own],
                "y": [_short(100 * difference.relative) for _, _, difference in own],
                "customdata": [as_shown(f"{name}: {difference.verdict}") for _, name, difference in own],
                "hovertemplate": f"<b>%{{customdata}}</b>, {as_shown(side.name)}<br>%{{y:+.3f}} %<extra></extra>",
                "marker": {"color": colour(number), "size": 10, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "error_y": _bars([_around(difference, reach) for (_, _, difference), reach in
                                  zip(own, intervals, strict=True)], number),
            }
        )  # fmt: skip
        said = "; ".join(f"{name} {_percent(difference)}, {difference.verdict}" for _, name, difference in own)
        sentences.append(f"{side.name}: {said}." if own else f"{side.name}: nothing to compare.")
    reference = comparison.sides[0].name
    figure = layout("", f"bits per byte against {as_shown(reference)}, %", [-0.5, len(comparison.rows) - 0.5], None)
    figure["xaxis"] |= {
        "type": "linear",
        "tickmode": "array",
        "tickvals": list(range(len(comparison.rows))),
        "ticktext": [as_shown(row.name) for row in comparison.rows],
        "showgrid": False,
    }
    figure["yaxis"] |= {"zeroline": True, "zerolinecolor": "--soft", "zerolinewidth": 1.5, "ticksuffix": " %"}
    return Plot(
        key="differences",
        title=f"Difference from {reference}",
        views={"difference": {"data": traces, "layout": figure}},
        summary=" ".join(sentences),
        empty=not any(difference for line in comparison.differences for difference in line),
    )


def _percent(difference: Difference) -> str:
    return f"{'+' if difference.relative > 0 else ''}{numbers.percent(difference.relative)}"


def _around(difference: Difference, interval: Interval | None) -> tuple[float, float]:
    """How far an interval reaches below and above the difference, in percent of the reference."""
    if interval is None or not difference.mean:
        return 0.0, 0.0
    scale = 100 * difference.relative / difference.mean
    return scale * (difference.mean - interval[0]), scale * (interval[1] - difference.mean)


def _bars(reaches: Sequence[tuple[float, float]], number: int) -> dict[str, Any]:
    """Error bars of a family: how far each reaches below and above."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_short(above) for _, above in reaches],
        "arrayminus": [_short(below) for below, _ in reaches],
        "color": colour(number),
        "thickness": 1.5,
        "width": 5,
    }


def _curves(comparison: Comparison, axis: Axis, limit: int) -> dict[str, Any]:
    traces: list[dict[str, Any]] = []
    seen: list[Points] = []
    places: list[float] = []
    for place, side in enumerate(comparison.sides):
        first = True
        for build, stage, train, held_out in _losses(side):
            where = span(build.run, stage, axis)
            for points, is_train in ((thin(smooth(train), limit), True), (held_out, False)):
                if not points:
                    continue
                traces.append(
                    {
                        "type": "scatter",
                        "name": as_shown(side.name),
                        "legendgroup": side.name,
                        "showlegend": first,
                        "x": [_short(where.at(step)) for step, _ in points],
                        "y": [_short(value) for _, value in points],
                        "hovertemplate": f"<b>{as_shown(stage.plan.name)}</b>, {as_shown(build.run.name)}<br>"
                        f"{'training' if is_train else 'held-out'} %{{y:.4f}}<br>%{{x:.4s}}<extra></extra>",
                        **_look(place, is_train, len(side.builds)),
                    }
                )
                first = False
            seen += [points for points in (smooth(train), held_out) if points]
            places += [where.at(max(1, stage.steps_done // 20)), where.at(stage.steps_done)]
    losses = settled_range(seen)
    known = [value for value in places if value > 0]
    exponents = {"tokens": "B"}.get(axis, "SI")
    return {
        "data": traces,
        "layout": layout(
            MEMBER_TITLES[axis],
            BITS,
            decades(known) if known else None,
            list(losses) if losses else None,
            exponents,  # type: ignore[arg-type]
        ),
    }


def _look(place: int, is_train: bool, builds: int) -> dict[str, Any]:
    if is_train:
        width = 2 if builds == 1 else 1.2
        return {"mode": "lines", "line": {"color": colour(place), "width": width, "dash": DASHES[place % len(DASHES)]}}
    return {"mode": "markers", "marker": {"color": colour(place), "size": 6, "symbol": SYMBOLS[place % len(SYMBOLS)]}}


def _losses(side: Side) -> Iterator[tuple[Build, StageRun, Points, Points]]:
    """Training and held-out loss of every stage, in bits per byte."""
    for build in side.builds:
        data = build.run.data
        if data is None or not data.train_bytes or not data.held_out_bytes:
            continue
        rates = [tokens / size / math.log(2) for tokens, size in
                 ((data.train_tokens, data.train_bytes), (data.held_out_tokens, data.held_out_bytes))]  # fmt: skip
        for stage in build.run.stages:
            train, held_out = (
                tuple((step, loss * rate) for step, loss in points if math.isfinite(loss))
                for points, rate in zip((stage.train, stage.held_out), rates, strict=True)
            )
            if train or held_out:
                yield build, stage, train, held_out


def _members(comparison: Comparison, axis: str) -> dict[str, Any]:
    traces = []
    places: list[float] = []
    for number, side in enumerate(comparison.sides):
        own = [(row.name, entry) for row in comparison.rows if (entry := row.entries[number])]
        own.sort(key=lambda pair: _place(pair[1], axis))
        if not own:
            continue
        places += [_place(entry, axis) for _, entry in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": as_shown(side.name),
                "x": [_short(_place(entry, axis)) for _, entry in own],
                "y": [_short(entry.bits_per_byte) for _, entry in own],
                "customdata": [as_shown(name) for name, _ in own],
                "hovertemplate": f"<b>%{{customdata}}</b>, {as_shown(side.name)}<br>%{{y:.4f}} {BITS}<br>%{{x:.4s}}"
                "<extra></extra>",
                "line": {"color": colour(number), "width": 1.5, "dash": DASHES[number % len(DASHES)]},
                "marker": {"color": colour(number), "size": 9, "symbol": SYMBOLS[number % len(SYMBOLS)]},
                "error_y": _bars([_reach(entry) for _, entry in own], number),
            }
        )
    places = [value for value in places if value > 0]
    exponents = {"tokens": "B", "parameters": "B"}.get(axis, "SI")
    figure = layout(MEMBER_TITLES[axis], BITS, decades(places) if places else None, None, exponents)  # type: ignore[arg-type]
    return {"data": traces, "layout": figure}


def _place(entry: Entry, axis: str) -> float:
    if axis in ("six_nd", "matmul"):
        return float(getattr(entry.flops, axis))
    return float(getattr(entry, axis))


def _reach(entry: Entry) -> tuple[float, float]:
    """How far the interval over documents, or the spread over seeds, reaches below and above."""
    if entry.interval:
        return entry.bits_per_byte - entry.interval[0], entry.interval[1] - entry.bits_per_byte
    return entry.spread or 0.0, entry.spread or 0.0


def _summary(comparison: Comparison) -> str:
    sentences = []
    for number, side in enumerate(comparison.sides):
        ends = [
            f"{row.name} reaches {entry.bits_per_byte:.4f} bits per byte for {numbers.flops(entry.flops.six_nd)} (6ND)"
            for row in comparison.rows
            if (entry := row.entries[number])
        ]
        sentences.append(f"{side.name}: {'; '.join(ends)}." if ends else f"{side.name}: no finished member.")
    return " ".join(sentences)


def _short(value: float) -> float:
    """Six significant digits: more cannot be seen."""
    return float(f"{value:.6g}")
