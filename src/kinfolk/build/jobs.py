"""A job that builds all of a family or, beside others, some of its members: what it takes up next, and what it awaits.

Nobody hands out work. A job looks in the ledger for what its members still need, and takes the first stage that can
begin and that no other job holds. Where jobs need the same stage, one trains it and the others wait; if it dies, one of
them goes on with the stage. What others have done is read under the stage's lock, so that nothing is done twice.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from kinfolk.build.damage import set_aside_damaged, set_aside_of_stage
from kinfolk.build.ledger import JOB_FINISHED
from kinfolk.build.locks import Lock, one_at_a_time, pauses, stage_lock
from kinfolk.build.remaining import share_of, stages_to_train, unfinished_members
from kinfolk.build.run import BuildView, Run
from kinfolk.plan.stages import Stage
from kinfolk.train.engine import Engine
from kinfolk.train.monitor import read_metrics

REMINDER_SECONDS = 60.0
"""Time between two words about a stage that a job waits for."""


@dataclass(frozen=True)
class Turn:
    """What a job does next, with the stage's lock in its hand."""

    stage: str
    trains: bool
    finishes: bool
    """Whether the member of the stage is to be finished."""


class Job:
    """The work of one build, about which its main process decides. A context manager: leaving frees its stage."""

    def __init__(self, run: Run, only: Sequence[str], view: BuildView) -> None:
        """`only` names the members that this job is given; all of them where it is empty."""
        self._run = run
        self._view = view
        self._share = share_of(run.plan, only)
        # A build alone needs no name, and its ledger says the same each time.
        self._name = {"job": uuid.uuid4().hex[:8]} if only else {}
        self._given = {"only": list(only)} if only else {}
        self._held: Lock | None = None
        self._not_visited = set(self._share.stages)
        self._not_looked_through = set[str]()

    def look_through(self) -> None:
        """Set aside what is damaged of what the job needs; what another job works on is looked at when it is due."""
        self._not_looked_through = set_aside_damaged(self._run, self._share, self._view)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do: neither of the share, nor to end a build that nobody has ended."""
        training, finishing = self._to_do()
        return not training and not finishing and (self._run.ledger.is_over() or not self._all_is_done())

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The job's stages as plan.json holds them."""
        return [each for each in self._run.document["stages"] if each["name"] in self._share.stages]

    def begin(self, **facts: Any) -> None:
        """Record that a build is at work."""
        self._run.ledger.append("build_started", **self._name, **self._given, **facts)

    def next_turn(self) -> Turn | None:
        """What to do now that the last turn is over; waits for other jobs where they hold all that can begin.

        Every stage of the share comes at least once, unless another job holds it and this one does not need it. None
        when there is nothing left.
        """
        self.release()
        waiting, pause = _Waiting(self._run, self._view.say), pauses()
        while True:
            awaited = []
            training, finishing = self._to_do()
            for stage in self._run.plan.stages:
                is_needed = stage.name in training or stage.member in finishing
                if not (is_needed or stage.name in self._not_visited) or stage.parent in training:
                    continue
                if self._take(stage):
                    turn = self._turn(stage)
                    if turn is not None:
                        return turn
                    break  # what is to do has changed meanwhile: look round again
                if is_needed:
                    awaited.append(stage)
                else:
                    self._not_visited.discard(stage.name)  # another job is at the rest of it
            else:
                if not awaited:
                    return None
                waiting.say_of(awaited[0])
                next(pause)

    def end(self, engine: Engine, check: Callable[[Stage], None], compare: Callable[[], None], seconds: float) -> None:
        """Record the end of the job, and of the whole build if nothing is left of it; every process calls this.

        Then `check` comes first, for every stage, and `compare`, which every process calls too: what jobs leave open
        when they are killed, or because none of them sees all that the others do.
        """
        ledger = self._run.ledger

        with ExitStack() as held:

            def begin_ending() -> bool:
                self.release()
                held.enter_context(one_at_a_time(self._run.folder, self._view.say))
                return self._all_is_done() and not ledger.is_over()

            is_last = engine.from_main(begin_ending)
            if is_last:
                for stage in self._run.plan.stages:
                    with stage_lock(self._run.folder, stage.name) as lock:
                        # The job that has finished its member may still be at its forecast.
                        words = f"{stage.name}  is held by another job, which may check its forecast; waiting for it"
                        engine.on_main(partial(lock.wait, partial(self._view.say, words)))
                        check(stage)
                compare()
            event = "build_finished" if is_last else JOB_FINISHED
            engine.on_main(lambda: ledger.append(event, **self._name, seconds=seconds))
        if not is_last and engine.is_main:
            self._say_what_is_left()

    def _say_what_is_left(self) -> None:
        left = sorted(unfinished_members(self._run))
        if left:
            self._view.say(f"{self._run.family.name}  finished here; still to be built: {', '.join(left)}")

    def release(self) -> None:
        """Give back the stage of the last turn."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, stage: Stage) -> bool:
        """Take a stage, and return whether no other job holds it."""
        lock = stage_lock(self._run.folder, stage.name)
        if not lock.take():
            return False
        self._held = lock
        return True

    def _turn(self, stage: Stage) -> Turn | None:
        """What to do with the stage that was taken; None, and it is given back, where it cannot begin after all."""
        if stage.name in self._not_looked_through:
            set_aside_of_stage(self._run, stage, self._share, self._view)
            self._not_looked_through.discard(stage.name)
        training, finishing = self._to_do()  # as it is now that nobody else changes it
        if stage.parent in training:
            self.release()
            return None
        self._not_visited.discard(stage.name)
        return Turn(stage.name, stage.name in training, stage.member in finishing)

    def _to_do(self) -> tuple[set[str], set[str]]:
        """Stages to train and members to finish, of the share."""
        return stages_to_train(self._run, self._share), unfinished_members(self._run) & self._share.members

    def _all_is_done(self) -> bool:
        """Whether every stage of the family is trained, and every member finished."""
        return not stages_to_train(self._run) and not unfinished_members(self._run)


class _Waiting:
    """Tells what a job waits for: when that changes, and then every minute."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self._run = run
        self._say = say
        self._told: tuple[str, float] | None = None

    def say_of(self, stage: Stage) -> None:
        now = time.monotonic()
        if self._told is None or self._told[0] != stage.name or now - self._told[1] >= REMINDER_SECONDS:
            self._told = stage.name, now
            step = _step(self._run.stages / stage.name / "metrics.jsonl")
            self._say(f"{stage.name}  is held by another job, at step {step} of {stage.steps}; waiting for it")


def _step(metrics: Path) -> int:
    """The last step that a stage has on record."""
    records = read_metrics(metrics)
    return int(records[-1]["step"]) if records else 0
