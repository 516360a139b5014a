"""The report of runs that may still grow, made anew only when their files have changed and somebody looks."""

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from kinfolk.build.ledger import Ledger
from kinfolk.errors import KinfolkError, in_short
from kinfolk.report import embed
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run

_SKIPPED = frozenset(("checkpoints", "tensorboard", "data", "members"))
"""Folders of a run in which no figure of the page lies."""

_KINDS = (".json", ".jsonl", ".yaml")

_PAUSE = 4.0
"""After a page that took a second to make, so many seconds pass before the next one: the build needs the machine."""


@dataclass(frozen=True)
class View:
    """The page at one moment."""

    version: str
    """Changes whenever the page does."""
    page: bytes
    update: bytes
    """The page without its scripts, for a tab that has them already."""


class LiveReport:
    """The page about `runs`, of which any may be unfinished or not there yet. Safe to use from several threads."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = tuple(runs)
        self._lock = threading.Lock()
        self._seen: frozenset[tuple[str, int, int]] | None = None
        self._report: str | None = None
        self._view: View | None = None
        self._not_before = 0.0

    def view(self) -> View:
        """The page as the runs' files have it now, or had it a few seconds ago."""
        with self._lock:
            began = time.monotonic()
            if self._view is not None and began < self._not_before:
                return self._view
            seen = frozenset(_files(self._runs))
            if self._view is None or seen != self._seen:
                self._view, self._seen = self._made(), seen
                ended = time.monotonic()
                self._not_before = ended + _PAUSE * (ended - began)
            return self._view

    def seconds_since_change(self) -> float | None:
        """How long ago any of the runs' files changed; None before there are any."""
        changes = [changed for _, changed, _ in _files(self._runs)]
        return max(0.0, time.time() - max(changes) / 1e9) if changes else None

    def finished(self) -> bool:
        """Whether the builds of all runs have ended."""
        return all(_finished(run / "ledger.jsonl") for run in self._runs)

    def _made(self) -> View:
        report, problem = _report(self._runs)
        # What cannot be read at this moment could be a moment ago: the reader keeps that page, and is told.
        self._report = report or self._report
        if self._report is None:
            return _view(_waiting(self._runs, problem), "waiting", "")
        return _view(self._report, "finished" if self.finished() else "building", problem)


def _report(runs: Sequence[Path]) -> tuple[str | None, str]:
    """The page about those of the runs that can be read, and what is wrong with the others."""
    try:
        return _page(runs), ""
    except Exception as error:
        # A build writes while we read: what is half there now is whole at the next look.
        problems = {run: _problem(run) for run in runs}
        ready = [run for run in runs if not problems[run]]
        told = "; ".join(f"{run.name}: {problem}" for run, problem in problems.items() if problem) or in_short(error)
        if not ready or len(ready) == len(runs):
            return None, told
        page, more = _report(ready)
        return page, "; ".join(part for part in (told, more) if part)


def _page(runs: Sequence[Path]) -> str:
    with tempfile.TemporaryDirectory(prefix="kinfolk-watch-") as folder:
        return write_report(runs, Path(folder) / "report.html").read_text("utf-8")


def _problem(run: Path) -> str:
    try:
        read_run(run)
    except KinfolkError as error:
        return error.problem
    except Exception as error:
        return in_short(error)
    return ""


def _finished(ledger: Path) -> bool:
    try:
        return Ledger(ledger).is_over()
    except OSError:
        return False


def _files(runs: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    """Name, time of change and size of every file that the page may show."""
    for run in runs:
        for folder, inner, names in os.walk(run):
            inner[:] = [name for name in inner if name not in _SKIPPED]
            for path in (Path(folder, name) for name in names if name.endswith(_KINDS)):
                try:
                    found = path.stat()
                except OSError:
                    continue  # It has been renamed since.
                yield str(path), found.st_mtime_ns, found.st_size


def _waiting(runs: Sequence[Path], problem: str) -> str:
    template = embed.environment().get_template("watch_waiting.html.jinja")
    return embed.as_text(template.render(runs=[run.name or str(run) for run in runs], problem=problem))


def _view(page: str, state: str, problem: str) -> View:
    """A page with what keeps it live: a script, and a policy that lets it ask its own server and nobody else."""
    version = hashlib.sha256(f"{state}\n{problem}\n{page}".encode()).hexdigest()[:32]
    script = Markup((Path(__file__).parent.parent / "templates" / "watch.js").read_text("utf-8"))
    template = embed.environment().get_template("watch.jinja")
    inset = embed.as_text(template.render(version=version, state=state, problem=problem, script=script))
    page = page.replace("script-src ", f"connect-src 'self'; script-src '{embed.hashes([script])[0]}' ", 1)
    # The script remembers the page as it was sent, and so it runs before the one that draws.
    page = page.replace(_PLOTS, inset + _PLOTS, 1)
    return View(version, page.encode(), re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).encode())


_PLOTS = '<script type="application/json" id="plots">'
"""Begins the last part of every page: the figures, and behind them the scripts."""
