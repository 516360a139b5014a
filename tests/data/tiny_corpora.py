"""Tiny corpora from a seeded grammar; nothing here is read from outside the test's own folder."""

import bz2
import gzip
import json
import random
from pathlib import Path

import zstandard

NOUNS = ["raven", "mill", "lantern", "river", "cobbler", "façade", "学校", "naïveté"]
VERBS = ["sees", "mends", "follows", "forgets", "paints"]


def story(number: int, sentences: int = 12) -> str:
    """A small text of its own for every number."""
    draw = random.Random(number)
    lines = [f"The {draw.choice(NOUNS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}." for _ in range(sentences)]
    return f"Story {number}.\n" + "\n".join(lines) + "\n"


def compressed(name: str, raw: bytes) -> bytes:
    match Path(name).suffix:
        case ".gz":
            return gzip.compress(raw)
        case ".bz2":
            return bz2.compress(raw)
        case ".zst":
            return zstandard.compress(raw)
    return raw


def write_json_lines(path: Path, texts: list[str], field: str = "text") -> Path:
    lines = "".join(json.dumps({"n": n, field: text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed(path.name, lines.encode("utf-8")))
    return path
