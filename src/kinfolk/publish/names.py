"""Names of repositories: one for a checkpoint, a pattern for the members of a run."""

import string
from collections.abc import Sequence
from pathlib import Path

from kinfolk.errors import KinfolkError


def repository_names(to: str, folders: Sequence[Path], family: str | None) -> dict[Path, str]:
    """The repository of each folder; in `to`, {member} and {family} stand for names.

    KinfolkError for a pattern or a name that the hub would not take, and for two folders of one name.
    """
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(to) if field is not None}
    except ValueError as error:
        raise KinfolkError(
            f"{to!r} is no pattern: {error}", where="--to", fix="write OWNER/{family}-{member}"
        ) from None
    known = {"member", *(["family"] if family is not None else [])}
    if fields - known:
        raise KinfolkError(
            f"{{{min(fields - known)}}} stands for nothing here", where="--to", fix=f"use {', '.join(sorted(known))}"
        )
    if len(folders) > 1 and "member" not in fields:
        raise KinfolkError(
            f"{len(folders)} members and one name", where="--to", fix="write a pattern such as OWNER/{family}-{member}"
        )
    names = {folder: to.format(member=folder.resolve().name, family=family) for folder in folders}
    for name in names.values():
        check_name(name, "--to")
    return names


def check_name(name: str, where: str) -> None:
    """KinfolkError for a name that is not OWNER/NAME as the hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    owner, slash, rest = name.partition("/")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        problem = str(error).split(":")[0].rstrip(".")
        raise KinfolkError(
            f"{name!r} is no name of a repository: {problem}",
            where=where,
            fix="write OWNER/NAME with letters, digits, '-', '_' and '.', at most 96 characters",
        ) from None
    if not slash or not owner or not rest:
        raise KinfolkError(
            f"{name!r} does not say whose repository it is", where=where, fix="write OWNER/NAME, your user name first"
        )
