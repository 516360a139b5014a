"""The peak learning rate of every member by every rule, by rate transfer and by fitted schedule laws, side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from kinfolk.family.peak_rules import PeakRule, Size, peak_ratio
from kinfolk.family.rate_transfer import Factors, parameter_factors
from kinfolk.family.shapes import parameter_count
from kinfolk.family.spec import Family, Member
from kinfolk.laws.rates import RateRule, deepseek, olmo_ladder, step_law
from kinfolk.plan.stages import Stage
from kinfolk.plan.strategies import independent
from kinfolk.schedule.best_peak import BestPeak, best_peak, why_silent
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.own_runs import stage_schedule

APART = 3.0
"""Rules that are further apart than this factor are warned of."""
SAME_SIZE = 0.01
"""Relative difference up to which a law's model and a member are of one size."""
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class NamedLaw:
    """A fitted schedule law, and the file that it came from."""

    name: str
    law: ScheduleLaw


def peaks_document(family: Family, laws: Sequence[NamedLaw] = ()) -> dict[str, Any]:
    """Every member's peak in use, by every rule, under rate transfer and by laws; how far these are apart; warnings.

    Published rules are given outright and anchored: as the ratio between members, from the recipe's peak of the first.
    A law speaks of the member whose size it was fitted to, in the steps of that member trained alone; to the others its
    peak is carried by the recipe's rule.
    """
    alone = {stage.member: stage for stage in independent(family.model_copy(update={"patch": None})).stages}
    stages = [alone[member.name] for member in family.members]
    said = [_law(family, named, stages) for named in laws]
    members = [_member(family, index, stage, said) for index, stage in enumerate(stages)]
    recipe = family.recipe
    return {
        "family": family.name,
        "peak_rule": recipe.peak_rule,
        "peak_exponent": recipe.peak_exponent,
        "peak_learning_rate": recipe.peak_learning_rate,
        "rate_transfer": recipe.rate_transfer.rule,
        "tokens_per_step": recipe.tokens_per_step,
        "members": members,
        "laws": [each.document for each in said],
        "warnings": [*_warnings(family, members), *(warning for each in said for warning in each.warnings)],
    }


def _published(size: Size) -> dict[PeakRule, RateRule]:
    return {
        "step_law": step_law(size.non_embedding, size.tokens),
        "deepseek": deepseek(size.non_embedding, size.tokens),
        "olmo_ladder": olmo_ladder(size.non_embedding, size.tokens),
    }


def _member(family: Family, index: int, stage: Stage, said: Sequence["_Said"]) -> dict[str, Any]:
    member = family.members[index]
    size = family.size(member)
    rules: dict[str, dict[str, Any]] = {
        "exponent": {"absolute": None, "anchored": family.peak_by("exponent", member), "outside": []}
    }
    for name, rule in _published(size).items():
        rules[name] = {
            "absolute": rule.peak,
            "anchored": family.peak_by(name, member),
            "tokens_per_step": rule.tokens_per_step,
            "source": rule.source,
            "outside": list(rule.outside),
        }
    return {
        "name": member.name,
        "parameters": {"counted": size.counted, "non_embedding": size.non_embedding},
        "tokens": size.tokens,
        "steps": stage.batches,
        "peak_learning_rate": family.peak_learning_rate(member),
        "basis": "its own" if member.peak_learning_rate is not None else family.recipe.peak_rule,
        "rules": rules,
        "rate_transfer": _rate_transfer(family, member),
        "laws": [each.peaks[index] for each in said],
        "apart": {
            "absolute": _spread([rule["absolute"] for rule in rules.values() if rule["absolute"] is not None]),
            "anchored": _spread([rule["anchored"] for rule in rules.values()]),
        },
    }


def _spread(peaks: Sequence[float]) -> float:
    return max(peaks) / min(peaks)


def _rate_transfer(family: Family, member: Member) -> dict[str, Any] | None:
    """The rates that transfer gives to hidden matrices, under the recipe's rule or, without one, under muP."""
    base, rule = family.base_shape, family.recipe.rate_transfer.rule
    if member.shape is None or base is None:
        return None
    shown = "mup" if rule == "none" else rule
    factors = parameter_factors(member.shape, base, shown, family.model.architecture)
    hidden = [factors[name].rate for name in MATRICES]
    peak = family.recipe.peak_learning_rate
    return {
        "rule": shown,
        "in_use": rule != "none",
        "factors": {"smallest": min(hidden), "largest": max(hidden)},
        "hidden_matrices": {"smallest": peak * min(hidden), "largest": peak * max(hidden)},
        "embedding": peak * factors.get("embed_tokens", Factors()).rate,
    }


@dataclass(frozen=True)
class _Said:
    """What a law says of every member."""

    document: dict[str, Any]
    peaks: tuple[dict[str, Any] | None, ...]
    warnings: tuple[str, ...]


