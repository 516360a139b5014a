"""The plots of a schedule law, as plotly figures in plain JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinfolk.report.figures import COLOURS, Plot
from kinfolk.report.layout import as_shown, layout
from kinfolk.schedule.features import NAMES, Units, features, meaning
from kinfolk.schedule.law import ScheduleLaw, Settings

DRAWN = 6
"""Schedules whose rates are drawn, besides the default."""
CURVE_POINTS = 160


@dataclass(frozen=True)
class Point:
    """A run's final loss, measured and predicted."""

    name: str
    what: str
    """`in sample`, or what was left out when it was predicted."""
    measured: float
    predicted: float


@dataclass(frozen=True)
class Contribution:
    """What one feature of the 16-feature law adds to ln loss over the fitted runs."""

    name: str
    weight: float
    lowest: float
    highest: float
    meaning: str


Shown = Sequence[tuple[str, str, dict[str, Any]]]
"""Candidates: place, schedule in words, document."""


def scatter(points: Sequence[Point], prefix: str) -> Plot:
    """Predicted against measured final losses: open where the run was fitted, filled where it was left out."""
    low = min(min(point.measured, point.predicted) for point in points)
    high = max(max(point.measured, point.predicted) for point in points)
    margin = 0.03 * (high - low) or 0.01
    ends = [low - margin, high + margin]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as measured",
            "x": ends,
            "y": ends,
            "hoverinfo": "skip",
            "line": {"color": "--soft", "width": 1, "dash": "dash"},
        }
    ]
    said = []
    for number, what in enumerate(dict.fromkeys(point.what for point in points)):
        some = [point for point in points if point.what == what]
        fitted = what == "in sample"
        label = "fitted (in sample)" if fitted else f"left out: {what}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [_short(point.measured) for point in some],
                "y": [_short(point.predicted) for point in some],
                "customdata": [
                    f"{as_shown(point.name)}<br>{point.predicted - point.measured:+.4f} nats" for point in some
                ],
                "marker": {
                    "color": "--soft" if fitted else f"--series-{number % COLOURS + 1}",
                    "size": 9 if fitted else 7,
                    "symbol": "circle-open" if fitted else "circle",
                },
                "hovertemplate": f"%{{customdata}}<br>measured %{{x:.4f}}, predicted %{{y:.4f}}<extra>{label}</extra>",
            }
        )
        error = np.mean([abs(point.predicted - point.measured) for point in some])
        said.append(f"{label}: {len(some)} losses, mean error {error:.4f} nats")
    figure = {
        "data": traces,
        "layout": layout("measured loss, nats per token", "predicted loss", x_type="linear"),
    }
    return Plot(f"{prefix}scatter", "Predicted against measured", {"loss": figure}, f"{'; '.join(said)}.", empty=False)


def forecasts(shown: Shown, prefix: str) -> Plot:
    """Candidates with their intervals, in order; what cannot be told apart, the default and what is refused marked."""
    groups = {
        "cannot be told from the best": ("--series-3", "circle"),
        "worse": ("--soft", "circle-open"),
        "refused: may diverge": ("--series-2", "x"),
    }
    traces: list[dict[str, Any]] = []
    for name, (colour, symbol) in groups.items():
        some = [each for each in shown if _group(each[2]) == name]
        if some:
            traces.append(_forecast_trace(some, name, colour, symbol))
    usual = [each for each in shown if each[0] == "default"]
    if usual:
        ring = _forecast_trace(usual, "the default", "--ink", "diamond-open")
        ring["marker"]["size"] = 15
        traces.append({**ring, "error_x": {"visible": False}})
    drawn = layout("forecast loss, nats per token", "place", x_type="linear")
    drawn["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [place for place, _, _ in reversed(shown)],
    }
    best = shown[0]
    tied = sum(bool(document["tied"]) for _, _, document in shown)
    summary = (
        f"Best: {best[1]}, forecast {best[2]['predicted']:.4f} ({best[2]['low']:.4f} to {best[2]['high']:.4f}); "
        f"{tied} of the {len(shown)} shown cannot be told from it."
    )
    views = {"loss": {"data": traces, "layout": drawn}}
    return Plot(f"{prefix}forecasts", "Candidates and their forecasts", views, summary, empty=False)


def _group(document: dict[str, Any]) -> str:
    if document["risk"] == "refused":
        return "refused: may diverge"
    return "cannot be told from the best" if document["tied"] else "worse"


