"""The live view of a build: the family's and the stage's progress on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from kinfolk.build.line import decay_begin

LINE_SECONDS = 10.0
"""Time between two lines where there is no terminal."""


class LiveView:
    """Shows stage, step, loss, tokens per second, and the time left of the stage and of the family."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._family: TaskID | None = None
        self._work: dict[str, float] = {}
        self._work_before = 0.0
        self._work_at_start: float | None = None
        self._started = 0.0
        self._task: TaskID | None = None
        self._name = ""
        self._steps = 0
        self._last_line = 0.0
        self._began = 0.0
        self._held_out = ""
        self._stages: dict[str, dict[str, Any]] = {}
        self._forecast = ""
        self._advised = False

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def planned(self, name: str, stages: Sequence[dict[str, Any]]) -> None:
        """Know the plan's stages in the order in which they run, so that the time left of all of them can be told."""
        self._finish_bar()
        self._stages = {stage["name"]: stage for stage in stages}
        if self._family is not None:  # of a plan that came first, as a probe does
            self._bars.remove_task(self._family)
            self._work_at_start = None
        self._work = {stage["name"]: stage["flops"]["matmul"] for stage in stages}
        self._family = self._bars.add_task(name, total=sum(self._work.values()), figures="")

    def stage_started(self, name: str, steps: int, first_step: int) -> None:
        """Begin a stage's bar at `first_step`."""
        self._finish_bar()
        self._name, self._steps = name, steps
        self._last_line, self._held_out = time.monotonic(), ""
        self._forecast, self._advised = "", False
        names = list(self._work)
        self._work_before = sum(self._work[earlier] for earlier in names[: names.index(name)]) if name in names else 0.0
        if self._work_at_start is None:
            self._started, self._work_at_start = time.monotonic(), self._work_done(first_step)
        self._task = self._bars.add_task(f"  {name}", total=steps, completed=first_step, figures="")

    def stepped(self, record: dict[str, Any]) -> None:
        """Show a metrics record of the running stage."""
        if "held_out_loss" in record:
            self._held_out = f"  held-out {record['held_out_loss']:.3f}"
        if "forecast_loss" in record:
            low, high = record["forecast_low"], record["forecast_high"]
            self._forecast = f"  end {record['forecast_loss']:.3f} ({low:.3f} to {high:.3f})"
        if "advised_gain" in record and not self._advised:
            self._advised = True
            self.say(
                f"{self._name}  the law would begin the decay {_advised_begin(record)} instead: "
                f"{record['advised_gain']:.3f} nats lower at the end"
            )
        name = next((name for name in ("loss", "patch_loss") if name in record), None)
        if name is None or self._task is None:
            return
        step = record["step"]
        figures = (
            f"step {step}/{self._steps}  {name.replace('_', ' ')} {record[name]:.3f}{self._held_out}{self._forecast}"
            f"{self._decay_to_come(step)}  "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
        self._bars.update(self._task, completed=step, figures=figures)
        if self._family is not None:
            self._bars.update(self._family, completed=self._work_done(step))
        if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{self._name}  {figures}{self._family_left(step)}")

    def prepared(self, what: str, done: int, total: int | None) -> None:
        """Show the progress of preparing data, in bytes of text."""
        if self._task is None or self._name != what:
            self._finish_bar()
            self._name, self._last_line = what, time.monotonic()
            self._task = self._bars.add_task(what, total=total, figures="")
        self._bars.update(self._task, completed=done, total=total, figures=f"{done / 1e6:,.1f} MB")
        if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{what}  {done / 1e6:,.1f} MB")

    def counted(self, what: str, done: int, total: int | None) -> None:
        """Show the progress of any other preparation, in what it counts."""
        if self._task is None or self._name != what:
            self._finish_bar()
            self._name, self._last_line, self._began = what, time.monotonic(), time.monotonic()
            self._task = self._bars.add_task(what, total=total, figures="")
        rate = done / max(time.monotonic() - self._began, 1e-3)
        figures = f"{done:,}{'' if total is None else f' of {total:,}'}  {rate:,.0f} /s"
        self._bars.update(self._task, completed=done, total=total, figures=figures)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            left = "" if total is None or not done else f"  {duration((total - done) / rate)} left"
            self.say(f"{what}  {figures}{left}")

    def say(self, message: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _decay_to_come(self, step: int) -> str:
        """Where the decay of a stage that holds its rate is planned to begin."""
        begin = decay_begin(self._stages[self._name]) if self._name in self._stages else None
        return f"  decay from step {begin:,}" if begin is not None and step < begin else ""

    def _work_done(self, step: int) -> float:
        """FLOPs of the plan done so far, by this process and those before it."""
        return self._work_before + self._work.get(self._name, 0.0) * step / self._steps

    def _family_left(self, step: int) -> str:
        """Time left of the whole plan, at the rate of this process so far."""
        done_here = self._work_done(step) - (self._work_at_start or 0.0)
        if not self._work or done_here <= 0:
            return ""
        left = sum(self._work.values()) - self._work_done(step)
        return f"  {duration(left * (time.monotonic() - self._started) / done_here)} left of the family"

    def _finish_bar(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def _advised_begin(record: dict[str, Any]) -> str:
    """Where the law would begin the decay, in words."""
    if "advised_decay_steps_after" not in record:
        return f"at step {record['advised_decay_step']:,.0f}"
    after = record["advised_decay_steps_after"]
    return f"{after:,.0f} step{'' if after == 1 else 's'} after this stage"


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min 20 s, 2 h 5 min, 4 d 4 h, 12 years.

    >>> [duration(t) for t in (8, 200, 7500, 360000, 4e8)]
    ['8 s', '3 min 20 s', '2 h 5 min', '4 d 4 h', '12.7 years']
    """
    year = 365.25 * 86400
    if seconds >= year:
        years = seconds / year
        return f"{years:,.0f} years" if years >= 100 else f"{years:.3g} years"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, names in ((3600, 60, ("min", "s")), (86400, 3600, ("h", "min")), (None, 86400, ("d", "h"))):
        if large is None or whole < large:
            first, rest = divmod(whole, small)
            second = rest * {"s": 60, "min": 60, "h": 24}[names[1]] // small
            return f"{first} {names[0]}" + (f" {second} {names[1]}" if second else "")
    raise AssertionError("the last unit has no end")
