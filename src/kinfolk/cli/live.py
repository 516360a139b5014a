"""The live view of a command that trains, and how the command ends when it was stopped."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinfolk.build.view import LiveView


def is_main_process() -> bool:
    """Whether this process is the one that speaks for all those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def live_view() -> "Iterator[LiveView]":
    """A view on stderr, silent in processes that do not speak; a stop that was asked for ends the process in words."""
    from rich.console import Console

    from kinfolk.build.view import LiveView
    from kinfolk.train.engine import MainStopped
    from kinfolk.train.interruption import Interrupted

    console = Console(stderr=True, quiet=not is_main_process())
    try:
        with LiveView(console) as view:
            yield view
    except Interrupted as stop:
        message = f"stopped by {stop}; what was done is saved, and the same command goes on from there"
        console.print(message, soft_wrap=True)
        sys.exit(128 + stop.number)
    except MainStopped:
        sys.exit(1)
