"""A designed family as JSON: every member with its prices, what held the design, and what it costs in every unit."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import parameter_count
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.rates import rate_rules, spread
from kinfolk.laws.serving import cheapest_to_serve
from kinfolk.plan.compare import compare_strategies
from kinfolk.plan.credit import loss_matched_credits
from kinfolk.plan.design import Design, serving_flops
from kinfolk.plan.document import plan_document
from kinfolk.plan.family_file import family_fields
from kinfolk.plan.layouts import engine_layout
from kinfolk.plan.machines import GPU_MEMORY
from kinfolk.plan.memory import Portion, memory_by_part
from kinfolk.plan.wish import plain


def design_document(made: Design, chosen: ChosenLaw) -> dict[str, Any]:
    """What `kinfolk plan --budget ... --json` prints: the plan's document, and with it what was chosen and why."""
    wish, family = made.wish, made.family
    unique = None if wish.unique_tokens is None else round(wish.unique_tokens)
    plan = plan_document(family, made.plan, unique, chosen)
    forecasts = {member["member"]: member for member in plan["forecast"]["members"]}
    members = [_member(made, index, forecasts[member.name], chosen.law) for index, member in enumerate(family.members)]
    served = serving_flops(wish, [family.parameters(member) for member in family.members])
    spent = plan["total"][wish.budget.counting] + served
    weights = wish.weights or (1.0,) * len(members)
    credits = _credits(made, members, chosen.law)
    losses = [member["forecast"]["loss"] for member in members]
    known = [loss for loss in losses if loss is not None]
    constraints = _constraints(made, plan, members, spent)
    return plan | {
        "budget": {
            "given": wish.budget.given,
            "flops": wish.budget.flops,
            "counting": wish.budget.counting,
            "spent": spent,
            "serving": served,
            "left_share": max(0.0, 1 - spent / wish.budget.flops),
        },
        "objective": sum(w * loss for w, loss in zip(weights, known, strict=True)) / sum(weights)
        if len(known) == len(losses)
        else None,
        "constraints": constraints,
        "members": members,
        "cost": {**plan["total"], **wish.machines.cost(plan["total"]["matmul"])},
        "machines": wish.machines.to_dict(),
        "strategies": _strategies(made, unique, plan),
        "credit": {"assumed": wish.credit, "by_law": credits},
        "warnings": plan["warnings"] + _cautions(made, members, constraints, spent, credits),
        "family_file": family_fields(family),
    }


def _member(made: Design, index: int, forecast: dict[str, Any], law: LossLaw) -> dict[str, Any]:
    wish, family = made.wish, made.family
    member = family.members[index]
    assert member.shape is not None
    count = parameter_count(member.shape, made.vocabulary, family.model.architecture)
    tokens = family.tokens(member)
    rules = rate_rules(count.non_embedding, tokens)
    peaks, batches = spread(rules)
    memory = memory_by_part(
        member.shape,
        made.vocabulary,
        family.model.architecture,
        engine_layout(wish.machines.gpus),
        Portion(family.model.context_length),
        family.recipe.optimizer.matrices == "muon",
    )
    return {
        "name": member.name,
        "shape": member.shape.model_dump(),
        "parameters": {"total": count.total, "non_embedding": count.non_embedding},
        "tokens": tokens,
        "ratio": tokens / count.total,
        "peak_learning_rate": family.peak_learning_rate(member),
        "tokens_per_step": family.recipe.tokens_per_step,
        "rules": [
            {"name": rule.name, "source": rule.source, "peak": rule.peak, "tokens_per_step": rule.tokens_per_step}
            for rule in rules
        ],
        "rule_spread": {"peak": peaks, "tokens_per_step": batches},
        "forecast": forecast,
        "price": {
            "effective_compute": _effective_compute(law, forecast),
            "compute_law": 1.0,
            "serving": _serving(law, forecast, wish.served[index] if wish.served else None),
        },
        "memory": {**memory, "fits": memory["total"] <= (wish.memory or GPU_MEMORY[wish.machines.gpu])},
    }


