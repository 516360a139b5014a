"""One file on disk becomes documents: plain text, JSON lines or Parquet, compressed or not.

Everything streams. A document is at most one text in memory, whatever the size of the file it comes from.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ENDINGS = (".txt", ".md", ".jsonl", ".parquet")
SUPPORTED = ".txt, .md or .jsonl (also with .gz, .bz2 or .zst) or .parquet"

_BYTE_ORDER_MARK = "\ufeff"
_ROWS_AT_ONCE = 64
_SHOWN_FIELDS = 12


@dataclass(frozen=True)
class Document:
    """One text, never blank, with a name that people can find it by: a file, a file and line, a country."""

    id: str
    text: str


def ending(name: str) -> str | None:
    """The ending out of `ENDINGS` that decides how a file is read, or None if it cannot be."""
    path = Path(name)
    inner = Path(path.stem).suffix.lower()
    if path.suffix.lower() in COMPRESSIONS:
        return inner if inner in ENDINGS and inner != ".parquet" else None
    return path.suffix.lower() if path.suffix.lower() in ENDINGS else None


def expand_home(path: str) -> str:
    """A path as the user wrote it with "~" filled in; unlike Path's, this leaves a name such as "~old" alone."""
    return os.path.expanduser(path)  # noqa: PTH111


def read_file(path: Path, name: str, text_field: str, where: str) -> Iterator[Document]:
    """Yield the documents of one file; blank lines and rows with a blank text are passed over.

    `name` is what the file is called in document ids and errors; `where` goes before it in errors. Every fault of the
    file is a KinfolkError that names the file and, where there is one, the line, row or byte.
    """
    kind, place = ending(name), f"{where}: {name}"
    if kind is None:
        raise KinfolkError("cannot tell the format from the ending of the name", where=place, fix=f"use {SUPPORTED}")
    with _readable(path, place):
        if kind == ".parquet":
            yield from _read_parquet(path, name, text_field, place)
        elif kind == ".jsonl":
            yield from _read_json_lines(path, name, text_field, place)
        else:
            with _open(path) as file:
                text = _decode(file.read(), 0, place).removeprefix(_BYTE_ORDER_MARK)
            if not text.strip():
                raise KinfolkError("the file is empty", where=place, fix="remove it, or fill it")
            yield Document(name, text)


def read_rows(path: Path, name: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a .jsonl file, compressed or not, with their line numbers; blank lines are passed over.

    `name` is what the file is called in errors, and `example` a right line. Every fault of the file is a KinfolkError
    with file and line.
    """
    if ending(name) != ".jsonl":
        raise KinfolkError(
            "not a file of JSON lines by its name", where=name, fix="use .jsonl (also with .gz, .bz2 or .zst)"
        )
    with _readable(path, name):
        yield from _json_rows(path, name, example)


@contextmanager
def _readable(path: Path, place: str) -> Iterator[None]:
    """Report whatever keeps a file from being read, also while it streams."""
    try:
        if path.stat().st_size == 0:
            raise KinfolkError("the file is empty", where=place, fix="remove it, or fill it")
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise KinfolkError(f"cannot be read: {error}", where=place, fix="check that the file is whole") from error


def text_of(row: Mapping[str, Any], field: str, place: str) -> str:
    """The text of one row; KinfolkError if the field is missing, is no text, or is not Unicode."""
    if field not in row:
        raise KinfolkError(
            f"there is no field {field!r}: {_listed(row)}", where=place, fix="set text_field to one of them"
        )
    text = row[field]
    if not isinstance(text, str):
        raise KinfolkError(
            f"the field {field!r} holds {type(text).__name__}, not text",
            where=place,
            fix="set text_field to a text field",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair ("\ud83d"); it is no character, and no tokenizer can encode it.
        raise KinfolkError(
            f"the text holds half of a surrogate pair at character {error.start}", where=place, fix="mend the text"
        ) from error
    return text


def _open(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed.

    pyarrow reads all three compressions, several frames in one file too, and unlike zstandard's stream reader it says
    so when a file ends in the middle of a frame.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return open(path, "rb")
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression=compression)))


def _decode(raw: bytes, offset: int, place: str) -> str:
    """`raw`, which begins `offset` bytes into the file, as text. Line ends stay as they are: byte counts are exact."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KinfolkError(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at byte offset {offset + error.start}",
            where=place,
            fix="convert the file to UTF-8",
        ) from error


def _read_json_lines(path: Path, name: str, text_field: str, place: str) -> Iterator[Document]:
    for number, row in _json_rows(path, place, '{"text": "..."}'):
        text = text_of(row, text_field, f"{place}:{number}")
        if text.strip():
            yield Document(f"{name}:{number}", text)


def _json_rows(path: Path, place: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSON lines, with their line numbers."""
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            here = f"{place}:{number}"
            line = _decode(raw, offset, here)
            offset += len(raw)
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if line.strip():
                yield number, _parse(line, here, example)


def _parse(line: str, place: str, example: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except json.JSONDecodeError as error:
        raise KinfolkError(
            f"broken JSON: {error.msg} at column {error.colno}", where=place, fix="mend or remove the line"
        ) from error
    except ValueError as error:  # a number of thousands of digits, or nested too deeply
        raise KinfolkError(f"broken JSON: {error}", where=place, fix="mend or remove the line") from error
    if not isinstance(row, dict):
        raise KinfolkError(
            f"the line holds {type(row).__name__}, not an object", where=place, fix=f"write {example} on each line"
        )
    return row


def _read_parquet(path: Path, name: str, text_field: str, place: str) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                text_of(dict.fromkeys(columns), text_field, place)
            # Only the text is read, a few rows at a time: a row group can be larger than memory.
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[text_field], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    text = text_of({text_field: value.as_py()}, text_field, f"{place}: row {number}")
                    if text.strip():
                        yield Document(f"{name}:{number}", text)
    except UnicodeDecodeError as error:
        raise KinfolkError("the text is not UTF-8", where=f"{place}: row {number}") from error
    except pyarrow.ArrowException as error:
        raise KinfolkError(f"cannot be read as Parquet: {error}", where=place, fix="check the file is whole") from error


def _listed(row: Mapping[str, Any]) -> str:
    names = sorted(map(str, row))
    if not names:
        return "there are no fields at all"
    more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
    return f"the fields are {', '.join(names[:_SHOWN_FIELDS])}{more}"