def _forecast_trace(some: Shown, name: str, colour: str, symbol: str) -> dict[str, Any]:
    documents = [document for _, _, document in some]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_short(each["predicted"]) for each in documents],
        "y": [place for place, _, _ in some],
        "customdata": [
            f"{as_shown(text)}<br>{each['predicted']:.4f} ({each['low']:.4f} to {each['high']:.4f}); "
            f"risk {as_shown(each['risk'])}"
            for _, text, each in some
        ],
        "marker": {"color": colour, "size": 9, "symbol": symbol, "line": {"color": colour, "width": 1.5}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_short(each["high"] - each["predicted"]) for each in documents],
            "arrayminus": [_short(each["predicted"] - each["low"]) for each in documents],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
    }


def rate_curves(shown: Shown, prefix: str) -> Plot:
    """The rates of the first candidates, and of the default."""
    drawn = [each for each in shown if each[0] != "default"][:DRAWN]
    usual = [each for each in shown if each[0] == "default"]
    traces = []
    for number, (place, text, document) in enumerate([*drawn, *usual]):
        schedule = Settings.model_validate({key: document[key] for key in Settings.model_fields}).schedule()
        corners = [0, schedule.warmup_steps, schedule.steps - schedule.decay_steps, schedule.steps - 1]
        steps = np.unique(np.append(np.linspace(0, schedule.steps - 1, CURVE_POINTS).round(), corners))
        is_default = place == "default"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "default" if is_default else f"{place}: {as_shown(text)}",
                "x": steps.tolist(),
                "y": [float(f"{value:.5g}") for value in schedule.rate_at(steps)],
                "line": {
                    "color": "--ink" if is_default else f"--series-{number % COLOURS + 1}",
                    "width": 2,
                    "dash": "dash" if is_default else "solid",
                },
                "hovertemplate": f"{place}: {as_shown(text)}<br>step %{{x:,}}: rate %{{y:.3g}}<extra></extra>",
            }
        )
    looks = layout("step", "learning rate", x_type="linear")
    looks["yaxis"] |= {"rangemode": "tozero", "exponentformat": "power"}
    summary = "; ".join(f"{place}: {text}" for place, text, _ in [*drawn, *usual])
    views = {"rate": {"data": traces, "layout": looks}}
    return Plot(f"{prefix}rates", "Rates of the first candidates", views, f"{summary}.", empty=False)


def contributions(law: ScheduleLaw) -> tuple[Contribution, ...]:
    """What each feature with a weight adds to ln loss, lowest and highest over the measured runs."""
    if law.kind != "sixteen" or not law.measured:
        return ()
    units = Units(law.numbers["unit rate"], law.numbers["unit steps"])
    schedules = [run.settings.schedule() for run in law.measured]
    values = np.stack([features(schedule, schedule.steps, units) for schedule in schedules])
    added = values * np.array([law.numbers[name] for name in NAMES])  # (run, feature)
    found = [
        Contribution(name, law.numbers[name], float(column.min()), float(column.max()), _in_words(name, units))
        for name, column in zip(NAMES, added.T, strict=True)
        if law.numbers[name] > 0
    ]
    return tuple(sorted(found, key=lambda each: each.lowest - each.highest))


def _in_words(name: str, units: Units) -> str:
    """What a feature means; of a noise feature, how far its memory reaches."""
    if not name.startswith("noise "):
        return meaning(name)
    steps = units.steps / float(name.removeprefix("noise "))
    return f"memory of about {steps:,.0f} steps at the peak: {meaning(name)}"


def weights(found: Sequence[Contribution], prefix: str) -> Plot:
    """By how much each feature sets the fitted runs apart."""
    ranges = [100 * (each.highest - each.lowest) for each in found]
    trace = {
        "type": "bar",
        "orientation": "h",
        "name": "feature",
        "showlegend": False,
        "x": [_short(value) for value in ranges],
        "y": [each.name for each in found],
        "marker": {"color": "--series-1"},
        "customdata": [
            f"weight {each.weight:.4g}; adds {100 * each.lowest:.2f} to {100 * each.highest:.2f} % of the loss<br>"
            f"{each.meaning}"
            for each in found
        ],
        "hovertemplate": "<b>%{y}</b><br>%{customdata}<extra></extra>",
    }
    looks = layout("differs among the fitted runs by, % of the loss", "", x_type="linear")
    looks["yaxis"] |= {"autorange": "reversed", "type": "category"}
    most = [f"{each.name} ({value:.2f} %)" for each, value in list(zip(found, ranges, strict=True))[:3]]
    views = {"weight": {"data": [trace], "layout": looks}}
    return Plot(f"{prefix}weights", "What sets schedules apart", views, f"Most: {', '.join(most)}.", empty=False)


def _short(value: float) -> float:
    return float(f"{value:.6g}")
