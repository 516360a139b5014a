"""Every strategy beside the others, each with and without a patch part."""

from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.load import validate_family
from kinfolk.family.patch import Patch
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document
from kinfolk.plan.strategies import plan_family

STRATEGIES = ("independent", "progressive", "trunk")

LATE_DECAY = 0.2
"""Decay share that every strategy can have with the default patch part."""


def compare_strategies(family: Family, origin: str, train_tokens: int | None = None) -> list[dict[str, Any]]:
    """One row for each strategy, without patches and with the family's patch part; by default all members have one.

    All rows have one schedule: the family's, or one that decays over the last fifth where the family's begins to decay
    too early for a trunk or a patch part; `decay_share` says which. A row has the costs of the whole family, as FLOPs
    and as a share of training each member alone at token level, what the longest line of stages reads, and the stages;
    or, in `refused`, why the family file does not allow it.
    """
    patch = family.patch or Patch(members="all")
    fields = family.model_dump(mode="json", exclude_none=True)
    schedule = fields["recipe"]["schedule"]
    if not 0 < schedule["decay_share"] <= min(0.5, 1 - patch.position_share):
        schedule["decay_share"] = LATE_DECAY
    rows = []
    for strategy in STRATEGIES:
        for part in (None, patch.model_dump(mode="json", exclude_none=True)):
            row: dict[str, Any] = {"strategy": strategy, "patch": part, "decay_share": schedule["decay_share"]}
            try:
                changed = validate_family(fields | {"strategy": strategy, "patch": part}, origin)
                plan = plan_family(changed, origin)
            except KinfolkError as error:
                rows.append(row | {"refused": str(error)})
                continue
            document = plan_document(changed, plan, train_tokens)
            lines = [plan.lineage(stage.name) for stage in plan.stages]
            rows.append(
                row
                | {
                    "refused": None,
                    "total": document["total"],
                    "cost": {kind: None if saved is None else 1 - saved for kind, saved in document["savings"].items()},
                    "tokens_read": document["data"]["tokens_read"],
                    "steps": max(sum(stage.steps for stage in line) for line in lines),
                    "warnings": document["warnings"],
                    "stages": document["stages"],
                }
            )
    return rows
