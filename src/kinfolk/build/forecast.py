"""Forecasts of a build that has a law: each finished member is held against its own, and the rest is forecast anew.

The law that the build began with lies in law.json; what it is now follows from that and the ledger, so that a build
that was killed goes on with the same forecasts. Only members are checked: an undecayed stage is on no law.
"""

from typing import Any

from kinfolk.build.run import LAW, BuildView, Run, later_tokens
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.loss import LossLaw, load_law
from kinfolk.laws.update import Point, updated
from kinfolk.plan.forecast import MemberForecast, forecast_members
from kinfolk.plan.stages import Stage


def check_forecast(run: Run, stage: Stage, view: BuildView) -> None:
    """Hold a member that has just been recorded against its forecast; nothing without a law."""
    path = run.folder / LAW
    if not path.exists():
        return
    law = load_law(path)
    losses = _losses(run, law)
    measured = losses.pop(str(stage.member), None)
    if measured is None:
        return
    before, after = dict(losses), {**losses, str(stage.member): measured}
    expected = _forecasts(run, law, before)[str(stage.member)]
    # What a published law says of other data is no forecast: the first member sets its level.
    is_forecast = bool(before) or law.standing not in ("published", "recomputed")
    inside = None
    if is_forecast and expected.low is not None and expected.high is not None:
        inside = expected.low <= measured <= expected.high
    rest = [forecast for name, forecast in _forecasts(run, law, after).items() if name not in after]
    run.ledger.append(
        "forecast_checked",
        member=stage.member,
        stage=stage.name,
        law=law.name,
        unit=law.unit,
        measured=measured,
        forecast=_record(expected) if is_forecast else None,
        inside=inside,
        rest=[{"member": each.member, **_record(each)} for each in rest],
    )
    if inside is not None:
        verdict = "inside" if inside else "OUTSIDE: check data, rates and growth before going on"
        view.say(f"{stage.member}  {law.unit} {measured:.4f}, forecast {_text(expected)}: {verdict}")
    for each in rest:
        if each.loss is not None:
            view.say(f"{each.member}  is now forecast to reach {_text(each)} {law.unit}")


def _losses(run: Run, law: LossLaw) -> dict[str, float]:
    """The loss of each finished member in the law's unit, in the order in which they were finished."""
    field = {"nats per token": "loss", "bits per byte": "bits_per_byte"}.get(law.unit)
    if field is None:
        return {}
    return {event["member"]: float(event["held_out"][field]) for event in run.ledger.events("member_finished")}


def _forecasts(run: Run, law: LossLaw, losses: dict[str, float]) -> dict[str, MemberForecast]:
    """Every member's forecast by the law with these members taken in."""
    unique, later = len(run.store.train), later_tokens(run.stores)

    def by(current: LossLaw) -> dict[str, MemberForecast]:
        found = forecast_members(run.family, run.plan, ChosenLaw(current, None, "unknown"), unique, later)
        return {forecast.member: forecast for forecast in found}

    where = by(law)
    points = [
        Point(member.parameters, member.tokens, losses[name])
        for name, member in where.items()
        if name in losses and member.parameters and member.tokens
    ]
    return by(updated(law, points))


def _record(forecast: MemberForecast) -> dict[str, Any]:
    return {"loss": forecast.loss, "low": forecast.low, "high": forecast.high, "level": forecast.level}


def _text(forecast: MemberForecast) -> str:
    between = "" if forecast.low is None else f" ({forecast.low:.3f} to {forecast.high:.3f})"
    return f"{forecast.loss:.3f}{between}"
