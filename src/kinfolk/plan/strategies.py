"""Strategies: pure functions from a family to a plan."""

from collections.abc import Callable
from dataclasses import replace

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family, Member
from kinfolk.plan.costs import six_nd, stage_tokens
from kinfolk.plan.stages import Continue, Dynamics, Grow, Operator, Plan, Rate, Scratch, Source, Stage, Token

Strategy = Callable[[Family], Plan]

TRUNK = "-undecayed"
"""Suffix of the stage that a member shares with the next one: its training before the decay."""


def plan_family(family: Family, origin: str | None = None) -> Plan:
    """The plan of the strategy that the family names; `origin` is its file, for errors."""
    try:
        return {"independent": independent, "progressive": progressive}[family.strategy](family)
    except KinfolkError as error:
        if origin is None:
            raise
        raise KinfolkError(error.problem, where=f"{origin}: {error.where}", fix=error.fix) from None


def independent(family: Family) -> Plan:
    """Every member alone from scratch: the baseline that everything is compared with."""
    stages = tuple(
        _stage(family, member, Scratch(family.recipe.seed + index), family.tokens(member))
        for index, member in enumerate(family.members)
    )
    return Plan(family.name, "independent", stages)


def progressive(family: Family) -> Plan:
    """A chain: train the smallest member, grow it into the next, go on (arXiv 2504.00623).

    Member i trains on T_i' = (C_i - credit x C_(i-1)) / 6 N_i tokens. With a credit of 1 the whole chain costs what the
    largest member costs alone. The next member grows from the finished one, or from its state before the decay; the
    decay is then a branch, paid for by the same tokens. Raises KinfolkError where a member's budget is not larger than
    its parent's.
    """
    _refuse_names_of_trunks(family)
    stages: list[Stage] = []
    source: Source = Scratch(family.recipe.seed)
    for index, member in enumerate(family.members):
        stage = _stage(family, member, source, _chain_tokens(family, index))
        is_last = index == len(family.members) - 1
        if family.growth.start == "undecayed" and 0 < stage.rate.decay_steps < stage.steps and not is_last:
            trunk, branch = _split_before_decay(stage, family.recipe.tokens_per_step)
            stages += [trunk, branch]
            source = _grow(family, trunk, index + 1)
        else:
            stages.append(stage)
            source = _grow(family, stage, index + 1)
    return Plan(family.name, "progressive", tuple(stages))


def _refuse_names_of_trunks(family: Family) -> None:
    names = [member.name for member in family.members]
    for index, name in enumerate(names):
        if name.endswith(TRUNK) and name.removesuffix(TRUNK) in names:
            raise KinfolkError(
                f"{name!r} is also the name of a stage of {name.removesuffix(TRUNK)!r}",
                where=f"members[{index}].name",
                fix="give the member another name",
            )


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


def _split_before_decay(stage: Stage, tokens_per_step: int) -> tuple[Stage, Stage]:
    """A stage as two that train the same: warm-up and hold, and the decay that finishes the member."""
    held = stage.steps - stage.rate.decay_steps
    trunk = replace(
        stage,
        name=stage.name + TRUNK,
        tokens=held * tokens_per_step,
        steps=held,
        rate=replace(stage.rate, decay_steps=0),
        member=None,
    )
    branch = replace(
        stage,
        source=Continue(trunk.name),
        tokens=stage.rate.decay_steps * tokens_per_step,
        steps=stage.rate.decay_steps,
        rate=replace(stage.rate, warmup_steps=0),
    )
    return trunk, branch


def _grow(family: Family, parent: Stage, index: int) -> Grow:
    """How the parent becomes member `index`."""
    growth = family.growth
    operator = Operator(
        width=growth.width,
        depth=growth.depth,
        placement=growth.placement,
        block=growth.block,
        split=growth.split,
        noise=growth.noise,
        snr=growth.snr,
        seed=family.recipe.seed + index,
    )
    dynamics = Dynamics(
        optimizer=growth.optimizer,
        rates=growth.rates,
        rewarm_factor=growth.rewarm_factor,
        rewarm_steps=growth.rewarm_steps,
    )
    return Grow(parent.name, operator, dynamics)


def _stage(family: Family, member: Member, source: Source, tokens: float) -> Stage:
    recipe = family.recipe
    steps = max(1, round(tokens / recipe.tokens_per_step))
    warmup_steps = round(recipe.schedule.warmup_share * steps)
    rate = Rate(
        peak=family.peak_learning_rate(member),
        warmup_steps=warmup_steps,
        decay_steps=min(round(recipe.schedule.decay_share * steps), steps - warmup_steps),
        decay_shape=recipe.schedule.decay_shape,
        end_ratio=recipe.schedule.end_ratio,
    )
    return Stage(
        name=member.name,
        shape=member.shape,
        parameters=family.parameters(member),
        source=source,
        objective=Token(),
        tokens=steps * recipe.tokens_per_step,
        steps=steps,
        rate=rate,
        member=member.name,
    )
