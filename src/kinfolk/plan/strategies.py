"""Strategies: pure functions from a family to a plan."""

from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family, Member
from kinfolk.plan.costs import six_nd, stage_tokens
from kinfolk.plan.stages import Grow, Operator, Plan, Rate, Scratch, Source, Stage, Token


def plan_family(family: Family) -> Plan:
    """The plan of the strategy that the family names."""
    return {"independent": independent, "progressive": progressive}[family.strategy](family)


def independent(family: Family) -> Plan:
    """Every member alone from scratch: the baseline that everything is compared with."""
    stages = tuple(
        _stage(family, member, Scratch(family.recipe.seed + index), family.tokens(member))
        for index, member in enumerate(family.members)
    )
    return Plan(family.name, "independent", stages)


def progressive(family: Family) -> Plan:
    """A chain: train the smallest member, grow it into the next, go on (arXiv 2504.00623).

    Stage i trains on T_i' = (C_i - credit x C_(i-1)) / 6 N_i tokens. With a credit of 1 the whole chain costs what the
    largest member costs alone. Raises KinfolkError where a member's budget is not larger than its parent's.
    """
    stages = [_stage(family, family.members[0], Scratch(family.recipe.seed), family.tokens(family.members[0]))]
    for index in range(1, len(family.members)):
        smaller, larger = family.members[index - 1], family.members[index]
        parent_flops = six_nd(family.parameters(smaller), family.tokens(smaller))
        tokens = stage_tokens(family.tokens(larger), family.parameters(larger), parent_flops, family.parent_credit)
        if tokens <= 0:
            raise KinfolkError(
                f"{larger.name} is meant to cost {six_nd(family.parameters(larger), family.tokens(larger)):.3g} FLOPs, "
                f"no more than its parent {smaller.name} has spent ({parent_flops:.3g}): nothing is left to train it",
                where=f"members[{index}].tokens",
                fix="give the larger member more tokens, or lower parent_credit",
            )
        operator = Operator(
            width=family.growth.width,
            depth=family.growth.depth,
            noise=family.growth.noise,
            optimizer=family.growth.optimizer,
            seed=family.recipe.seed + index,
        )
        stages.append(_stage(family, larger, Grow(smaller.name, operator), tokens))
    return Plan(family.name, "progressive", tuple(stages))


def _stage(family: Family, member: Member, source: Source, tokens: float) -> Stage:
    recipe = family.recipe
    steps = max(1, round(tokens / recipe.tokens_per_step))
    rate = Rate(
        peak=family.peak_learning_rate(member),
        warmup_steps=round(recipe.schedule.warmup_share * steps),
        decay_steps=round(recipe.schedule.decay_share * steps),
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
