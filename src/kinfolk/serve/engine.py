"""The one thread that generates: requests take turns, first come first served.

One at a time, so that an answer does not depend on what else is asked (a batch rounds otherwise), and so that the
memory of one request is the memory of all.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kinfolk.serve.generation import Piece, Wish, generate_answer
from kinfolk.serve.metrics import Metrics
from kinfolk.serve.served import Served

log = logging.getLogger("kinfolk.serve")


@dataclass(frozen=True)
class Done:
    """The last event of a job that went well; `tokens` of all its answers."""

    tokens: int


@dataclass(frozen=True)
class Failed:
    """The last event of a job that did not."""

    error: Exception


Event = Piece | Done | Failed


@dataclass(eq=False)
class Job:
    """The answers to one request: `answers` to each of its prompts."""

    prompts: list[list[int]]
    answers: int
    wish: Wish
    tell: Callable[[Event], None]
    """Called in the engine's thread, with pieces and then one Done or Failed."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    created: float = field(default_factory=time.monotonic)


class Engine:
    """Runs jobs in a thread of its own, from `start` to `stop`."""

    def __init__(self, served: Served, seconds: float, metrics: Metrics) -> None:
        """`seconds` are the longest that one job is worked on."""
        self._served, self._seconds, self._metrics = served, seconds, metrics
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="kinfolk-generation", daemon=True)
        self.usual_seconds = 1.0
        """How long jobs took, a running mean."""
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: self._running is not None)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel everything and wait for the token that is being made."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.cancelled.set()
            if self._running is not None:
                self._running.cancelled.set()
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Put a job at the queue's end."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants this job any more: it leaves the queue, or ends at its next token. No harm once it is done."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.generations.labels("cancelled").inc()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting)
                if self._stopping:
                    return
                self._running = job = self._waiting.popleft()
            began = time.monotonic()
            last: Event
            try:
                end, last = self._run(job, began)
            except Exception as error:  # whatever a model raises: the next job must not suffer from it
                log.exception("a generation failed")
                end, last = "failed", Failed(error)
                if self._served.model.device.type == "cuda":
                    torch.cuda.empty_cache()
            self._running = None
            self._metrics.generations.labels(end).inc()
            self.usual_seconds = 0.7 * self.usual_seconds + 0.3 * (time.monotonic() - began)
            job.tell(last)

    def _run(self, job: Job, began: float) -> tuple[str, Done]:
        """Make all answers of a job; how it ended, in a word and as an event."""
        tokens = 0
        seen = False

        def give(piece: Piece) -> None:
            nonlocal seen
            if piece.text and not seen:
                seen = True
                self._metrics.first_token.observe(time.monotonic() - job.created)
            job.tell(piece)

        def late() -> bool:
            return time.monotonic() - began > self._seconds

        for choice in range(len(job.prompts) * job.answers):
            if job.cancelled.is_set():
                break
            if late():
                give(Piece(choice, "", (), "length"))
                continue
            number, answer = divmod(choice, job.answers)
            made = generate_answer(
                self._served,
                job.prompts[number],
                job.wish,
                choice,
                answer,
                give,
                lambda: job.cancelled.is_set() or late(),
            )
            tokens += made
            self._metrics.tokens.inc(made)
        return "cancelled" if job.cancelled.is_set() else "timeout" if late() else "done", Done(tokens)
