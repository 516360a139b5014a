"""The ledger of a run: an append-only record of what started, finished, grew from what, and what it cost."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.lines import line_of, read_lines

_NEEDED = {
    "version_prepared": ("version",),
    "stage_finished": ("stage",),
    "stage_diverged": ("stage",),
    "member_finished": ("member", "sha256"),
}
"""Fields, all of them texts, without which an event that a build goes by says nothing."""


class Ledger:
    """Appends JSON lines to `ledger.jsonl`; each is on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; NaN and infinity are refused (ValueError)."""
        line = line_of({"event": event, "time": round(time.time(), 3), **fields})
        with open(self._path, "a+b") as file:
            # A process killed while it wrote leaves half a line: end it, so that this event stands on its own.
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """All whole events in order, or those of one kind; damaged lines, also half ones, are passed over."""
        records = (record for _, record in read_lines(self._path).records)
        return [record for record in records if _is_whole(record) and event in (None, record["event"])]

    def damaged(self) -> tuple[int, ...]:
        """Numbers of the lines that are not what was written, or that a kill has cut in half."""
        return read_lines(self._path).damaged


def _is_whole(record: dict[str, Any]) -> bool:
    event = record.get("event")
    return isinstance(event, str) and all(isinstance(record.get(name), str) for name in _NEEDED.get(event, ()))


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


@contextmanager
def only_build_in(run: Path) -> Iterator[None]:
    """Hold the run directory for this process; KinfolkError if another build holds it. A dead process holds nothing."""
    with open(run / "lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KinfolkError(
                "another build is at work in this run directory",
                where=str(run),
                fix="wait for it, or choose another --run",
            ) from None
        yield
