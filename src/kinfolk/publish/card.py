"""The card as it goes to the hub: with the repository's name in its code, and what it was made from in its metadata."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinfolk.build.renew import README, is_member, may_replace, renewed_card
from kinfolk.card.card import Relation
from kinfolk.card.marker import signed, unsigned
from kinfolk.export.export import RECORD as EXPORT
from kinfolk.merge.checkpoint import RECORD as MERGE

_LOADED = re.compile(r'from_pretrained\("[^"]*"')


def card_for(folder: Path, repository: str, members: Mapping[str, str], bases: Sequence[str]) -> str | None:
    """The card of a checkpoint for its repository; None where the folder has one that somebody has edited, or none.

    `members` are the repositories of the members of its run, and `bases` names that the user gives.
    """
    if not may_replace(folder):
        return None
    if is_member(folder):
        return _with_bases(renewed_card(folder, repository, members), bases, "finetune")
    path = folder / README
    if not path.is_file():
        return None
    text = _LOADED.sub(f'from_pretrained("{repository}"', path.read_text("utf-8"))
    return _with_bases(text, bases, _relation(folder))


def _relation(folder: Path) -> Relation:
    if (folder / EXPORT).is_file():
        return "quantized"
    return "merge" if (folder / MERGE).is_file() else "finetune"


def _with_bases(text: str, bases: Sequence[str], relation: Relation) -> str:
    """The card with these base models in its metadata, signed anew."""
    from huggingface_hub import ModelCard

    body = unsigned(text)
    if not bases:
        return signed(body)
    card: Any = ModelCard(body)
    card.data.base_model = list(bases)
    card.data.base_model_relation = relation
    return signed(str(card))
