"""The live view of a build: one progress bar a stage on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


class LiveView:
    """Shows stage, step, loss, tokens per second and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._steps = 0
        self._tokens_per_step = 0
        self._last_line = 0.0
        self._held_out = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage_started(self, name: str, steps: int, first_step: int, tokens_per_step: int) -> None:
        """Begin a stage's bar at `first_step`."""
        self._finish_bar()
        self._name, self._steps, self._tokens_per_step = name, steps, tokens_per_step
        self._last_line, self._held_out = time.monotonic(), ""
        self._task = self._bar.add_task(name, total=steps, completed=first_step, figures="")

    def stepped(self, record: dict[str, Any]) -> None:
        """Show a metrics record of the running stage."""
        if "held_out_loss" in record:
            self._held_out = f"  held-out {record['held_out_loss']:.3f}"
        if "loss" not in record or self._task is None:
            return
        figures = f"loss {record['loss']:.3f}{self._held_out}  {record['tokens_per_second']:,.0f} tokens/s"
        self._bar.update(self._task, completed=record["step"], figures=figures)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            left = (self._steps - record["step"]) * self._tokens_per_step / record["tokens_per_second"]
            self.say(f"{self._name}  step {record['step']}/{self._steps}  {figures}  {duration(left)} left")

    def prepared(self, what: str, done: int, total: int | None) -> None:
        """Show the progress of preparing data."""
        if self._task is None or self._name != what:
            self._finish_bar()
            self._name, self._last_line = what, time.monotonic()
            self._task = self._bar.add_task(what, total=total, figures="")
        self._bar.update(self._task, completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{what}  {done:,}" + (f" of {total:,}" if total else ""))

    def say(self, message: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _finish_bar(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min 20 s, 2 h 5 min, 4 d 3 h.

    >>> [duration(t) for t in (8, 200, 7500, 360000)]
    ['8 s', '3 min 20 s', '2 h 5 min', '4 d 4 h']
    """
    whole = round(seconds)
    for small, large, unit, of in ((1, 60, "s", ""), (60, 3600, "min", "s"), (3600, 86400, "h", "min")):
        if whole < large:
            rest = whole % small * 60 // small if of else 0
            return f"{whole // small} {unit}" + (f" {rest} {of}" if rest else "")
    return f"{whole // 86400} d" + (f" {whole % 86400 // 3600} h" if whole % 86400 >= 3600 else "")
