"""The ledger of a run: an append-only record of what started, finished, grew from what, and what it cost."""

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinfolk.lines import line_of, read_lines

_NEEDED = {
    "version_prepared": ("version",),
    "stage_finished": ("stage",),
    "stage_diverged": ("stage",),
    "member_finished": ("member", "sha256"),
    "members_compared": ("member",),
}
"""Fields, all of them texts, without which an event that a build goes by says nothing."""


JOB_FINISHED = "job_finished"
"""Event: one of several jobs has done all that its members need."""


class Ledger:
    """Appends JSON lines to `ledger.jsonl`, from any process; each is on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; NaN and infinity are refused (ValueError)."""
        line = line_of({"event": event, "time": round(time.time(), 3), **fields})
        with open(self._path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A process killed while it wrote leaves half a line: end it, so that this event stands on its own.
            before = b"\n" if file.seek(0, os.SEEK_END) and not _ends_with_newline(file) else b""
            file.write(before + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """All whole events in order, or those of one kind; damaged lines, also half ones, are passed over."""
        records = (record for _, record in read_lines(self._path).records)
        return [record for record in records if _is_whole(record) and event in (None, record["event"])]

    def damaged(self) -> tuple[int, ...]:
        """Numbers of the lines that are not what was written, or that a kill has cut in half."""
        try:
            with open(self._path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)  # so that none is half written at the moment
                return read_lines(self._path).damaged
        except FileNotFoundError:
            return ()

    def is_over(self) -> bool:
        """Whether the last build has come to its end."""
        return is_over([event["event"] for event in self.events()])


def is_over(events: Sequence[str]) -> bool:
    """Whether events of these names, in order, end with the end of a build; jobs may notice it afterwards.

    >>> is_over(["build_started", "build_finished", "job_finished"]), is_over(["build_finished", "build_started"])
    (True, False)
    """
    last = next((event for event in reversed(events) if event != JOB_FINISHED), None)
    return last == "build_finished"


def _is_whole(record: dict[str, Any]) -> bool:
    event = record.get("event")
    return isinstance(event, str) and all(isinstance(record.get(name), str) for name in _NEEDED.get(event, ()))


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
