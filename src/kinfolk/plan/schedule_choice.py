"""From a schedule law to a family's recipe: candidates that it can say and the family allows, and the choice."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Schedule
from kinfolk.family.spec import Family
from kinfolk.plan.schedule_probe import own_steps
from kinfolk.plan.stages import DecayShape
from kinfolk.plan.strategies import plan_family, rate_over
from kinfolk.schedule.candidates import ENDS, FRACTIONS, fitted_peaks
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.own_runs import stage_schedule
from kinfolk.schedule.rank import Ranking, describe, rank
from kinfolk.schedule.shapes import NamedSchedule


class Chosen(BaseModel):
    """What a recipe says of the schedule, chosen by a law."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    peak_learning_rate: float
    schedule: Schedule
    keep_default: bool
    """Whether this is what the recipe said before."""
    verdict: str

    def applied(self, family: Family) -> Family:
        """The family with this schedule."""
        return _with_schedule(family, self.peak_learning_rate, self.schedule)


def choose_schedule(family: Family, law: ScheduleLaw) -> tuple[Chosen, Ranking]:
    """The best schedule for the smallest member's own steps; the recipe's where the law cannot tell the two apart.

    What the probe has not varied, shape and last rate, changes only if no candidate that keeps them is as good.

    A candidate is a recipe: peak, shape, decay share and last rate within what the runs had (another shape may be, and
    is marked), with the warm-up of the family. Those that the family does not allow, and peaks that may diverge, are no
    candidates.
    """
    default = (family.recipe.peak_learning_rate, family.recipe.schedule)
    steps = own_steps(family)
    found = {_named(family, recipe, steps): recipe for recipe in _candidates(family, law)}
    stable = [schedule for schedule in found if law.stability.risk(schedule)[0] == "low"]
    if not stable:
        raise KinfolkError(
            "no schedule that the family allows ran without diverging",
            where=law.source,
            fix="lower recipe.peak_learning_rate, and probe again in another --run",
        )
    ranking = rank(
        law,
        stable,
        tokens=float(steps * family.recipe.tokens_per_step),
        size=law.fitted.size,
        default=_named(family, default, steps),
        notes=_notes(family, law, steps),
    )
    ranking = replace(_least_changed(ranking), warnings=(*ranking.warnings, *_edge(ranking)))
    peak, schedule = default if ranking.keep_default else found[ranking.choice.schedule]
    return (
        Chosen(peak_learning_rate=peak, schedule=schedule, keep_default=ranking.keep_default, verdict=ranking.verdict),
        ranking,
    )


def _candidates(family: Family, law: ScheduleLaw) -> Iterator[tuple[float, Schedule]]:
    """Peaks of the recipe, and schedules."""
    own, range_ = family.recipe.schedule, law.fitted
    shares = {*FRACTIONS, own.decay_share}
    if range_.decay_fraction is not None:
        low, high = range_.decay_fraction
        shares = {share for share in shares if low - 0.01 <= share <= high + 0.01}
    low, high = range_.end_ratio
    ends = {end for end in (*ENDS, own.end_ratio) if low - 0.01 <= end <= high}
    for shape, share, end in product(get_args(DecayShape), sorted(shares), sorted(ends)):
        changed = own.model_copy(update={"decay_shape": shape, "decay_share": share, "end_ratio": end})
        if _is_allowed(family, changed):
            for peak in fitted_peaks(law):
                yield peak * _recipe_peak_of_first(family), changed


def _is_allowed(family: Family, schedule: Schedule) -> bool:
    """Whether the family can be built with a schedule."""
    try:
        plan_family(_with_schedule(family, family.recipe.peak_learning_rate, schedule))
    except (ValidationError, KinfolkError):
        return False
    return True


def _with_schedule(family: Family, peak: float, schedule: Schedule) -> Family:
    """The family with another schedule; ValidationError where it does not allow it."""
    fields = family.model_dump(mode="json", exclude_none=True)
    fields["recipe"]["peak_learning_rate"] = peak
    fields["recipe"]["schedule"] = schedule.model_dump(mode="json", exclude_none=True)
    return Family.model_validate(fields)


def _named(family: Family, recipe: tuple[float, Schedule], steps: int) -> NamedSchedule:
    """What a recipe's peak and schedule are over so many steps of the smallest member."""
    peak, schedule = recipe
    rate = rate_over(schedule, steps, peak / _recipe_peak_of_first(family), is_grown=False)
    return stage_schedule(asdict(rate), steps)


def _recipe_peak_of_first(family: Family) -> float:
    """The recipe's peak over that of the smallest member."""
    return family.recipe.peak_learning_rate / family.peak_learning_rate(family.members[0])


def _least_changed(ranking: Ranking) -> Ranking:
    """The ranking with the best of the tied candidates that keep the default's shape and last rate as its choice."""
    default = ranking.default.schedule
    kept = [
        each
        for each in ranking.tied
        if (each.schedule.shape, each.schedule.end_ratio) == (default.shape, default.end_ratio)
    ]
    if ranking.keep_default or not kept or kept[0] is ranking.choice:
        return ranking
    chosen = f"{describe(kept[0].schedule)} is taken, which keeps shape and last rate"
    return replace(ranking, choice=kept[0], verdict=f"{ranking.verdict}; {chosen}")


def _edge(ranking: Ranking) -> list[str]:
    """Whether the best candidate lies where the probe ended, and not where the loss was lowest."""
    low, high = ranking.law.fitted.peak_lr
    peak = ranking.candidates[0].schedule.peak
    found = []
    if peak > high * 0.999:
        found.append("the best candidate has the highest peak that ran: above it may be better")
    if peak < low * 1.001:
        found.append("the best candidate has the lowest peak that ran: below it may be better")
    return found


def _notes(family: Family, law: ScheduleLaw, steps: int) -> list[str]:
    found = [
        "the warm-up is the recipe's: the probe does not vary it",
        "noise is assumed, as no run was repeated"
        if law.noise_basis == "assumed"
        else "noise is that of one repeat with other weights, on the same data",
    ]
    longest = law.fitted.steps[1]
    if steps > longest:
        found.append(f"the probe's longest run has {longest:,} of the member's {steps:,} steps")
    if family.patch is not None:
        found.append("the probe reads tokens; the family's first part reads patches")
    return found
