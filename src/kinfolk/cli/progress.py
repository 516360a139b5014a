"""A progress bar on stderr for whatever reports how many of how many parts are done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with rate and time left, and what is being done; `first` until something reports."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text("" if not task.speed else f"{task.speed:,.3g}/s")

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Where nobody watches, a bar would still leave an empty line behind.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(first, total=None)
        current = first

        def report(what: str, done: int, of: int) -> None:
            nonlocal current
            if what != current:  # something else has a rate of its own
                bar.reset(task)
                current = what
            bar.update(task, description=what, completed=done, total=of)

        yield report
