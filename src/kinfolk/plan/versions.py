"""Versions of the largest member on ever newer data: LR path switching (arXiv 2410.04103), and what it is held against.

With V tokens for each of n versions, the first among them, and a branch of a V tokens, the trunk costs
n + (n - 1) a of n (n + 1) / 2 units: for n = 4 and a = 0.6 that is 5.8 of 10, or 58 % of training each from scratch.
"""

from collections.abc import Sequence
from dataclasses import replace

from kinfolk.family.data import FIRST
from kinfolk.family.spec import Family
from kinfolk.plan.stages import Continue, Rate, Stage, Token

TRUNK = "-undecayed"
"""Suffix of the stage that a member shares with what comes after it: its training before the decay."""

REST = "-rest"
"""Suffix of the trunk's stage that reads once more, without the decay, what the last branch has read."""


def all_so_far(family: Family) -> list[tuple[str, float, tuple[str, ...]]]:
    """Each later version with the tokens and the data that its largest member, trained from scratch, would have."""
    found: list[tuple[str, float, tuple[str, ...]]] = []
    tokens = family.tokens(family.members[-1])
    names = (FIRST, *(version.name for version in family.data.versions))
    for number, version in enumerate(family.data.versions, start=2):
        tokens += family.version_tokens(version)
        found.append((version.name, tokens, names[:number]))
    return found


def of_version(parts: Sequence[Stage], version: str, data: tuple[str, ...]) -> list[Stage]:
    """The stages that train a member, as those that train its version."""
    found = []
    for part in parts:
        source = part.source
        if isinstance(source, Continue):
            source = replace(source, stage=_named(source.stage, parts[-1].name, version))
        name, member = _named(part.name, parts[-1].name, version), part.member and f"{part.member}-{version}"
        found.append(replace(part, name=name, source=source, member=member, data=data))
    return found


def finished_versions(family: Family, last: Stage) -> list[Stage]:
    """Every version continues the finished one before it: the rate warms up again, and decays over the new data."""
    schedule = family.recipe.schedule
    stages: list[Stage] = []
    before = last
    for version in family.data.versions:
        steps = _steps(family, family.version_tokens(version))
        warmup = round(schedule.warmup(grown=True) * steps)
        decay = min(round(schedule.decay_share * steps), steps - warmup)
        rate = Rate(last.rate.peak, warmup, decay, schedule.decay_shape, schedule.end_ratio)
        stage = _continue(family, before, f"{last.member}-{version.name}", version.name, steps, rate)
        before = replace(stage, member=stage.name)
        stages.append(before)
    return stages


def trunk_versions(family: Family, trunk: Stage, branch: Stage) -> list[Stage]:
    """The trunk of the largest member goes on over newer data; every version is a branch with a whole decay.

    Before each version the trunk reads what the former branch has read; so it goes through all data, and never decays.
    A branch takes the recipe's decay share of its version's tokens, the last of them; together, trunk and branch have
    then read what the version would from scratch. A version that is added later changes no stage that there was.
    """
    hold = replace(trunk.rate, warmup_steps=0, decay_steps=0)
    stages: list[Stage] = []
    for version in family.data.versions:
        steps = max(2, _steps(family, family.version_tokens(version)))
        decay = min(max(1, round(family.recipe.schedule.decay_share * steps)), steps - 1)
        member = f"{family.members[-1].name}-{version.name}"
        name = str(branch.member) + REST
        rest = replace(trunk, name=name, source=Continue(trunk.name), objective=Token(), tokens=branch.tokens)
        rest = replace(rest, steps=branch.steps, rate=hold)
        trunk = _continue(family, rest, member + TRUNK, version.name, steps - decay, hold)
        branch = _continue(family, trunk, member, version.name, decay, replace(hold, decay_steps=decay))
        branch = replace(branch, member=member)
        stages += [rest, trunk, branch]
    return stages


def _continue(family: Family, parent: Stage, name: str, version: str, steps: int, rate: Rate) -> Stage:
    """Token-level training that goes on from another stage in a version of the data."""
    return replace(
        parent,
        name=name,
        source=Continue(parent.name),
        objective=Token(),
        tokens=steps * family.recipe.tokens_per_step,
        steps=steps,
        rate=rate,
        member=None,
        data=(version,),
    )


def _steps(family: Family, tokens: float) -> int:
    return max(1, round(tokens / family.recipe.tokens_per_step))


def _named(stage: str, member: str, version: str) -> str:
    """A stage of a member, called like the same stage of its version.

    >>> _named("large-patch", "large", "2026")
    'large-2026-patch'
    """
    return f"{member}-{version}{stage.removeprefix(member)}"
