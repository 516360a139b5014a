"""Strategies: pure functions from a family to a plan."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Growth, Schedule
from kinfolk.family.spec import Family
from kinfolk.plan.batches import doubling
from kinfolk.plan.costs import six_nd, stage_tokens
from kinfolk.plan.stages import Continue, Dynamics, Grow, Operator, Patch, Plan, Rate, Scratch, Source, Stage, Token
from kinfolk.plan.versions import TRUNK, all_so_far, finished_versions, of_version, trunk_versions

Strategy = Callable[[Family], Plan]

PATCH = "-patch"
"""Suffix of the stage that is a member's training at patch level."""


def plan_family(family: Family, origin: str | None = None) -> Plan:
    """The plan of the strategy that the family names; `origin` is its file, for errors."""
    strategy = {"independent": independent, "progressive": progressive, "trunk": trunk}[family.strategy]
    try:
        return strategy(family)
    except KinfolkError as error:
        if origin is None:
            raise
        raise KinfolkError(error.problem, where=f"{origin}: {error.where}", fix=error.fix) from None


def independent(family: Family) -> Plan:
    """Every member alone from scratch: the baseline that everything is compared with.

    So is the largest member for every version of the data, on all data so far.
    """
    stages: list[Stage] = []
    for index, member in enumerate(family.members):
        stages += _member(family, index, Scratch(family.recipe.seed + index), family.tokens(member))
    largest = len(family.members) - 1
    for number, (version, tokens, data) in enumerate(all_so_far(family), start=1):
        scratch = Scratch(family.recipe.seed + largest + number)
        stages += of_version(_member(family, largest, scratch, tokens), version, data)
    return _plan(family, "independent", stages)


def progressive(family: Family) -> Plan:
    """A chain: train the smallest member, grow it into the next, go on (arXiv 2504.00623).

    Member i trains on T_i' = (C_i - credit x C_(i-1)) / 6 N_i tokens. With a credit of 1 the whole chain costs what the
    largest member costs alone. The next member grows from the finished one, or from its state before the decay; the
    decay is then a branch, paid for by the same tokens. Every version of the data continues the finished version before
    it. Raises KinfolkError where a member's budget is not larger than its parent's.
    """
    stages: list[Stage] = []
    source: Source = Scratch(family.recipe.seed)
    for index in range(len(family.members)):
        parts = _member(family, index, source, _chain_tokens(family, index))
        is_last = index == len(family.members) - 1
        if family.growth.start == "undecayed" and 0 < parts[-1].rate.decay_steps < parts[-1].steps and not is_last:
            parts[-1:] = _split_before_decay(parts[-1])
            source = _grow(family, parts[-2], index + 1)
        else:
            source = _grow(family, parts[-1], index + 1)
        stages += parts
    return _plan(family, "progressive", [*stages, *finished_versions(family, stages[-1])])


def trunk(family: Family) -> Plan:
    """A trunk that never decays and grows on the way; every member is a branch that leaves it and decays.

    The branch of member i takes the recipe's decay share of what the budget rule gives the member,
    T_i' = (C_i - credit x C_(i-1)) / 6 N_i tokens, and costs b_i. It leaves where trunk and branch together have spent
    C_i; there the trunk grows on. So the trunk with the last branch costs what the largest member costs alone, and the
    family costs that and the branches of the others: C_k + b_1 + ... + b_(k-1) with a credit of 1. A larger member that
    is added later changes no stage that there was, and neither does a version of the data.
    """
    stages: list[Stage] = []
    source: Source = Scratch(family.recipe.seed)
    before_branch = 0.0  # what the trunk had spent where the former member left it, by the budget rule's counting
    for index, member in enumerate(family.members):
        parameters, own = family.parameters(member), family.tokens(member)
        planned = _member(family, index, source, _chain_tokens(family, index))
        positions = family.recipe.schedule.decay_share * sum(part.positions for part in planned)
        branch_steps = max(1, round(positions / family.recipe.tokens_per_step))
        parts = _member(family, index, source, stage_tokens(own, parameters, before_branch, family.parent_credit))
        whole = _long_enough_to_split(parts[-1], family.recipe.tokens_per_step)
        room = max(1, whole.steps - max(1, whole.rate.warmup_steps))
        rate = replace(whole.rate, decay_steps=min(branch_steps, room))
        parts[-1:] = _split_before_decay(replace(whole, rate=rate))
        parts = [part if part.member else replace(part, rate=replace(part.rate, decay_steps=0)) for part in parts]
        before_branch = six_nd(parameters, own) - six_nd(parameters, parts[-1].tokens)
        source = _grow(family, parts[-2], index + 1)
        stages += parts
    return _plan(family, "trunk", [*stages, *trunk_versions(family, *stages[-2:])])


def _plan(family: Family, strategy: str, stages: Sequence[Stage]) -> Plan:
    """The plan of these stages; KinfolkError where a member is called like a part of another one's training."""
    names = [stage.name for stage in stages]
    for index, member in enumerate(family.members):
        if names.count(member.name) > 1:
            raise KinfolkError(
                f"{member.name!r} is also the name of a stage of another member",
                where=f"members[{index}].name",
                fix="give the member another name",
            )
    for name in names:
        if names.count(name) > 1:
            raise KinfolkError(
                f"{name!r} would be the name of two stages",
                where="data.versions",
                fix="give the versions other names",
            )
    return Plan(family.name, strategy, tuple(_with_small_batches(family, stage) for stage in stages))


