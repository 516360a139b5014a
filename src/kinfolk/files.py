"""Writing to disk so that a reader, or a killed process, never sees half a file.

Everything is written beside its final name, flushed to the disk and renamed: a rename within one folder is atomic.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from kinfolk.cores import usable_cores

UNFINISHED = ".unfinished"
"""Suffix of files and folders that are still being written; whatever carries it may be deleted at any time."""

_CHUNK = 1 << 20
"""Bytes that are read and hashed at once."""

Progress = Callable[[int, int], None]
"""Is told how many bytes are done, and of how many."""

_SECONDS_OF_SILENCE = 1.0


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
    return _sha256(path, lambda _: None)


def sha256_each(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """`sha256` of several files, one on each core at a time.

    `progress` is told every second; what it raises stops the work.
    """
    total = sum(path.stat().st_size for path in paths)
    read = [0] * len(paths)
    stopped = Event()

    def hashed(number: int) -> str:
        def count(size: int) -> None:
            read[number] += size
            if stopped.is_set():
                raise CancelledError

        return _sha256(paths[number], count)

    with ThreadPoolExecutor(usable_cores()) as threads:
        waiting = [threads.submit(hashed, number) for number in range(len(paths))]
        try:
            while wait(waiting, timeout=_SECONDS_OF_SILENCE).not_done:
                if progress is not None:
                    progress(sum(read), total)
            return [each.result() for each in waiting]
        finally:
            stopped.set()


def _sha256(path: Path, count: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            count(len(chunk))
    return digest.hexdigest()
