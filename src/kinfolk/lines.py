"""Files of JSON lines that a run writes: the ledger and the metrics. Every line ends with a checksum of what it says.

So a bit that flips in a number is noticed, where JSON alone would read another number. Lines without a checksum, of
earlier versions or written by hand, are taken as they are.
"""

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinfolk.json_text import parse_json

_CHECKSUM = re.compile(r', "crc32": "([0-9a-f]{8})"}$')


@dataclass(frozen=True)
class Lines:
    """What a file of JSON lines holds."""

    records: tuple[tuple[int, dict[str, Any]], ...]
    """Each whole record with the number of its line."""
    damaged: tuple[int, ...]
    """Numbers of the lines that hold none, or another one than was written. A kill can leave half a line."""


def line_of(record: dict[str, Any]) -> str:
    """A record, which has a field at least, as one line without its end; NaN and infinity are refused (ValueError)."""
    text = json.dumps(record, allow_nan=False)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}'


def read_lines(path: Path) -> Lines:
    """The records of a file; one that is missing holds none. OSError for one that cannot be read."""
    try:
        return parse_lines(path.read_bytes().decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return Lines((), ())


def parse_lines(text: str) -> Lines:
    """The records of a text of JSON lines. Blank lines count in the numbers and hold nothing."""
    records: list[tuple[int, dict[str, Any]]] = []
    damaged: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            record = _record(line)
            if record is None:
                damaged.append(number)
            else:
                records.append((number, record))
    return Lines(tuple(records), tuple(damaged))


def _record(line: str) -> dict[str, Any] | None:
    found = _CHECKSUM.search(line)
    if found:
        line = line[: found.start()] + "}"
        if f"{zlib.crc32(line.encode()):08x}" != found[1]:
            return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
