"""What was forecast of each stage's end while it trained, beside what came."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.report.events import Outlook
from kinfolk.report.figures import DASHES, Plot, stage_colours
from kinfolk.report.layout import as_shown, layout
from kinfolk.report.run import Run, StageRun


@dataclass(frozen=True)
class StageOutlooks:
    """One row of the table."""

    stage: StageRun
    made: tuple[Outlook, ...]
    came: float | None
    """Quick held-out loss after the last step; None for a stage that is not finished."""

    @property
    def why(self) -> str | None:
        """Why there is no forecast."""
        return self.stage.finished.not_forecast if self.stage.finished and not self.made else None

    @property
    def middle(self) -> Outlook | None:
        """The forecast that was made nearest to half of the steps."""
        return min(self.made, key=lambda each: abs(self.share(each) - 0.5), default=None)

    @property
    def held(self) -> int:
        """Forecasts whose interval holds what came."""
        came = self.came
        return sum(each.forecast_low <= came <= each.forecast_high for each in self.made) if came is not None else 0

    @property
    def advised(self) -> Outlook | None:
        """The last advice to begin the decay elsewhere, if there was any."""
        return next((each for each in reversed(self.made) if each.advises), None)

    @property
    def advised_begin(self) -> str | None:
        """Where that would begin it, in words."""
        said = self.advised
        if said is None:
            return None
        step, after = said.advised_decay_step, said.advised_decay_steps_after
        return (
            f"step {step:,.0f}" if after is None else f"{after:,.0f} step{'' if after == 1 else 's'} after this stage"
        )

    def share(self, each: Outlook) -> float:
        """Of the stage's steps, when a forecast was made."""
        return each.step / self.stage.plan.steps


def outlooks_of(run: Run) -> tuple[StageOutlooks, ...]:
    """The stages of a run that were forecast while they trained, or of which it is known why not."""
    found = []
    for stage in run.stages:
        last = stage.metrics.held_out[-1] if stage.metrics.held_out else None
        came = last[1] if last and stage.finished and last[0] == stage.plan.steps else None
        row = StageOutlooks(stage, stage.metrics.outlooks, came)
        if row.made or row.why:
            found.append(row)
    return tuple(found)


def outlook_plot(runs: Sequence[tuple[Run, tuple[StageOutlooks, ...]]]) -> Plot:
    """How every forecast moved, in percent of what came; of an unfinished stage, of its newest forecast."""
    colours = stage_colours([run for run, _ in runs])
    traces: list[dict[str, Any]] = []
    said = []
    for number, (run, rows) in enumerate(runs):
        for row in rows:
            if not row.made:
                continue
            name = f"{row.stage.plan.name}, {run.name}" if len(runs) > 1 else row.stage.plan.name
            traces += _traces(row, as_shown(name), colours[row.stage.plan.name], number)
            if row.came is not None:
                said.append(f"{name}: {row.held} of {len(row.made)} intervals held what came")
    figure = {
        "data": traces,
        "layout": layout(
            "share of the stage's steps that were done, %", "forecast above what came, %", x_type="linear"
        ),
    }
    summary = f"{'; '.join(said)}." if said else "No stage that was forecast has finished yet."
    return Plot("outlook", "Forecast of each stage's end, as it moved", {"share": figure}, summary, empty=not traces)


def _traces(row: StageOutlooks, name: str, colour: str, number: int) -> list[dict[str, Any]]:
    against = row.came if row.came is not None else row.made[-1].forecast_loss
    shares = [round(100 * row.share(each), 2) for each in row.made]
    shown = {"type": "scatter", "x": shares, "legendgroup": f"{number}/{row.stage.plan.name}"}

    def above(value: float) -> float:
        return round(100 * math.expm1(math.log(value / against)), 4)

    line = {
        **shown,
        "mode": "lines+markers",
        "name": name,
        "y": [above(each.forecast_loss) for each in row.made],
        "line": {"color": colour, "width": 2, "dash": DASHES[number % len(DASHES)]},
        "marker": {"color": colour, "size": 6},
        "customdata": [
            f"{each.forecast_loss:.4f} ({each.forecast_low:.4f} to {each.forecast_high:.4f})" for each in row.made
        ],
        "hovertemplate": f"<b>{name}</b><br>%{{customdata}}<br>%{{y:+.2f}} %, at %{{x:.0f}} % of the steps"
        "<extra></extra>",
    }
    edges = [
        {
            **shown,
            "mode": "lines",
            "name": f"{name}, 90 % interval",
            "showlegend": False,
            "hoverinfo": "skip",
            "y": [above(getattr(each, side)) for each in row.made],
            "line": {"color": colour, "width": 1, "dash": "dot"},
        }
        for side in ("forecast_low", "forecast_high")
    ]
    return [line, *edges]