def _effective_compute(law: LossLaw, forecast: dict[str, Any]) -> float | None:
    if forecast["loss"] is None or min(law.A, law.B, law.alpha, law.beta) <= 0:
        return None
    return law.effective_compute(forecast["parameters"], forecast["tokens"])


def _serving(law: LossLaw, forecast: dict[str, Any], served: float | None) -> dict[str, float] | None:
    """The size that would reach the member's loss at the least cost over its life (arXiv 2401.00448)."""
    if served is None or forecast["loss"] is None or min(law.A, law.B, law.alpha, law.beta) <= 0:
        return None
    parameters, tokens = forecast["parameters"], forecast["tokens"]
    best = cheapest_to_serve(law, forecast["loss"], served)
    lifetime = 6 * parameters * tokens + 2 * parameters * served
    return {
        "served_tokens": served,
        "serving_flops": 2 * parameters * served,
        "cheapest_parameters": best.parameters,
        "cheapest_tokens": best.tokens,
        "lifetime_over_cheapest": lifetime / best.compute,
    }


ROUNDING = 0.005
"""By how much whole steps may leave a limit behind before it counts as broken."""


def _constraints(
    made: Design, plan: dict[str, Any], members: list[dict[str, Any]], spent: float
) -> list[dict[str, Any]]:
    """Every limit in words, how much of it is used (1 is all), whether it holds the family where it is or is broken."""
    wish = made.wish
    sizes = [member["parameters"]["total"] for member in members]
    ratios = [member["ratio"] for member in members]
    compute = [size * member["tokens"] for size, member in zip(sizes, members, strict=True)]
    steepest = min((large / small for small, large in pairwise(compute)), default=math.inf)
    memory = max(member["memory"]["total"] for member in members)
    served = "training and serving cost" if wish.served else "the family costs"
    found: list[dict[str, Any]] = []

    def limit(name: str, value: float | None, used: Callable[[float], float], text: str) -> None:
        if value is None:
            return
        share = used(value)
        broken = share > 1 + ROUNDING
        reached = not broken and (name in made.binding or share > 0.999)
        text = text.format(value)
        found.append({"name": name, "value": value, "used": share, "binding": reached, "broken": broken, "text": text})

    limit("budget", wish.budget.flops, lambda most: spent / most, f"{served} at most {wish.budget.given}")
    limit(
        "deadline",
        wish.deadline,
        lambda most: wish.machines.cost(plan["total"]["matmul"])["hours"] / most,
        f"training takes at most {{:g}} hours on {wish.machines.gpus} GPUs",
    )
    limit(
        "growth",
        wish.growth,
        lambda least: least / steepest,
        "each member has at least {:g} times the compute of the one before it",
    )
    limit(
        "fewest", wish.fewest, lambda least: least / min(ratios), "each member has at least {:g} tokens per parameter"
    )
    limit("most", wish.most, lambda most: max(ratios) / most, "no member has more than {:,.6g} tokens per parameter")
    limit(
        "read",
        wish.unique_tokens,
        lambda unique: plan["data"]["tokens_read"] / (wish.epochs * unique),
        f"no line of stages reads the {plain(wish.unique_tokens or 0)} unique tokens more than {wish.epochs:g} times",
    )
    limit(
        "memory",
        wish.memory,
        lambda most: memory / most,
        f"training takes at most {(wish.memory or 0) / 1e9:.4g} GB of each GPU",
    )
    least_text = f"the smallest member has at least {plain(wish.smallest or 0)} parameters"
    limit("smallest", wish.smallest, lambda least: least / sizes[0], least_text)
    most_text = f"the largest member has at most {plain(wish.largest or 0)} parameters"
    limit("largest", wish.largest, lambda most: sizes[-1] / most, most_text)
    return found


