"""Results that were computed before: evaluating the same weights on the same text in the same way gives the same."""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import kinfolk
from kinfolk import files
from kinfolk.files import sha256
from kinfolk.json_text import parse_json

_KEPT = ("*.safetensors", "*.gguf", "*.json", "*.model", "*.txt", "*.jinja")
"""Files of a checkpoint that decide what it predicts and how it reads text; lineage records do no harm."""

_MEASURING = ("data", "evaluate", "train", "transfer")
"""The packages that every measurement runs through."""


def folder() -> Path:
    """Where results are kept, $XDG_CACHE_HOME being ~/.cache by default; it may be deleted at any time."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kinfolk" / "evaluations"


def checkpoint_digest(path: str) -> str | None:
    """SHA-256 over a checkpoint's files; None for a name on the hub, whose files may change."""
    if not Path(path).is_dir():
        return None
    folder = Path(path)
    # A pair of two vocabularies has their tokenizers in folders of their own.
    found = sorted({file for pattern in _KEPT for file in folder.rglob(pattern)})
    lines = [f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in found]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over the source of what measures, and of what is measured as far as that is ours (pairs).

    A version to be raised by hand would sooner or later be forgotten, and a wrong figure then outlive its repair. So
    any change of these packages is taken for one that matters; it costs to measure again, once.
    """
    package = Path(kinfolk.__file__).parent
    sources = sorted(file for name in _MEASURING for file in (package / name).rglob("*.py"))
    lines = [f"{file.relative_to(package).as_posix()} {sha256(file)}" for file in sources]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def remembered(
    kind: str, checkpoints: list[str | None], settings: dict[str, Any], compute: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """What `compute` gives, and whether it was known: results are kept by kind, checkpoints and settings.

    `checkpoints` are digests; with None among them nothing is kept. Our own code, versions of the libraries and the
    kind of device belong to the key, for they move last digits. A file that cannot be read counts as none, and one
    that cannot be written is not needed.
    """
    if None in checkpoints:
        return compute(), False
    key = {
        "kind": kind,
        "checkpoints": checkpoints,
        "settings": settings,
        "code": code_digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder() / f"{name}.json"
    known = _read(path, key)
    if known is not None:
        return known, True
    result = compute()
    try:
        files.write_json(path, {"key": key, "result": result})
    except OSError:
        return result, False
    return result, False


def _read(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    try:
        kept = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    matches = isinstance(kept, dict) and kept.get("key") == key and isinstance(kept.get("result"), dict)
    return kept["result"] if matches else None