def _law(family: Family, named: NamedLaw, stages: Sequence[Stage]) -> _Said:
    law, name = named.law, named.name
    place = next((place for place, member in enumerate(family.members) if _same(family, member, law)), None)
    why = why_silent(law)
    if why is None and place is None:
        known = law.fitted.size
        why = (
            "it does not know the size of its model (`schedule fit --size` says it)"
            if known is None
            else f"its model of {known:.4g} parameters is no member"
        )
    document = {"law": name, "kind": law.kind, "size": law.fitted.size, "member": None, "silent": why}
    if why is not None or place is None:
        return _Said(document, (None,) * len(stages), (f"{name} says nothing: {why}",))
    schedule = stage_schedule(asdict(stages[place].rate), stages[place].batches)
    found, own = best_peak(law, schedule), family.members[place]
    peaks = tuple(_carried(family, found, own, member) for member in family.members)
    document |= {"member": own.name, "loss": found.loss, "at_edge": found.at_edge}
    return _Said(
        document, peaks, tuple(f"{name}: {each}" for each in _law_warnings(family, law, found, schedule.steps))
    )


def _same(family: Family, member: Member, law: ScheduleLaw) -> bool:
    """Whether a law was fitted to models of a member's size, in whichever way these were counted."""
    size, known = family.size(member), law.fitted.size
    counts = {size.counted, size.non_embedding}
    if member.shape is not None:
        counts.add(parameter_count(member.shape, family.embedding_rows, family.model.architecture).total)
    return known is not None and any(abs(count / known - 1) <= SAME_SIZE for count in counts)


def _carried(family: Family, found: BestPeak, own: Member, member: Member) -> dict[str, Any]:
    """A law's peak for a member: as it is at its own size, elsewhere carried by the recipe's rule."""
    recipe, ratio = family.recipe, 1.0
    if member is not own:
        ratio = peak_ratio(recipe.peak_rule, family.size(member), family.size(own), recipe.peak_exponent)
    transfers = recipe.rate_transfer.rule
    rule = recipe.peak_rule if transfers == "none" else transfers
    return {
        "peak": found.peak * ratio,
        "low": found.low * ratio,
        "high": found.high * ratio,
        "basis": "fitted size" if member is own else f"scaled by {rule}",
    }


def _law_warnings(family: Family, law: ScheduleLaw, found: BestPeak, steps: int) -> list[str]:
    said = []
    if found.at_edge:
        low, high = law.fitted.peak_lr
        said.append(
            f"the best peak, {found.peak:g}, is at the edge of the fitted {low:g} to {high:g}, and may lie beyond"
        )
    if not law.fitted.steps[0] <= steps <= law.fitted.steps[1]:
        said.append(f"{steps:,} steps are outside the fitted {law.fitted.steps[0]:,} to {law.fitted.steps[1]:,}")
    batch = law.fitted.tokens_per_step
    if batch is not None and abs(batch / family.recipe.tokens_per_step - 1) > SAME_SIZE:
        said.append(
            f"it was fitted to steps of {batch:,.0f} tokens, and the recipe's have {family.recipe.tokens_per_step:,}"
        )
    return said


def _warnings(family: Family, members: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    recipe = family.recipe
    for kind, meaning in (("absolute", "outright"), ("anchored", "from the peak of the first member")):
        wide = [member for member in members if member["apart"][kind] > APART]
        if wide:
            worst = max(wide, key=lambda member: float(member["apart"][kind]))
            found.append(
                f"the rules, {meaning}, are {worst['apart'][kind]:.3g} times apart for {worst['name']}: trust none of "
                "them without a run"
            )
    for name in [name for name in members[0]["rules"] if name != "exponent"]:
        out = [member for member in members if member["rules"][name]["outside"]]
        if out:
            last = out[-1]["rules"][name]
            found.append(
                f"{name} was not fitted for {', '.join(member['name'] for member in out)} ({last['source']}); "
                f"{out[-1]['name']}: {'; '.join(last['outside'])}"
            )
    for member in members:
        peaks = [rule["absolute"] for rule in member["rules"].values() if rule["absolute"] is not None]
        if not min(peaks) / APART <= member["peak_learning_rate"] <= APART * max(peaks):
            found.append(
                f"{member['name']}'s peak of {member['peak_learning_rate']:.3g} is far from what rules say outright, "
                f"{min(peaks):.2g} to {max(peaks):.2g}"
            )
    for before, member in pairwise(members):
        if member["peak_learning_rate"] > 1.001 * before["peak_learning_rate"]:
            found.append(f"the peak rises from {before['name']} to {member['name']}: larger models want less")
    batches = [rule["tokens_per_step"] for name, rule in members[0]["rules"].items() if name != "exponent"]
    if not min(batches) / APART <= recipe.tokens_per_step <= APART * max(batches):
        found.append(
            f"rules' own peaks belong to their own batches, {min(batches):,.0f} to {max(batches):,.0f} tokens for "
            f"{members[0]['name']}; the recipe's has {recipe.tokens_per_step:,}"
        )
    if recipe.optimizer.matrices == "muon":
        found.append("all rules are for Adam; none was fitted to Muon")
    if family.members[0].shape is None:
        found.append("members have no shapes: rules take their parameters for those without vocabulary tables")
    return found
