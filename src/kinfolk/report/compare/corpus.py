"""What a run was fed and measured on, as far as its data folder says, and whether several runs agree in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinfolk.json_text import parse_json

Sameness = Literal["same", "same text", "same size", "in part", "different", "unknown"]


@dataclass(frozen=True)
class Corpus:
    """Digests (SHA-256) and counts of a run's data."""

    train: str
    held_out: str
    """Of the held-out tokens and of where its documents begin."""
    tokenizer: str
    counts: tuple[tuple[str, int], ...]
    """Such as ("train tokens", 14_853_247)."""


def corpus_of(folder: Path) -> Corpus | None:
    """What the data folder of a run records; None where there is none, or it cannot be read."""
    try:
        manifest = parse_json((folder / "data" / "data.json").read_text("utf-8"))
        digests = {name: str(file["sha256"]) for name, file in manifest["files"].items()}
        return Corpus(
            train=digests["train.bin"],
            held_out=f"{digests['held_out.bin']} {digests['held_out_documents.bin']}",
            tokenizer=digests["tokenizer/tokenizer.json"],
            counts=tuple(
                (f"{part} {unit}", int(manifest["parts"][name][unit]))
                for name, part in (("train", "training"), ("held_out", "held-out"))
                for unit in ("documents", "tokens", "bytes")
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Agreement:
    """Whether figures of several runs may be held against each other."""

    text: Sameness
    """Of the held-out text."""
    tokenizer: bool | None
    """Whether all have one; None where that is not known."""
    documents: int | None = None
    """Held-out documents that all have in common, where that was counted."""

    @property
    def comparable(self) -> bool:
        """Whether the ledgers' bits per byte may be."""
        return self.text in ("same", "same text", "same size")


def by_digest(corpora: Sequence[Corpus]) -> Agreement:
    """What the digests say, before any text is read: other tokens may still be of the same text."""
    tokenizer = len({corpus.tokenizer for corpus in corpora}) == 1
    same = tokenizer and len({corpus.held_out for corpus in corpora}) == 1
    return Agreement("same" if same else "unknown", tokenizer)


def by_size(held_out_bytes: Sequence[float | None]) -> Agreement:
    """What the ledgers' counts say, None for none: `same size` is as far as one can tell without the data."""
    sizes = set(held_out_bytes)
    if None in sizes:
        return Agreement("unknown", None)
    return Agreement("same size" if len(sizes) == 1 else "different", None)


def common_documents(documents: Sequence[Sequence[str]]) -> list[list[int]]:
    """Places of the documents that all have in common, in the order of the first; by digest, repeats one by one.

    >>> common_documents([["a", "b", "a"], ["a", "c", "a", "a"]])
    [[0, 2], [0, 2]]
    """
    places: list[dict[tuple[str, int], int]] = []
    for digests in documents:
        seen: dict[str, int] = {}
        found: dict[tuple[str, int], int] = {}
        for place, digest in enumerate(digests):
            seen[digest] = seen.get(digest, 0) + 1
            found[digest, seen[digest]] = place
        places.append(found)
    keys: list[Any] = [key for key in places[0] if all(key in other for other in places)] if places else []
    return [[found[key] for key in keys] for found in places]
