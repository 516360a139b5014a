"""Every stage beside what a law had forecast of it: before the build, as re-issued since, and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.report import numbers
from kinfolk.report.events import ForecastChecked
from kinfolk.report.figures import COLOURS, Plot
from kinfolk.report.layout import as_shown, decades, layout
from kinfolk.report.records import Forecast, PlannedForecast
from kinfolk.report.run import Run


@dataclass(frozen=True)
class StageForecast:
    """One row of the table."""

    stage: str
    member: str | None
    kind: str
    """member, undecayed, or patch."""
    planned: Forecast | None
    """Before the build began."""
    latest: Forecast | None
    """What the stage was held against; for one that is not finished, what it is forecast to reach by now."""
    measured: float | None
    inside: bool | None
    finished: bool
    compute: float | None
    """6ND that the model is worth, for the plot."""

    @property
    def error(self) -> float | None:
        """Measured over forecast, minus 1."""
        if self.measured is None or self.latest is None or self.latest.loss is None:
            return None
        return self.measured / self.latest.loss - 1


@dataclass(frozen=True)
class RunForecasts:
    """The forecasts of one run, by one law."""

    law: str
    unit: str
    source: str | None
    stages: tuple[StageForecast, ...]

    @property
    def checked(self) -> int:
        """Stages that were held against an interval."""
        return sum(stage.inside is not None for stage in self.stages)

    @property
    def missed(self) -> tuple[str, ...]:
        """Stages that ended outside their interval."""
        return tuple(stage.stage for stage in self.stages if stage.inside is False)


def forecasts_of(run: Run) -> RunForecasts | None:
    """The forecasts of a run; None for one that was built without a law."""
    checks = [stage.forecast for stage in run.stages if stage.forecast]
    plan = run.plan.forecast
    if not checks and plan is None:
        return None
    planned = {stage.stage: stage for stage in plan.stages} if plan else {}
    newest: dict[str, Forecast] = {}
    for earlier in checks:  # in the order of the stages, so that the last word counts
        newest |= {each.stage: each for each in earlier.rest}
    stages = []
    for stage in run.stages:
        name, check, first = stage.plan.name, stage.forecast, planned.get(stage.plan.name)
        stages.append(
            StageForecast(
                stage=name,
                member=stage.plan.member,
                kind=_kind(first, check, stage.plan.objective),
                planned=first,
                latest=check.forecast if check else newest.get(name, first),
                measured=check.measured if check else None,
                inside=check.inside if check else None,
                finished=stage.finished is not None,
                compute=6 * first.parameters * first.tokens if first and first.parameters and first.tokens else None,
            )
        )
    law, unit = (checks[-1].law, checks[-1].unit) if checks else (plan.law.name, plan.law.unit) if plan else ("", "")
    return RunForecasts(law, unit, plan.law.source if plan and plan.law.name == law else None, tuple(stages))


def forecast_plot(runs: Sequence[tuple[Run, RunForecasts]]) -> Plot:
    """Forecasts with their intervals, and what was measured, against compute."""
    traces: list[dict[str, Any]] = []
    said = []
    for number, (run, found) in enumerate(runs):
        label = f" of {run.name}" if len(runs) > 1 else ""
        colour = f"--series-{number % COLOURS + 1}"
        known = [stage for stage in found.stages if stage.compute and stage.latest and stage.latest.loss]
        bars = [stage.latest for stage in known if stage.latest]
        if bars:
            traces.append(
                {
                    **_points(known, [bar.loss or 0.0 for bar in bars], f"forecast{label}"),
                    "marker": {"color": "--soft", "size": 7},
                    "error_y": {
                        "type": "data",
                        "symmetric": False,
                        "array": [(bar.high or bar.loss or 0.0) - (bar.loss or 0.0) for bar in bars],
                        "arrayminus": [(bar.loss or 0.0) - (bar.low or bar.loss or 0.0) for bar in bars],
                        "color": "--soft",
                        "thickness": 2,
                        "width": 6,
                    },
                }
            )
        measured = [stage for stage in found.stages if stage.compute and stage.measured is not None]
        if measured:
            traces.append(
                {
                    **_points(measured, [stage.measured or 0.0 for stage in measured], f"measured{label}"),
                    "marker": {"color": colour, "size": 10, "symbol": "diamond"},
                }
            )
        said += [f"{stage.stage} {numbers.fixed(stage.measured, 3)}" for stage in measured if stage.measured]
    units = ", ".join(dict.fromkeys(found.unit for _, found in runs))
    reached = decades([float(value) for trace in traces for value in trace["x"]]) if traces else None
    figure = {"data": traces, "layout": layout("6ND FLOPs that the stage's model is worth", f"loss, {units}", reached)}
    summary = f"Measured: {', '.join(said)}." if said else "Nothing has been measured yet."
    return Plot("forecast", "Forecast and measured", {"6ND": figure}, summary, empty=not traces)


def _kind(planned: PlannedForecast | None, check: ForecastChecked | None, objective: dict[str, Any]) -> str:
    if objective.get("kind") == "patch":
        return "patch"
    return planned.kind if planned else check.kind if check else "member"


def _points(stages: Sequence[StageForecast], values: Sequence[float], name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": as_shown(name),
        "x": [stage.compute for stage in stages],
        "y": list(values),
        "customdata": [as_shown(stage.stage) for stage in stages],
        "hovertemplate": f"%{{customdata}}, {as_shown(name)}<br>loss %{{y:.3f}}<extra></extra>",
    }
