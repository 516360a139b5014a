"""From a budget to a family: sizes by a sweep over ladders of real shapes, tokens by the best split for each.

Which ladders are looked at does not depend on the budget, so that a larger budget never ends with a worse family.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.family.load import validate_family
from kinfolk.family.shapes import Shape, parameter_count
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.rates import rate_rules
from kinfolk.plan.allocate import Allocation, Limits, allocate, strategy_rule
from kinfolk.plan.costs import matmul_flops_per_token
from kinfolk.plan.ladder import shape_ladder
from kinfolk.plan.layouts import engine_layout
from kinfolk.plan.memory import Portion, memory_by_part
from kinfolk.plan.stages import Plan
from kinfolk.plan.strategies import plan_family
from kinfolk.plan.wish import Wish

SWEEP = tuple(1e6 * 2 ** (step / 8) for step in range(169))
"""Sizes of the largest member that are looked at where none are asked for: 1 M to 2 T parameters."""

DECAY_SHARE = 0.2
"""Of the schedule, where the strategy or patches need one that decays late."""

FEWEST_STEPS = 200
"""Of a stage; the batch is cut so that the shortest has as many."""


@dataclass(frozen=True)
class Candidate:
    """A ladder of shapes with the best split of the budget among them."""

    shapes: tuple[Shape, ...]
    vocabulary: int
    allocation: Allocation


@dataclass(frozen=True)
class Design:
    """A family for a wish, its plan, and which of the wish's limits made it what it is."""

    wish: Wish
    family: Family
    plan: Plan
    vocabulary: int
    binding: tuple[str, ...]
    """budget, deadline, growth, fewest, most, read, memory, smallest, largest."""
    sweep: tuple[tuple[float, float], ...]
    """Largest size and weighted mean loss of every ladder that was possible."""
    given: bool = False
    """Whether the family came from a file and is only held against the wish."""


def design(wish: Wish, chosen: ChosenLaw) -> Design:
    """The family that makes the weighted mean of the forecast losses least. KinfolkError where none is possible."""
    best: Candidate | None = None
    sweep, refusals = [], list[KinfolkError]()
    for sizes in _ladders(wish):
        try:
            candidate = _candidate(wish, sizes, chosen)
        except KinfolkError as error:
            refusals.append(error)
        else:
            largest = parameter_count(candidate.shapes[-1], candidate.vocabulary, wish.architecture).total
            sweep.append((float(largest), candidate.allocation.objective))
            if best is None or candidate.allocation.objective < best.allocation.objective:
                best = candidate
    if best is None:
        if refusals:
            raise next((error for error in refusals if "no shape" not in error.problem), refusals[0])
        raise KinfolkError(
            "no ladder of sizes lies in the range", where="--smallest and --largest", fix="widen the range"
        )
    family = _within_budget(wish, best)
    binding = list(best.allocation.binding)
    largest = parameter_count(best.shapes[-1], best.vocabulary, wish.architecture).total
    if any(error.where == "--memory" for error in refusals) and largest >= max(size for size, _ in sweep):
        binding.append("memory")
    if wish.sizes is None and largest >= max(size for size, _ in sweep) and wish.largest:
        binding.append("largest")
    if wish.sizes is None and largest <= min(size for size, _ in sweep) and wish.smallest:
        binding.append("smallest")
    return Design(wish, family, plan_family(family), best.vocabulary, tuple(binding), tuple(sweep))


def hold(family: Family, wish: Wish, origin: str | None = None) -> Design:
    """A family that is given, beside a wish (with `wishes_of` the family) whose limits it may keep or break."""
    return Design(wish, family, plan_family(family, origin), family.embedding_rows, (), (), given=True)


def wishes_of(family: Family, origin: str) -> dict[str, Any]:
    """The fields of a `Wish` that a family has settled; KinfolkError for one whose cost in hours nobody can tell."""
    sizes: list[float] = []
    for index, member in enumerate(family.members):
        if member.shape is None:
            raise KinfolkError(
                f"{member.name} has no shape, only a number of parameters: what it costs in hours is not known",
                where=f"{origin}: members[{index}]",
                fix="give every member a shape, or leave the budget out",
            )
        size = parameter_count(member.shape, family.embedding_rows, family.model.architecture).total
        if sizes and size < 1.05 * sizes[-1]:
            raise KinfolkError(
                f"{member.name} is not larger than the member before it by 5 %",
                where=f"{origin}: members[{index}]",
                fix="order members from small to large, or leave the budget out",
            )
        sizes.append(float(size))
    return {
        "sizes": tuple(sizes),
        "strategy": family.strategy,
        "credit": family.parent_credit,
        "patch": family.patch,
        "epochs": family.recipe.max_epochs,
        "vocabulary": family.embedding_rows,
        "context": family.model.context_length,
        "architecture": family.model.architecture,
    }


