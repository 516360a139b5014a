"""The learning rate of every stage, as planned, over the tokens of its lineage."""

from collections.abc import Sequence
from typing import Any

from kinfolk.plan.stages import Rate
from kinfolk.report import numbers
from kinfolk.report.curves import span
from kinfolk.report.figures import DASHES, Plot, short, stage_colours
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.records import PlannedStage
from kinfolk.report.run import Run
from kinfolk.train.rate import learning_rate

POINTS = 120


def rate_plot(runs: Sequence[Run]) -> Plot:
    """The plot of all runs."""
    colours = stage_colours(runs)
    traces: list[dict[str, Any]] = []
    said = []
    for number, run in enumerate(runs):
        for stage in run.stages:
            name = as_shown(f"{stage.plan.name}, {run.name}" if len(runs) > 1 else stage.plan.name)
            place = span(run, stage, "tokens")
            rates = planned_rates(stage.plan)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": [short(place.start + place.length * share) for share, _ in rates],
                    "y": [short(rate) for _, rate in rates],
                    "line": {"color": colours[stage.plan.name], "width": 2, "dash": DASHES[number % len(DASHES)]},
                    "hovertemplate": f"<b>{name}</b><br>rate %{{y:.4g}}, %{{x:.4s}} tokens<extra></extra>",
                }
            )
            said.append(f"{name} peaks at {numbers.small(stage.plan.rate.peak)}")
    drawn = layout("training tokens of the lineage", "learning rate", exponents="B", x_type="linear")
    drawn["yaxis"] |= {"rangemode": "tozero", "exponentformat": "power"}
    views = {"tokens": {"data": traces, "layout": drawn}}
    return Plot("rates-of-stages", "Learning rate of every stage", views, f"{'; '.join(said)}.", empty=not traces)


def planned_rates(stage: PlannedStage) -> list[tuple[float, float]]:
    """(share of the stage's tokens, learning rate of a whole batch there), at its corners and evenly between them."""
    rate, batches = stage.rate, stage.batches
    planned = Rate(rate.peak, rate.warmup_steps, rate.decay_steps, rate.decay_shape, rate.end_ratio)
    last = round(batches) - 1
    corners = {0, rate.warmup_steps - 1, last + 1 - rate.decay_steps, last}
    even = {round(last * place / POINTS) for place in range(POINTS)}
    at = sorted(place for place in corners | even if 0 <= place <= last)
    return [(place / batches, learning_rate(planned, place, last + 1)) for place in at]
