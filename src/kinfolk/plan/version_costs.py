"""What every version of the data costs beside training it from scratch on all data so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinfolk.family.data import FIRST
from kinfolk.family.spec import Family
from kinfolk.plan.costs import Flops, sum_flops


def version_costs(
    family: Family, stages: Sequence[Mapping[str, Any]], alone: Mapping[str | None, Flops]
) -> list[dict[str, Any]]:
    """One row for the first version, with all members, and one for each later one; none where there are no later ones.

    `stages` are those of a plan's document, in its order: what stands behind a version's member belongs to the next.
    `alone` says what each member, and each version, costs from scratch. `so_far` and `from_scratch_so_far` are the
    sums up to the version, and `saving` is of them, in 6ND.
    """
    if not family.data.versions:
        return []
    largest = family.members[-1].name
    versions = {largest: (FIRST, family.tokens(family.members[-1]))}
    for version in family.data.versions:
        versions[f"{largest}-{version.name}"] = (version.name, family.version_tokens(version))
    rows: list[dict[str, Any]] = []
    own: list[Mapping[str, Any]] = []
    for stage in stages:
        own.append(stage)
        if stage["member"] in versions:
            members = [each["member"] for each in own if each["member"]]
            rows.append(_row(*versions[stage["member"]], members, own, alone, rows[-1] if rows else None))
            own = []
    return rows


def _row(
    version: str,
    tokens: float,
    members: list[str],
    own: list[Mapping[str, Any]],
    alone: Mapping[str | None, Flops],
    before: dict[str, Any] | None,
) -> dict[str, Any]:
    cost = sum_flops(stage["flops"] for stage in own)
    scratch = sum_flops(alone[member] for member in members)
    so_far = sum_flops([cost, before["so_far"]] if before else [cost])
    scratch_so_far = sum_flops([scratch, before["from_scratch_so_far"]] if before else [scratch])
    return {
        "version": version,
        "members": members,
        "stages": [stage["name"] for stage in own],
        "tokens": tokens,
        "cost": cost,
        "from_scratch": scratch,
        "so_far": so_far,
        "from_scratch_so_far": scratch_so_far,
        "saving": 1 - so_far["six_nd"] / scratch_so_far["six_nd"],
    }