def _ladders(wish: Wish) -> Iterator[tuple[float, ...]]:
    if wish.sizes is not None:
        yield wish.sizes
        return
    for largest in SWEEP:
        sizes = tuple(largest / wish.ratio**step for step in reversed(range(wish.members)))
        low, high = wish.smallest or 0.0, wish.largest or math.inf
        if sizes[0] >= low * 0.999 and sizes[-1] <= high * 1.001:
            yield sizes


def _candidate(wish: Wish, sizes: tuple[float, ...], chosen: ChosenLaw) -> Candidate:
    vocabulary = wish.vocabulary or usual_vocabulary(sizes[0])
    context = wish.context or usual_context(sizes[0])
    shapes = shape_ladder(sizes, vocabulary, wish.architecture)
    counts = [parameter_count(shape, vocabulary, wish.architecture) for shape in shapes]
    total = np.array([count.total for count in counts], dtype=np.float64)
    counted = total if chosen.law.counting == "total" else np.array([float(count.non_embedding) for count in counts])
    if wish.memory is not None:
        layout = engine_layout(wish.machines.gpus)
        need = memory_by_part(shapes[-1], vocabulary, wish.architecture, layout, Portion(context))["total"]
        if need > wish.memory:
            raise KinfolkError(
                f"a member of {total[-1]:.3g} parameters takes {need / 1e9:.3g} GB of each of "
                f"{wish.machines.gpus} GPUs",
                where="--memory",
                fix="ask for smaller members, more --gpus, or more memory",
            )
    matmul = np.array([float(matmul_flops_per_token(shape, vocabulary, context)) for shape in shapes])
    rule = strategy_rule(wish.strategy, total, credit=wish.credit, decay_share=DECAY_SHARE)
    opened = _patch_costs(wish, len(shapes))
    per_token = 6 * total if wish.budget.counting == "six_nd" else matmul
    left = wish.budget.flops - serving_flops(wish, total.tolist())
    if left <= 0:
        raise KinfolkError(
            f"serving alone costs {wish.budget.flops - left:.3g} FLOPs of a budget of {wish.budget.flops:.3g}",
            where="--served",
            fix="serve less, smaller members, or raise the budget",
        )
    spend = {"budget": (per_token * opened) @ rule.train / left}
    if wish.deadline is not None:
        spend["deadline"] = (matmul * opened) @ rule.train / _flops_until(wish)
    limits = Limits(
        spend,
        wish.growth,
        wish.fewest,
        wish.most,
        wish.unique_tokens and wish.epochs * wish.unique_tokens,
    )
    weights = wish.weights or (1.0,) * len(shapes)
    found = allocate(chosen.law, counted, total, weights, rule, limits, wish.unique_tokens)
    if found is None:
        raise KinfolkError(
            f"members from {total[0]:.3g} to {total[-1]:.3g} parameters ask for more than the limits allow",
            where="--budget" if wish.sizes is None else "--sizes",
            fix="ask for smaller members, lower --fewest (tokens per parameter), or raise what limits them",
        )
    if not math.isfinite(found.objective):
        raise KinfolkError("the law forecasts no number", where=f"law {chosen.law.name}", fix="fit it again")
    return Candidate(shapes, vocabulary, found)


def _within_budget(wish: Wish, candidate: Candidate) -> Family:
    """The candidate as a family; rounding to whole steps must not overdraw what may be spent.

    A cut may be too small to save a whole step of any stage, so it at least doubles until one is saved.
    """
    found = candidate.allocation.tokens
    family = _family(wish, candidate, found.tolist())
    cut = 0.0
    while (over := _overspent(wish, family)) > 1:
        cut = max(over - 1, 2 * cut)
        family = _family(wish, candidate, ((1 - cut) * found).tolist())
    return family


