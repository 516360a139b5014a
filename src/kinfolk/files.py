"""Writing to disk so that a reader, or a killed process, never sees half a file.

Everything is written beside its final name, flushed to the disk and renamed: a rename within one folder is atomic.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"
"""Suffix of files and folders that are still being written; whatever carries it may be deleted at any time."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    unfinished.unlink(missing_ok=True)  # a link in its place would lead elsewhere
    try:
        with open(unfinished, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def new_directory(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it replaces `path`, on any exception it is removed.

    Without `flush` a loss of power in the next half minute or so can leave holes in it, as it can after `cp`.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if flush:
            flush_directory(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    publish(unfinished, path)


def publish(unfinished: Path, path: Path) -> None:
    """Give a folder that is flushed its final name, at which nothing may be."""
    unfinished.rename(path)
    _flush(path.parent)


def flush_directory(path: Path) -> None:
    """Have the disk hold everything below `path` before anyone renames it."""
    for each in (*path.rglob("*"), path):
        _flush(each)


def _flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
