"""Ctrl-C and SIGTERM: a training loop is asked to save and stop; anything else stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from kinfolk.train.engine import Engine

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the scheduler asked to stop. Not an Exception, so that nothing mistakes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        return type(self), (self.number,)


class Interruption:
    """Whether a stop was asked for. While deferred, a signal is only noted; a second one stops at once.

    Under torchrun a second one is passed over: Ctrl-C reaches every process from the terminal, and again from torchrun,
    which kills those that take too long.
    """

    def __init__(self, second_stops: bool = True) -> None:
        self.requested: int | None = None
        self._second_stops = second_stops
        self._deferred = False

    @contextmanager
    def watched(self) -> Iterator["Interruption"]:
        """Handle the signals until the block ends, then put the former handlers back."""
        former = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals instead of raising, for code that looks at `requested` itself."""
        former, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = former

    def heed(self) -> None:
        """Raise Interrupted if a stop was asked for: for work on which nothing of what comes after it depends."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        stops_at_once = self._second_stops if self.requested is not None else not self._deferred
        if self.requested is None:
            self.requested = number
        if stops_at_once:
            raise Interrupted(number)


@contextmanager
def stopping_together(interruption: Interruption, engine: Engine) -> Iterator[Callable[[], None]]:
    """Work in which every process takes part, and none may leave the others in the middle; gives `heed`.

    What was asked of one process stops all when they call `heed` together, which they do once more at the end: the main
    process raises Interrupted, the others MainStopped. A process alone stops at once.
    """

    def heed() -> None:
        engine.together(interruption.heed)

    with interruption.deferred() if engine.world_size > 1 else nullcontext():
        yield heed
        heed()