def _overspent(wish: Wish, family: Family) -> float:
    """Spent over what may be spent; at most 1 is right."""
    plan = plan_family(family)
    vocabulary, context = family.embedding_rows, family.model.context_length
    matmul = six_nd = 0.0
    for stage in plan.stages:
        assert stage.shape is not None
        six_nd += 6 * stage.parameters * stage.positions
        matmul += matmul_flops_per_token(stage.shape, vocabulary, context) * stage.positions
    served = serving_flops(wish, [family.parameters(member) for member in family.members])
    spent = (six_nd if wish.budget.counting == "six_nd" else matmul) / (wish.budget.flops - served)
    return max(spent, matmul / _flops_until(wish) if wish.deadline is not None else 0.0)


def _family(wish: Wish, candidate: Candidate, tokens: list[float]) -> Family:
    """A family file's content, validated like any other."""
    shapes, vocabulary = candidate.shapes, candidate.vocabulary
    counts = [parameter_count(shape, vocabulary, wish.architecture) for shape in shapes]
    context = wish.context or usual_context(wish.sizes[0] if wish.sizes else counts[0].total)
    rules = [rate_rules(count.non_embedding, own) for count, own in zip(counts, tokens, strict=True)]
    peaks = np.minimum.accumulate([median(rule.peak for rule in member) for member in rules])
    batches = [median(rule.tokens_per_step for rule in member) for member in rules]
    total = np.array([count.total for count in counts], dtype=np.float64)
    trained = strategy_rule(wish.strategy, total, credit=wish.credit, decay_share=DECAY_SHARE).train @ np.array(tokens)
    late = wish.strategy == "trunk" or wish.patch is not None
    decay = min(DECAY_SHARE, 1 - wish.patch.position_share if wish.patch else 1.0)
    block = wish.patch.size if wish.patch else 1
    batch = min(math.exp(np.mean(np.log(batches))), float(trained.min()) / FEWEST_STEPS / block)
    document: dict[str, Any] = {
        "name": "family",
        "model": {"architecture": wish.architecture, "context_length": context},
        "tokenizer": {"vocab_size": vocabulary},
        "counted_parameters": "total",
        "strategy": wish.strategy,
        "parent_credit": wish.credit,
        "members": [
            {
                "name": _size_name(count.total),
                "shape": shape.model_dump(),
                "tokens": float(f"{own:.9g}"),
                "peak_learning_rate": float(f"{peak:.4g}"),
            }
            for count, shape, own, peak in zip(counts, shapes, tokens, peaks.tolist(), strict=True)
        ],
        "recipe": {
            "tokens_per_step": max(1, round(batch / context)) * context,
            "peak_learning_rate": float(f"{peaks[0]:.4g}"),
            **({"schedule": {"decay_share": decay, "warmup_share": 0.02}} if late else {}),
            **({"max_epochs": wish.epochs} if wish.unique_tokens else {}),
        },
        **({"patch": wish.patch.model_dump(mode="json", exclude_none=True)} if wish.patch else {}),
    }
    return validate_family(document, "the designed family")


def at_budget(wish: Wish, factor: float) -> Wish:
    """The same wish with `factor` times the budget."""
    return replace(wish, budget=replace(wish.budget, flops=wish.budget.flops * factor))


def serving_flops(wish: Wish, parameters: list[float]) -> float:
    """2 N FLOPs of every token served, over all members (Kaplan et al., arXiv 2001.08361, section 2.1)."""
    return sum(2 * n * served for n, served in zip(parameters, wish.served or (0.0,) * len(parameters), strict=True))


def usual_vocabulary(smallest: float) -> int:
    """Entries of the tokenizer where none are asked for: so few that the tables leave room for the smallest member."""
    return next((size for limit, size in ((5e6, 1024), (5e7, 8192), (4e9, 32768)) if smallest < limit), 65536)


def usual_context(smallest: float) -> int:
    """Context length where none is asked for."""
    return next((length for limit, length in ((5e6, 256), (5e7, 512)) if smallest < limit), 2048)


def _patch_costs(wish: Wish, members: int) -> Any:
    """What a patch part leaves of the cost of each member's stages."""
    costs = np.ones(members)
    if wish.patch is not None:
        for index in range(members):
            scratch = index == 0 or wish.strategy == "independent"
            costs[index] = wish.patch.cost if wish.patch.opens("", from_scratch=scratch) else 1.0
    return costs


def _flops_until(wish: Wish) -> float:
    assert wish.deadline is not None
    return wish.deadline * wish.machines.gpus * wish.machines.flops_per_hour


def _size_name(parameters: float) -> str:
    for size, unit in ((1e12, "t"), (1e9, "b"), (1e6, "m")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters / 1e3:.3g}k"
