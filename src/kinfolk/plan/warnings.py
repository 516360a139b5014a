"""What to know about a plan before paying for it."""

from kinfolk.family.spec import Family
from kinfolk.plan.stages import Patch, Plan

SHORTEST_GAIN = 20_000
"""Steps of the shortest published run that gained from patches at equal compute (arXiv 2605.06546)."""

LONGEST_PATCH_PART = 0.8
"""Share of the positions beyond which a patch part gained little or lost (arXiv 2605.06546)."""


def warnings_about(family: Family, plan: Plan, train_tokens: int | None) -> list[str]:
    """Sentences for people; `train_tokens` is the size of the training data, None where it is not known yet."""
    found = []
    if train_tokens:
        epochs = longest_reading(plan) / train_tokens
        if epochs > family.recipe.max_epochs:
            found.append(
                f"the longest line of stages reads {longest_reading(plan):.3g} tokens, {epochs:.1f} times the "
                f"{train_tokens:.3g} tokens of the training data (recipe.max_epochs is {family.recipe.max_epochs:g})"
            )
    patched = _steps_of_patched_members(plan)
    if patched and family.patch:
        name, steps = min(patched.items(), key=lambda item: item[1])
        if steps < SHORTEST_GAIN:
            found.append(
                f"{name} takes {steps:,} steps, and below {SHORTEST_GAIN:,} patch training has not paid, neither in "
                "published runs nor in our own short ones: expect a higher loss than from token-level training"
            )
        if family.patch.position_share > LONGEST_PATCH_PART:
            found.append(
                f"the patch part takes {family.patch.position_share:.0%} of the positions; beyond "
                f"{LONGEST_PATCH_PART:.0%} too little is left to the token part"
            )
    return found


def longest_reading(plan: Plan) -> float:
    """Tokens that the longest line of stages reads, from a root to a leaf: what has to be there to repeat nothing."""
    return max(plan.tokens_before(stage.name) + stage.tokens for stage in plan.stages)


def _steps_of_patched_members(plan: Plan) -> dict[str, int]:
    """Optimizer steps of the lineage of each member that was partly trained on patches."""
    lineages = {stage.member: plan.lineage(stage.name) for stage in plan.stages if stage.member}
    return {
        member: sum(stage.steps for stage in lineage)
        for member, lineage in lineages.items()
        if any(isinstance(stage.objective, Patch) and stage.objective.size > 1 for stage in lineage)
    }
