"""Forecasts of a build that has a law: every finished stage is held against its own, and the rest is forecast anew.

The law that the build began with lies in law.json; what it is now follows from that and the ledger, so that a build
that was killed goes on with the same forecasts. Members are on the law. A stage whose rate has not decayed stands above
it, by what the build has measured so far. Patch-level loss is on no law: such stages are not checked.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from kinfolk.build.held_out import held_out_score
from kinfolk.build.origin import load_stage_model
from kinfolk.build.run import LAW, LAW_GIVEN, BuildView, Run, later_tokens
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.loss import LossLaw, load_law
from kinfolk.laws.update import Point, updated
from kinfolk.plan.forecast import UNDECAYED, StageForecast, forecast_stages, kind_of
from kinfolk.plan.stages import Continue, Stage
from kinfolk.train import checkpoint
from kinfolk.train.engine import Engine

FIELDS = {"nats per token": "loss", "bits per byte": "bits_per_byte"}
"""What the evaluation calls a loss in the unit of a law."""


def check_forecast(run: Run, stage: Stage, engine: Engine, view: BuildView, heed: Callable[[], None]) -> None:
    """Hold a finished stage against its forecast, once; nothing without a law that was there before it finished.

    The runs of a trial are on no law. Every process calls this: all of them measure what is not yet, and `heed` now and
    then whether to stop.
    """
    path = run.folder / LAW
    if run.plan.is_trial or not engine.from_main(lambda: path.exists() and _is_to_be_checked(run, stage)):
        return
    law = engine.from_main(lambda: load_law(path))
    undecayed = None if stage.member else _undecayed_loss(run, stage, law, engine, heed)
    engine.on_main(lambda: _check(run, stage, law, undecayed, view))


def _check(run: Run, stage: Stage, law: LossLaw, undecayed: float | None, view: BuildView) -> None:
    losses = _measured(run, law)
    measured = losses.pop(stage.name, None) if stage.member else undecayed
    if measured is None:
        return
    after = {**losses, stage.name: measured}
    expected = _forecasts(run, law, losses)[stage.name]
    # What a published law says of other data is no forecast: the first stage sets its level.
    is_forecast = bool(losses) or law.standing not in ("published", "recomputed")
    inside = None
    if is_forecast and expected.low is not None and expected.high is not None:
        inside = expected.low <= measured <= expected.high
    rest = [found for name, found in _forecasts(run, law, after).items() if name not in after and found.kind != "patch"]
    run.ledger.append(
        "forecast_checked",
        stage=stage.name,
        member=stage.member,
        kind=expected.kind,
        law=law.name,
        unit=law.unit,
        measured=measured,
        forecast=_record(expected) if is_forecast else None,
        inside=inside,
        rest=[{"stage": each.stage, "member": each.member, "kind": each.kind, **_record(each)} for each in rest],
    )
    if inside is not None:
        verdict = "inside" if inside else "OUTSIDE: check data, rates and growth before going on"
        view.say(f"{stage.name}  {law.unit} {measured:.4f}, forecast {_text(expected)}: {verdict}")
    for each in rest:
        if each.loss is not None:
            view.say(f"{each.stage}  is now forecast to reach {_text(each)} {law.unit}")


def _is_to_be_checked(run: Run, stage: Stage) -> bool:
    """Whether the stage finished after the law was given and has not been checked; a law may know earlier stages."""
    if kind_of(stage) == "patch":
        return False
    has_law = not run.ledger.events(LAW_GIVEN)
    is_new = False
    for event in run.ledger.events():
        has_law = has_law or event["event"] == LAW_GIVEN
        if event.get("stage") == stage.name:
            if event["event"] == "forecast_checked":
                return False
            is_new = is_new or (has_law and event["event"] == "stage_finished")
    return is_new


def _undecayed_loss(run: Run, stage: Stage, law: LossLaw, engine: Engine, heed: Callable[[], None]) -> float | None:
    """The held-out loss of a stage that finishes no member, in the law's unit; None if its last state is gone."""
    if law.unit not in FIELDS or engine.from_main(lambda: checkpoint.latest(run.checkpoints(stage.name))) is None:
        return None
    with torch.inference_mode():
        model = load_stage_model(stage, run.family, run.store, run.stages, engine=engine)
        return float(held_out_score(run, run.store, model, engine, heed)[FIELDS[law.unit]])


def _measured(run: Run, law: LossLaw) -> dict[str, float]:
    """The loss of each stage that was measured, in the law's unit and in the order of finishing."""
    field = FIELDS.get(law.unit)
    if field is None:
        return {}
    found: dict[str, float] = {}
    for event in run.ledger.events():
        if event["event"] == "member_finished":
            found[event["stage"]] = float(event["held_out"][field])
        elif event["event"] == "forecast_checked" and event["member"] is None:
            found[event["stage"]] = float(event["measured"])
    return found


def _forecasts(run: Run, law: LossLaw, losses: dict[str, float]) -> dict[str, StageForecast]:
    """Every stage's forecast by the law with these losses taken in.

    Members fix the law. A stage whose rate has not decayed shows, once its member is finished, how far such stages are
    above it; until then it stands for the member that it will become.
    """
    unique, later = len(run.store.train), later_tokens(run.stores)

    def by(current: LossLaw, undecayed: float = UNDECAYED) -> dict[str, StageForecast]:
        chosen = ChosenLaw(current, None, "unknown")
        found = forecast_stages(run.family, run.plan, chosen, unique, later, undecayed=undecayed)
        return {forecast.stage: forecast for forecast in found}

    where = by(law)

    def point(stage: Stage, lowered_by: float = 0.0) -> Point | None:
        found = where[stage.name]
        if found.parameters is None or found.tokens is None:
            return None
        return Point(found.parameters, found.tokens, losses[stage.name] * math.exp(-lowered_by))

    known = [stage for stage in run.plan.stages if stage.name in losses]
    members = [stage for stage in known if stage.member]
    branches = [stage for stage in members if isinstance(stage.source, Continue) and stage.parent in losses]
    above = []
    for branch in branches:
        late, early = point(branch), point(run.plan.stage(str(branch.parent)))
        if late and early:
            by_law = law.predict(early.parameters, early.tokens) / law.predict(late.parameters, late.tokens)
            above.append(math.log(early.loss / late.loss / by_law))
    undecayed = (UNDECAYED + sum(above)) / (1 + len(above))
    settled = {branch.parent for branch in branches}
    waiting = [stage for stage in known if not stage.member and stage.name not in settled]
    points = [*map(point, members), *(point(stage, undecayed) for stage in waiting)]
    return by(updated(law, [each for each in points if each]), undecayed)


def _record(forecast: StageForecast) -> dict[str, Any]:
    return {"loss": forecast.loss, "low": forecast.low, "high": forecast.high, "level": forecast.level}


def _text(forecast: StageForecast) -> str:
    between = "" if forecast.low is None else f" ({forecast.low:.3f} to {forecast.high:.3f})"
    return f"{forecast.loss:.3f}{between}"
