"""Ranks candidates by a law, and says which cannot be told apart, which are risky, and when to keep the default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.laws.rates import rate_rules
from kinfolk.schedule.candidates import extended
from kinfolk.schedule.law import Measured, ScheduleLaw, Settings
from kinfolk.schedule.shapes import NamedSchedule, Schedule, rates
from kinfolk.schedule.stability import Risk


@dataclass(frozen=True)
class Ranked:
    """A candidate with its forecast."""

    schedule: NamedSchedule
    loss: float
    low: float
    high: float
    tied: bool
    """Whether it cannot be told from the best."""
    risk: Risk
    probability: float | None
    """Of divergence; None without enough diverged runs."""
    outside: dict[str, str]
    """In which ways it lies outside the fitted range: what does, and a sentence about it."""


@dataclass(frozen=True)
class Ranking:
    """Candidates from the best on, those refused for their risk last, and what to do."""

    law: ScheduleLaw
    steps: int
    tokens: float | None
    size: float | None
    after: NamedSchedule | None
    """The finished run that the candidates extend."""
    candidates: tuple[Ranked, ...]
    default: Ranked
    default_basis: str
    tie: float
    """Forecasts closer than this, in nats, cannot be told apart."""
    keep_default: bool
    choice: Ranked
    verdict: str
    warnings: tuple[str, ...]

    @property
    def tied(self) -> tuple[Ranked, ...]:
        return tuple(each for each in self.candidates if each.tied)


def horizon(
    law: ScheduleLaw, tokens: float | None, steps: int | None, tokens_per_step: float | None
) -> tuple[int, list[str]]:
    """The steps that `tokens` are, and what was assumed for it; KinfolkError for what makes no horizon."""
    if steps is not None:
        if steps < 2:
            raise KinfolkError(f"{steps} steps are no run", where="--steps", fix="give more")
        return steps, []
    if tokens is None or not (math.isfinite(tokens) and tokens > 0):
        raise KinfolkError("the horizon is missing", where="--tokens", fix="give --tokens or --steps")
    each = tokens_per_step or law.fitted.tokens_per_step
    if each is None:
        longest = law.fitted.steps[1]
        return longest, [
            f"the law does not know how many tokens a step has: {tokens:.4g} tokens are taken for its longest horizon, "
            f"{longest:,} steps of {tokens / longest:,.0f} tokens; --tokens-per-step says it"
        ]
    found = round(tokens / each)
    if found < 2:
        raise KinfolkError(
            f"{tokens:g} tokens are less than two steps of {each:g}", where="--tokens", fix="give more tokens"
        )
    return found, []


def rank(
    law: ScheduleLaw,
    schedules: Sequence[NamedSchedule],
    *,
    tokens: float | None = None,
    size: float | None = None,
    default: NamedSchedule | None = None,
    after: NamedSchedule | None = None,
    notes: Sequence[str] = (),
) -> Ranking:
    """Rank schedules of one horizon.

    `default` is what would be used without a law; where it is None, it is the best measured setting, stretched to the
    horizon: what a sensible person would copy. With `after` the schedules extend that finished run. KinfolkError
    without candidates, or if every one of them is refused for its risk.
    """
    if not schedules:
        raise KinfolkError("there are no candidates", fix="give peaks, shapes, decay fractions and end ratios")
    steps = schedules[0].steps
    usual, basis = (default, "given") if default else _best_measured(law, steps, schedules)
    whole = {each: extended(after, each) if after else each for each in (*schedules, usual)}
    forecasts = {each: float(law.predict(schedule)[0]) for each, schedule in whole.items()}
    odd = [each for each, loss in forecasts.items() if not math.isfinite(loss)]
    if odd:
        raise KinfolkError(f"the law has no value at {odd[0]}", where="--law", fix="fit it to runs like it")
    allowed = [each for each in schedules if law.stability.risk(each, size)[0] != "refused"]
    if not allowed:
        raise KinfolkError(
            f"every peak is more than half above {law.stability.largest_stable:g}, the largest seen stable",
            where="--peaks",
            fix="give lower peaks, or fit runs with higher ones",
        )
    best = min(allowed, key=lambda each: forecasts[each])
    tie = law.tie_at(forecasts[best], steps + (after.steps if after else 0))

    def ranked(schedule: NamedSchedule) -> Ranked:
        loss = forecasts[schedule]
        half = float(law.half_width(whole[schedule])[0])
        risk, probability = law.stability.risk(schedule, size)
        return Ranked(
            schedule,
            loss,
            loss * math.exp(-half),
            loss * math.exp(half),
            risk != "refused" and loss - forecasts[best] <= tie,
            risk,
            probability,
            law.fitted.outside(schedule),
        )

    order = sorted(map(ranked, schedules), key=lambda each: (each.risk == "refused", each.loss))
    standing = ranked(usual)
    keep = standing.tied
    return Ranking(
        law=law,
        steps=steps,
        tokens=tokens,
        size=size,
        after=after,
        candidates=tuple(order),
        default=standing,
        default_basis=basis,
        tie=tie,
        keep_default=keep,
        choice=standing if keep else order[0],
        verdict=_verdict(order, standing, keep, tie),
        warnings=(*notes, *_warnings(law, whole[best], steps, size, after)),
    )


def _best_measured(law: ScheduleLaw, steps: int, schedules: Sequence[NamedSchedule]) -> tuple[NamedSchedule, str]:
    """What is copied without a law: the best run of the longest measured horizon, with its own warm-up."""
    if not law.measured:
        return schedules[0], "the first candidate, as no measured run has named settings"
    longest = max(run.settings.steps for run in law.measured)
    best: Measured = min((run for run in law.measured if run.settings.steps == longest), key=lambda run: run.loss)
    return best.settings.schedule(steps), f"copied from the best run of {longest:,} steps, measured {best.loss:.4f}"


def _verdict(order: Sequence[Ranked], default: Ranked, keep: bool, tie: float) -> str:
    gain = default.loss - order[0].loss
    tied = sum(each.tied for each in order)
    if keep:
        return (
            f"no significant difference: keep the default (the best candidate is forecast {gain:.4f} nats below it; "
            f"less than {tie:.4f} cannot be told)"
        )
    many = f"; {tied} candidates cannot be told from it" if tied > 1 else ""
    return f"change: {describe(order[0].schedule)} is forecast {gain:.4f} nats below the default (tie: {tie:.4f}){many}"


def describe(schedule: NamedSchedule) -> str:
    """A schedule in a few words.

    >>> describe(NamedSchedule(steps=100, peak=1e-3, shape="linear", decay_fraction=0.2, end_ratio=0.1))
    'peak 0.001, linear 20 % to 0.1'
    """
    if schedule.decay_steps == 0:
        return f"peak {schedule.peak:g}, constant"
    share = f"{schedule.decay_steps / schedule.steps:.0%}".replace("%", " %")
    return f"peak {schedule.peak:g}, {schedule.shape} {share} to {schedule.end_ratio:g}"


def _warnings(
    law: ScheduleLaw, best: Schedule, steps: int, size: float | None, after: NamedSchedule | None
) -> list[str]:
    found = list(law.cautions)
    longest = law.fitted.steps[1]
    total = steps + (after.steps if after else 0)
    if total > longest:
        found.append(f"horizon {total:,} steps is outside the fitted {longest:,}: intervals are wider")
    if after is not None:
        found.append(
            "an extension: the law has seen no rate that rises again after a decay, so this is an extrapolation; it "
            "holds for more of the same data, and says nothing of other data"
        )
        if float(rates(after)[-1]) < 1e-9 * after.peak:
            found.append("the finished run ended at a rate of 0: what it learned in the decay is partly lost again")
    fitted_size = law.fitted.size
    if size is not None and fitted_size is None:
        found.append(f"the law does not know which size it was fitted to; {size:.4g} parameters may be outside")
    elif size is not None and fitted_size is not None and not 0.99 < size / fitted_size < 1.01:
        rules = zip(rate_rules(size, 20 * size), rate_rules(fitted_size, 20 * fitted_size), strict=True)
        factors = ", ".join(f"{here.name} {here.peak / there.peak:.2g}" for here, there in rules)
        found.append(
            f"size {size:.4g} is outside the fitted {fitted_size:.4g}: the order of schedules transfers better than "
            f"the losses, which are those of the fitted size; rules for the peak would multiply it by: {factors}"
        )
    return found


def rank_document(ranking: Ranking) -> dict[str, Any]:
    """A ranking as JSON."""
    return {
        "kind": ranking.law.kind,
        "source": ranking.law.source,
        "steps": ranking.steps,
        "tokens": ranking.tokens,
        "size": ranking.size,
        "after": Settings.of(ranking.after).model_dump(mode="json") if ranking.after else None,
        "verdict": ranking.verdict,
        "keep_default": ranking.keep_default,
        "choice": _document(ranking.choice),
        "best": _document(ranking.candidates[0]),
        "default": {**_document(ranking.default), "basis": ranking.default_basis},
        "tie": ranking.tie,
        "tied": len(ranking.tied),
        "warnings": list(ranking.warnings),
        "candidates": [{"rank": place, **_document(each)} for place, each in enumerate(ranking.candidates, start=1)],
    }


def _document(each: Ranked) -> dict[str, Any]:
    return {
        **Settings.of(each.schedule).model_dump(mode="json"),
        "predicted": each.loss,
        "low": each.low,
        "high": each.high,
        "tied": each.tied,
        "risk": each.risk,
        "divergence_probability": each.probability,
        "warnings": list(each.outside.values()),
    }
