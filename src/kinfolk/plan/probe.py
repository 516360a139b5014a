"""A probe of growth: one parent, and one short stage for every candidate way of growing it.

The loss right after growth predicts nothing, and the loss after a short training ranks well (landscape-aware growing,
arXiv 2406.02469). So candidates are compared by training each of them on the same data for the same steps.
"""

from collections.abc import Mapping
from dataclasses import replace

from kinfolk.family.recipe import Growth
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Grow, Load, Plan, Stage
from kinfolk.plan.strategies import progressive


def probe(
    family: Family, candidates: Mapping[str, Growth], steps: int | None = None, parent: Load | None = None
) -> Plan:
    """The chain up to the family's last member, which every candidate grows in a stage of its own.

    The stages are called MEMBER-CANDIDATE and finish no member. Each takes the last member's steps and schedule; with
    `steps` it warms up as the whole stage would, holds its peak, and stops after so many steps. With `parent` the
    first of two members is not trained but loaded; there is then no optimizer state to carry. All train at token level.
    """
    token_level = family.model_copy(update={"patch": None})
    plans = {
        name: progressive(token_level.model_copy(update={"growth": growth})) for name, growth in candidates.items()
    }
    if parent:
        return _from_checkpoint(family, parent, plans, steps)
    parents: dict[str, Stage] = {}
    # A parent that is split before its decay trains as the whole one does, and serves both.
    for plan in sorted(plans.values(), key=lambda plan: -len(plan.stages)):
        for stage in plan.stages[:-1]:
            parents.setdefault(stage.name, stage)
    grown = [_candidate(plan.stages[-1], name, steps) for name, plan in plans.items()]
    return Plan(family.name, "probe", (*parents.values(), *grown))


def _from_checkpoint(family: Family, parent: Load, plans: Mapping[str, Plan], steps: int | None) -> Plan:
    first = next(iter(plans.values())).stages[0]
    rate = replace(first.rate, warmup_steps=0, decay_steps=0)
    loaded = replace(first, source=parent, steps=0, tokens=0, rate=rate, member=None, batch_warmup=())
    grown = []
    for name, plan in plans.items():
        stage = _candidate(plan.stages[-1], name, steps)
        assert isinstance(stage.source, Grow)
        dynamics = replace(stage.source.dynamics, optimizer="reset")
        grown.append(replace(stage, source=replace(stage.source, stage=loaded.name, dynamics=dynamics)))
    return Plan(family.name, "probe", (loaded, *grown))


def _candidate(stage: Stage, name: str, steps: int | None) -> Stage:
    named = replace(stage, name=f"{stage.name}-{name}", member=None)
    if steps is None or steps >= stage.steps:
        return named
    rate = replace(stage.rate, warmup_steps=min(stage.rate.warmup_steps, steps), decay_steps=0)
    return replace(named, steps=steps, tokens=stage.tokens / stage.steps * steps, rate=rate)
