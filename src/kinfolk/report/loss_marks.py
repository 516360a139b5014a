"""What happened to a stage, and what was forecast of it, as marks among its losses."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kinfolk.report.curves import smooth
from kinfolk.report.forecasts import forecasts_of
from kinfolk.report.layout import as_shown
from kinfolk.report.metrics import Points, finite
from kinfolk.report.outlooks import outlooks_of
from kinfolk.report.run import Run, StageRun
from kinfolk.report.series import Interval, Rates, Series, mark

Found = tuple[StageRun, int, float, str]
"""A stage, one of its steps, the loss there in nats, and what is to be said."""

LOOKS: dict[str, dict[str, Any]] = {
    "growth": {"symbol": "circle-open", "size": 20},
    "change of objective": {"symbol": "x", "size": 11},
    "decay begins": {"symbol": "triangle-down-open", "size": 12},
}


def marks(run: Run, number: int, runs: int, rate: Rates | None) -> dict[str, Series]:
    """One series for each kind of mark that the run has, by its name."""
    of = f", {run.name}" if runs > 1 else ""
    kinds = {"growth": _growths(run), "change of objective": _switches(run), "decay begins": _decays(run)}
    found: dict[str, Series] = {}
    for kind, marked in kinds.items():
        look = _look(f"{kind}{of}", f"{number}:{kind}", LOOKS[kind])
        for stage, step, loss, said in marked:
            one = mark(run, stage, (step, loss), rate.held_out if rate else None, look, said)
            found[kind] = found[kind] + one if kind in found else one
    look = _look(f"forecast of the end{of}", f"{number}:forecast", {"symbol": "square-open", "size": 6})
    forecast = _forecasts(run, rate, look)
    return {**found, **({"forecast": forecast} if forecast else {})}


def evaluated(run: Run, stage: StageRun, look: dict[str, Any], label: str) -> Series | None:
    """The finished member on all of the held-out text: the ledger's figures."""
    if stage.member is None:
        return None
    found = stage.member.held_out
    marker = {**look["marker"], "symbol": "diamond", "size": 11, "line": {"color": "--paper", "width": 1.5}}
    hover = f"<b>{label}</b><br>%{{customdata}} %{{y:.4f}}<extra></extra>"
    one = mark(
        run,
        stage,
        (stage.plan.steps, found.loss),
        found.bits_per_byte / found.loss if found.loss else None,
        {**look, "marker": marker, "hovertemplate": hover, "showlegend": False},
        "the member, on all held-out text:",
    )
    low, high, bits = found.bits_per_byte_low, found.bits_per_byte_high, found.bits_per_byte
    return one if low is None or high is None else replace(one, errors={"bits per byte": [(bits - low, high - bits)]})


def _growths(run: Run) -> Iterator[Found]:
    for stage in run.stages:
        parent = run.by_name.get(stage.plan.parent or "")
        if stage.plan.source.kind == "grow" and parent and stage.metrics.last_step:
            yield stage, 0, _loss_between(parent, stage), f"growth<br>{_names(parent, stage)}"


def _switches(run: Run) -> Iterator[Found]:
    """Where a stage goes on with another objective than its parent's."""
    for stage in run.stages:
        parent = run.by_name.get(stage.plan.parent or "")
        if parent and stage.metrics.last_step and parent.plan.patch_size != stage.plan.patch_size:
            objectives = " to ".join(_objective(each) for each in (parent, stage))
            yield stage, 0, _loss_between(parent, stage), f"from {objectives}<br>{_names(parent, stage)}"


def _decays(run: Run) -> Iterator[Found]:
    for stage in run.stages:
        share = stage.plan.decay_share
        step = stage.plan.step_of(share) if share is not None else 0
        curve = smooth(finite(stage.metrics.train)) or finite(stage.metrics.held_out)
        if share is not None and curve and step <= curve[-1][0]:
            loss = next(loss for at, loss in curve if at >= step)
            where = f"{as_shown(stage.plan.name)}, step {step:,}"
            yield stage, step, loss, f"{stage.plan.rate.decay_shape} decay begins<br>{where}"


def _loss_between(parent: StageRun, stage: StageRun) -> float:
    """The loss where a child begins: its parent's last, or its own first."""
    before = finite(parent.metrics.held_out) or smooth(finite(parent.metrics.train))
    own: Points = finite(stage.metrics.train) or finite(stage.metrics.held_out)
    return before[-1][1] if before else own[0][1] if own else 0.0


def _names(parent: StageRun, stage: StageRun) -> str:
    return f"{as_shown(parent.plan.name)} → {as_shown(stage.plan.name)}"


def _objective(stage: StageRun) -> str:
    return f"patches of {stage.plan.patch_size}" if stage.plan.patch_size > 1 else "tokens"


def _look(name: str, group: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "mode": "markers",
        "name": as_shown(name),
        "legendgroup": group,
        "marker": {"color": "--ink", "size": 9, **marker, "line": {"color": "--ink", "width": 1.5}},
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _forecasts(run: Run, rate: Rates | None, look: dict[str, Any]) -> Series | None:
    """What was forecast of every stage's end, with 90 % intervals: by a law before it, and from its own curve."""
    every: Series | None = None
    for stage, loss, (below, above), said in (*_by_law(run, rate), *_by_curve(run)):
        text = f"<b>{as_shown(stage.plan.name)}</b><br>{said}<br>{loss:.3f} ({loss - below:.3f} to {loss + above:.3f})"
        end = stage.plan.steps, loss
        one = mark(run, stage, end, rate.held_out if rate else None, look, text, interval=(below, above))
        every = every + one if every else one
    return every


Expected = tuple[StageRun, float, Interval, str]
"""A stage, the loss that it was forecast to end at, its interval, and by whom."""


def _by_law(run: Run, rate: Rates | None) -> Iterator[Expected]:
    found = forecasts_of(run)
    per_nat = {"nats per token": 1.0, "bits per byte": rate.held_out if rate else None}.get(found.unit if found else "")
    for row in found.stages if found and per_nat else ():
        said = row.latest
        if said and said.loss is not None and said.low is not None and said.high is not None and per_nat:
            loss, low, high = (value / per_nat for value in (said.loss, said.low, said.high))
            what = f"forecast by {as_shown(found.law)}" if found else ""
            yield run.by_name[row.stage], loss, (loss - low, high - loss), what


def _by_curve(run: Run) -> Iterator[Expected]:
    """Of a finished stage the forecast that was made half-way, of another the newest."""
    for row in outlooks_of(run):
        said = row.middle if row.came is not None else row.made[-1] if row.made else None
        if said:
            loss = said.forecast_loss
            share = f"{100 * row.share(said):.0f} %"
            interval = loss - said.forecast_low, said.forecast_high - loss
            yield row.stage, loss, interval, f"forecast from its own curve, at {share} of the steps"
