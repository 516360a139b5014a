"""Has a process die at a chosen call. Only for processes about to end."""

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any


def wrap(target: str, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Have a function, named as module:attribute, call `before` and `after`. Only for processes about to end."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    real = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        result = real(*arguments, **named)
        after()
        return result

    setattr(owner, name, wrapped)


def die_at(number: int) -> Callable[[], None]:
    """A function that kills the process when it is called for the `number`th time."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return count
