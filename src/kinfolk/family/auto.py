"""`recipe: {schedule: auto}`: a build chooses the schedule itself, by short runs, before it begins.

Only the file says `auto`. A family always has a schedule: here the usual one, with which it is planned and from which
the search starts; `kinfolk.build.auto` puts the chosen one in its place.
"""

from typing import Any

from pydantic import ValidationError

from kinfolk.family.faults import first_fault
from kinfolk.family.recipe import Schedule
from kinfolk.family.spec import Family

AUTO = "auto"

DECAY_SHARES = (Schedule().decay_share, 0.5, 0.3, 0.2, 0.1)
"""The first of these that the family allows is taken; a trunk and patches want a late decay."""


def without_auto(document: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """A parsed family file with the usual schedule in place of `auto`, and whether it said that."""
    recipe = document.get("recipe")
    if not isinstance(recipe, dict) or recipe.get("schedule") != AUTO:
        return document, False
    found = document
    for share in DECAY_SHARES:
        found = document | {"recipe": recipe | {"schedule": {"decay_share": share}}}
        try:
            Family.model_validate(found)
        except ValidationError as error:
            if first_fault(error, Family).field == "recipe.schedule.decay_share":
                continue
        break
    return found, True