def _with_small_batches(family: Family, stage: Stage) -> Stage:
    """A stage that begins with the recipe's batch-size warm-up, if it starts from random weights."""
    warmup = family.recipe.batch_warmup
    if warmup is None or not isinstance(stage.source, Scratch):
        return stage
    stretches = doubling(warmup.share * stage.steps, family.recipe.tokens_per_step // warmup.start)
    extra = sum(stretch.steps - stretch.batches for stretch in stretches)
    return replace(stage, steps=stage.steps + extra, batch_warmup=stretches)


def _chain_tokens(family: Family, index: int) -> float:
    """Tokens of the chain's member `index`: what its budget leaves after its parent's."""
    member = family.members[index]
    if index == 0:
        return family.tokens(member)
    parent = family.members[index - 1]
    parent_flops = six_nd(family.parameters(parent), family.tokens(parent))
    tokens = stage_tokens(family.tokens(member), family.parameters(member), parent_flops, family.parent_credit)
    if tokens <= 0:
        raise KinfolkError(
            f"{member.name} is meant to cost {six_nd(family.parameters(member), family.tokens(member)):.3g} FLOPs, "
            f"no more than its parent {parent.name} has spent ({parent_flops:.3g}): nothing is left to train it",
            where=f"members[{index}].tokens",
            fix="give the larger member more tokens, or lower parent_credit",
        )
    return tokens


def _member(family: Family, index: int, source: Source, tokens: float) -> list[Stage]:
    """The stages that train a member on `tokens` tokens: one, or a patch-level and a token-level part.

    Budgets are those of token-level training: a patch part reads its share of the tokens for 1 / K of their cost.
    """
    member, schedule, seed = family.members[index], family.recipe.schedule, isinstance(source, Scratch)
    per_step = family.recipe.tokens_per_step
    patch = family.patch if family.patch and family.patch.opens(member.name, from_scratch=seed) else None
    share = patch.token_share if patch else 0.0
    patch_tokens_per_step = per_step * (patch.size if patch and patch.optimizer == "carry" else 1)
    patch_steps = round(share * tokens / patch_tokens_per_step)
    token_steps = max(1, round((1 - share) * tokens / per_step))

    def rate(steps: int) -> Rate:
        return rate_over(schedule, steps, family.peak_learning_rate(member), is_grown=not seed)

    stage = Stage(
        name=member.name,
        shape=member.shape,
        parameters=family.parameters(member),
        source=source,
        objective=Token(),
        tokens=token_steps * per_step,
        steps=token_steps,
        rate=rate(token_steps),
        member=member.name,
        block=family.patch.size if family.patch else 1,
    )
    if patch is None or patch_steps == 0:
        return [stage]
    opening, closing = rate(patch_steps), rate(token_steps)
    if patch.optimizer == "carry":  # one schedule over both parts, cut at the switch
        whole = rate(patch_steps + token_steps)
        opening = replace(whole, warmup_steps=min(whole.warmup_steps, patch_steps), decay_steps=0)
        closing = replace(whole, warmup_steps=0, decay_steps=min(whole.decay_steps, token_steps))
    part = replace(
        stage,
        name=member.name + PATCH,
        objective=Patch(patch.size, patch.slot_exponent),
        tokens=patch_steps * patch_tokens_per_step,
        steps=patch_steps,
        rate=opening,
        member=None,
    )
    return [part, replace(stage, source=Continue(part.name, patch.optimizer), rate=closing)]


def rate_over(schedule: Schedule, steps: int, peak: float, *, is_grown: bool) -> Rate:
    """A recipe's schedule over the steps of a stage."""
    warmup_steps = round(schedule.warmup(grown=is_grown) * steps)
    decay_steps = min(round(schedule.decay_share * steps), steps - warmup_steps)
    return Rate(peak, warmup_steps, decay_steps, schedule.decay_shape, schedule.end_ratio)


def _split_before_decay(stage: Stage) -> tuple[Stage, Stage]:
    """A stage as two that train the same: warm-up and hold, and the decay that finishes the member."""
    held = stage.steps - stage.rate.decay_steps
    trunk = replace(
        stage,
        name=f"{stage.member}{TRUNK}",
        tokens=held * stage.tokens_per_step,
        steps=held,
        rate=replace(stage.rate, decay_steps=0),
        member=None,
    )
    branch = replace(
        stage,
        source=Continue(trunk.name),
        tokens=stage.rate.decay_steps * stage.tokens_per_step,
        steps=stage.rate.decay_steps,
        rate=replace(stage.rate, warmup_steps=0),
    )
    return trunk, branch


def _long_enough_to_split(stage: Stage, tokens_per_step: int) -> Stage:
    """A stage of two steps at least, one for the trunk and one for the branch."""
    steps = max(2, stage.steps)
    return replace(stage, steps=steps, tokens=steps * tokens_per_step)


def operator_of(growth: Growth, seed: int) -> Operator:
    """The operator that the `growth` of a family file asks for."""
    return Operator(
        width=growth.width,
        depth=growth.depth,
        placement=growth.placement,
        block=growth.block,
        split=growth.split,
        noise=growth.noise,
        snr=growth.snr,
        seed=seed,
    )


def _grow(family: Family, parent: Stage, index: int) -> Grow:
    """How the parent becomes member `index`."""
    growth = family.growth
    dynamics = Dynamics(
        optimizer=growth.optimizer,
        rates=growth.rates,
        rewarm_factor=growth.rewarm_factor,
        rewarm_steps=growth.rewarm_steps,
    )
    return Grow(parent.name, operator_of(growth, family.recipe.seed + index), dynamics)
