"""What to know about a plan before paying for it."""

from collections.abc import Iterable, Mapping, Sequence

from kinfolk.family.data import FIRST
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Patch, Plan

SHORTEST_GAIN = 20_000
"""Steps of the shortest published run that gained from patches at equal compute (arXiv 2605.06546)."""

LONGEST_PATCH_PART = 0.8
"""Share of the positions beyond which a patch part gained little or lost (arXiv 2605.06546)."""


def warnings_about(family: Family, plan: Plan, sizes: Mapping[str, float]) -> list[str]:
    """Sentences for people; `sizes` are the tokens of the versions of the data, as far as they are known."""
    found = []
    for data, read in plan.tokens_read().items():
        size = tokens_of(data, sizes)
        # Rounding to whole steps does not count.
        if size and read / size > 1.005 * family.recipe.max_epochs:
            found.append(
                f"the longest line of stages reads {read:.3g} tokens, {read / size:.1f} times the "
                f"{size:.3g} tokens of {_in_words(data)} (recipe.max_epochs is {family.recipe.max_epochs:g})"
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


def sizes_of_data(train_tokens: float | None, version_tokens: Mapping[str, float] | None) -> dict[str, float]:
    """Tokens that each version of the data holds, as far as they are known; `train_tokens` are the first's."""
    return {**({FIRST: train_tokens} if train_tokens else {}), **(version_tokens or {})}


def tokens_of(data: Iterable[str], sizes: Mapping[str, float]) -> float | None:
    """Tokens of these versions of the data together; None if one of them is not known."""
    names = list(data)
    return sum(sizes[name] for name in names) if sizes.keys() >= set(names) else None


def _in_words(data: Sequence[str]) -> str:
    if list(data) == [FIRST]:
        return "the training data"
    return f"version{'s' if len(data) > 1 else ''} {', '.join(data)} of the data"


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
