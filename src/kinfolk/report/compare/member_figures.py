"""Finished members of several families: how far apart they are, and what each had cost."""

from collections.abc import Sequence
from typing import Any

from kinfolk.report import numbers
from kinfolk.report.compare.comparison import Comparison
from kinfolk.report.compare.differences import Difference, Interval
from kinfolk.report.compare.members import Entry
from kinfolk.report.figures import COLOURS, DASHES, SYMBOLS, Plot, short
from kinfolk.report.layout import as_shown, decades, layout
from kinfolk.report.loss_figure import TITLES
from kinfolk.report.series import AXES

BITS = "bits per byte"


def colour(place: int) -> str:
    """The CSS variable of a family."""
    return f"--series-{place % COLOURS + 1}"


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
        intervals = [difference.seed_interval or difference.interval for _, _, difference in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": as_shown(side.name),
                "showlegend": True,
                "x": [place + shift for place, _, _ in own],
                "y": [short(100 * difference.relative) for _, _, difference in own],
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
    figure = layout("", "bits per byte, difference", [-0.5, len(comparison.rows) - 0.5], None)
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
        "array": [short(above) for _, above in reaches],
        "arrayminus": [short(below) for below, _ in reaches],
        "color": colour(number),
        "thickness": 1.5,
        "width": 5,
    }


def members_plot(comparison: Comparison) -> Plot:
    """Bits per byte of the finished members against the cost of their lineage and their size."""
    axes: dict[str, str] = {**AXES, "parameters": "parameters"}
    return Plot(
        key="members",
        title="Members at equal cost",
        views={label: _members(comparison, axis) for label, axis in axes.items()},
        summary=said_of_members(comparison),
        empty=not comparison.rows,
    )


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
                "x": [short(_place(entry, axis)) for _, entry in own],
                "y": [short(entry.bits_per_byte) for _, entry in own],
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
    figure = layout(_title(axis), BITS, decades(places) if places else None, None, exponents)  # type: ignore[arg-type]
    return {"data": traces, "layout": figure}


def _title(axis: str) -> str:
    if axis == "parameters":
        return "parameters"
    return next(title + (", seconds" if axis == "seconds" else "") for kind, title in TITLES.items() if kind == axis)


def _place(entry: Entry, axis: str) -> float:
    if axis in ("six_nd", "matmul"):
        return float(getattr(entry.flops, axis))
    return float(getattr(entry, axis))


def _reach(entry: Entry) -> tuple[float, float]:
    """How far the interval over documents, or the spread over seeds, reaches below and above."""
    if entry.interval:
        return entry.bits_per_byte - entry.interval[0], entry.interval[1] - entry.bits_per_byte
    return entry.spread or 0.0, entry.spread or 0.0


def said_of_members(comparison: Comparison) -> str:
    """What every family reached for what, in words."""
    sentences = []
    for number, side in enumerate(comparison.sides):
        ends = [
            f"{row.name} reaches {entry.bits_per_byte:.4f} bits per byte for {numbers.flops(entry.flops.six_nd)} (6ND)"
            for row in comparison.rows
            if (entry := row.entries[number])
        ]
        sentences.append(f"{side.name}: {'; '.join(ends)}." if ends else f"{side.name}: no finished member.")
    return " ".join(sentences)
