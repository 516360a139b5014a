"""The formats that a checkpoint can be exported to."""

from pathlib import Path

from kinfolk.errors import KinfolkError

FORMATS = ("gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "int8", "int4")

SHORT = {"gguf": "gguf-f16"}


def formats_of(names: list[str]) -> list[str]:
    """The formats that are asked for, each once. KinfolkError for one that is not known.

    >>> formats_of(["gguf", "int8", "int8"])
    ['gguf-f16', 'int8']
    """
    found = [SHORT.get(name, name) for name in names]
    for given, name in zip(names, found, strict=True):
        if name not in FORMATS:
            raise KinfolkError(
                f"there is no format {given!r}", where="--format", fix=f"use {', '.join((*SHORT, *FORMATS))}"
            )
    return list(dict.fromkeys(found))


def default_target(model: Path, name: str) -> Path:
    """Where an export goes: RUN/exports/MEMBER-FORMAT, or beside a checkpoint that is no member of a run."""
    whole = model.resolve()
    run = whole.parent.parent
    folder = run / "exports" if whole.parent.name == "members" and (run / "ledger.jsonl").is_file() else whole.parent
    return folder / f"{whole.name}-{name}"
