"""A designed family as a family file that people go on editing: only what the design decided, and what to edit."""

from pathlib import Path
from typing import Any

import yaml

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.family.spec import Family

HEADER = """\
# A family that `kinfolk plan` has made for {given}.
# Edit it as you like: `kinfolk plan FILE` costs it anew (with --budget it is held against that), `kinfolk build FILE`
# trains it.
# It names no data yet: kinfolk trains on a small built-in text until there is a line such as
#   data: {{train: [{{path: corpus/*.parquet}}]}}
"""


def family_fields(family: Family) -> dict[str, Any]:
    """The fields of a family file that differ from their defaults, in the order of the file."""
    return family.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def refuse_existing(target: Path) -> None:
    """KinfolkError where something is already there, which is never overwritten."""
    if target.exists():
        raise KinfolkError("is there already", where=str(target), fix="give another name, or remove it first")


def write_family_file(target: Path, family: Family, given: str) -> None:
    """Write the family atomically; KinfolkError where something is already there."""
    refuse_existing(target)
    body = yaml.dump(family_fields(family), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)
    try:
        files.write_text(target, HEADER.format(given=given) + body)
    except OSError as error:
        raise KinfolkError(
            f"cannot be written ({error.strerror})", where=str(target), fix="give a place you may write to"
        ) from error


class _Dumper(yaml.SafeDumper):
    """Writes mappings that hold only plain values on one line, as the examples do."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        plain = not any(isinstance(value, dict | list) for value in dict(mapping).values())
        return super().represent_mapping(tag, mapping, flow_style=True if plain else flow_style)