def _strategies(made: Design, unique: int | None, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the same members would cost by every strategy, with the saving of this one."""
    rows = []
    for row in compare_strategies(made.family, "the designed family", unique):
        cost = None if row["refused"] else row["total"]
        rows.append(
            {
                "strategy": row["strategy"],
                "patch": row["patch"],
                "refused": row["refused"],
                "total": cost,
                "saving_of_plan": None if cost is None else 1 - plan["total"]["six_nd"] / cost["six_nd"],
            }
        )
    return rows


def _credits(made: Design, members: list[dict[str, Any]], law: LossLaw) -> list[float | None]:
    """What the law says each parent is worth; empty where nothing grows or the law cannot forecast."""
    points = [(member["forecast"]["parameters"], member["forecast"]["tokens"]) for member in members]
    forecast = all(member["forecast"]["loss"] is not None for member in members)
    if made.wish.strategy == "independent" or not forecast:
        return []
    return loss_matched_credits(law, [size for size, _ in points], [tokens for _, tokens in points])


def _cautions(
    made: Design,
    members: list[dict[str, Any]],
    constraints: list[dict[str, Any]],
    spent: float,
    credits: list[float | None],
) -> list[str]:
    wish = made.wish
    found = [f"a limit is broken, by {each['used'] - 1:.1%}: {each['text']}" for each in constraints if each["broken"]]
    low = min((credit for credit in credits if credit is not None), default=wish.credit)
    if low < 0.9 * wish.credit:
        found.append(
            f"by the law a parent here is worth as little as {low:.2f} of its compute to the next member, not the "
            f"assumed {wish.credit:g}: over-trained parents pay less of their children; --credit {low:.2f} or a lower "
            "--most is the cautious choice"
        )
    if spent < 0.98 * wish.budget.flops:
        reached = [each["name"] for each in constraints if each["binding"] and each["name"] != "budget"]
        held = f"; what holds the family is: {', '.join(reached) or 'rounding to whole steps'}"
        found.append(f"{1 - spent / wish.budget.flops:.0%} of the budget is not spent{'' if made.given else held}")
    unknown = [member["name"] for member in members if member["forecast"]["loss"] is None]
    if unknown:
        found.append(
            f"the law cannot forecast {', '.join(unknown)}, so that sizes and tokens chosen by it are a rough guess: "
            "fit a law to small runs of your own, or give --sizes"
        )
    asked = [[rule["tokens_per_step"] for rule in member["rules"]] for member in members]
    used = made.family.recipe.tokens_per_step
    for member, rules in zip(members, asked, strict=True):
        if not min(rules) / 2 <= used <= 2 * max(rules):
            found.append(
                f"the family's one batch of {used:,} tokens is far from the rules for {member['name']}, "
                f"{min(rules):,.0f} to {max(rules):,.0f}"
            )
    for before, member in pairwise(members):
        if member["peak_learning_rate"] > 1.001 * before["peak_learning_rate"]:
            found.append(
                f"the peak learning rate rises from {before['name']} to {member['name']}: larger models want less"
            )
    for member in members:
        peaks = [rule["peak"] for rule in member["rules"]]
        if not min(peaks) / 2 <= member["peak_learning_rate"] <= 2 * max(peaks):
            found.append(
                f"{member['name']}'s peak learning rate of {member['peak_learning_rate']:.3g} is far from the rules, "
                f"{min(peaks):.2g} to {max(peaks):.2g}"
            )
    heavy = [member["name"] for member in members if not member["memory"]["fits"]]
    if heavy:
        found.append(
            f"{', '.join(heavy)} does not fit into the memory of {wish.machines.gpus} {wish.machines.gpu}, even with "
            "one sequence at once: use more --gpus"
        )
    if wish.patch is not None:
        found.append(
            "the loss of patch-level training is on no published law: forecasts take patch tokens for whole tokens, "
            "an upper bound of what they are worth"
        )
    return found


def refuse_not_finite(document: Any, where: str = "the plan") -> None:
    """KinfolkError if a NaN or an infinity is anywhere in a document."""
    if isinstance(document, dict):
        for key, value in document.items():
            refuse_not_finite(value, f"{where}.{key}")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            refuse_not_finite(value, f"{where}[{index}]")
    elif isinstance(document, float) and not abs(document) < float("inf"):
        raise KinfolkError(f"is {document}", where=where, fix="fit the law again, or choose another budget")
