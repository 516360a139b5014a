"""What every part of the family file has in common: unknown fields are refused, and what was validated is frozen."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kinfolk.family.faults import MisfitError
from kinfolk.files import UNFINISHED

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names become folders of the run, so they can hold nothing that leaves it."""

_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
"""Names of devices there, with any ending."""


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        """YAML reads yes and on as true, which pydantic would take for the number 1."""
        for field, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and field in cls.model_fields:
                raise MisfitError(
                    f"{str(value).lower()} means nothing here", field=field, fix="write a number or a text"
                )
        return values


class Named(Spec):
    name: str = Field(pattern=NAME_PATTERN)

    @field_validator("name")
    @classmethod
    def _kept(cls, name: str) -> str:
        if name.endswith(UNFINISHED):
            raise MisfitError(f"folders that end in {UNFINISHED} are deleted as left-overs", fix="use another name")
        if name.endswith(".") or _OF_WINDOWS.match(name):
            raise MisfitError(f"Windows has no folder called {name}", fix="use another name")
        return name


def check_names(names: Sequence[str], field: str, each: str) -> None:
    """Names become folders, and there are file systems on which A and a are the same one."""
    folded = [name.casefold() for name in names]
    for index, name in enumerate(folded):
        if name in folded[:index]:
            first = folded.index(name)
            raise MisfitError(
                f"{names[index]!r} is also the name of {field}[{first}]"
                + ("" if names[first] == names[index] else ", but for capitals"),
                field=f"{field}[{index}].name",
                fix=f"give every {each} a name of its own",
            )


def branch_meant(value: Any, branches: dict[str, str], default: str | None) -> str | None:
    """The branch of a union that a mapping means: the one whose own key it has, or nearly has.

    `branches` maps keys to tags; None if none or several are meant.
    """
    if isinstance(value, Spec):
        return type(value).__name__
    if not isinstance(value, dict):
        return None
    keys = [key for key in value if isinstance(key, str)]
    meant = [key for key in branches if key in keys]
    if not meant:
        meant = [key for key in branches if difflib.get_close_matches(key, keys, n=1, cutoff=0.7)]
    if not meant and default:
        return default
    return branches[meant[0]] if len(meant) == 1 else None
