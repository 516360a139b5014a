"""What every training loop does around a step: begin at the newest checkpoint, agree, save, stop, and write down."""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from kinfolk.family.recipe import Checkpoints, Spikes
from kinfolk.train import checkpoint
from kinfolk.train.divergence import DivergedError, Watch
from kinfolk.train.engine import Engine
from kinfolk.train.interruption import Interrupted, Interruption
from kinfolk.train.monitor import Monitor, View, read_metrics
from kinfolk.train.saving import Saving, begin_save
from kinfolk.train.saving_clock import SavingClock
from kinfolk.train.spikes import SpikeWatch


@dataclass(frozen=True)
class Course:
    """What a training is called, how long it is, and where it lies."""

    name: str
    steps: int
    folder: Path
    """Holds checkpoints/, metrics.jsonl and tensorboard/."""
    saving: Checkpoints
    """When to save."""
    kept: Checkpoints
    """What to keep beside the newest at the end."""
    remedy: str
    """What to do when the loss is not finite."""
    spikes: Spikes | None = None
    """What is done about a loss far above those before; None where nobody looks."""
    loss_name: str = "loss"
    """What the metrics call the loss that is watched."""
    kept_meanwhile: Checkpoints | None = None
    """What to keep beside the newest until then, where that differs."""
    newest: int = 1
    """How many of the newest checkpoints there are between two saves, until the last."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"


class Resumable:
    """A training that can be stopped at any step, and goes on from its newest checkpoint with the same bytes.

    A loop opens it, asks `position` where it stands, and in every step calls `agreed` after the gradients and
    `advance` after the update; `finish` comes last. Every process of the engine makes the same calls.
    """

    def __init__(
        self,
        course: Course,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        watch: Watch,
        engine: Engine,
        view: View,
        interruption: Interruption,
    ) -> None:
        """Fill model and optimizer from the newest checkpoint, which must be there."""
        self._course = course
        self._watch = watch
        self._engine = engine
        self._view = view
        self._interruption = interruption
        kept = checkpoint.latest(course.checkpoints)
        assert kept is not None, "whoever trains prepares a first checkpoint"
        loading = time.monotonic()
        self._tensors = checkpoint.tensors_of(model, optimizer)
        wanted = self._tensors if checkpoint.has_optimizer(kept) else checkpoint.tensors_of(model, None)
        checkpoint.load(kept, wanted, engine)
        self._kept = kept
        self.spike: dict[str, float] = {}
        """What to record of the last step if its loss was a spike."""
        self.position = self.first = self.saved = checkpoint.position_of(kept)
        self._unfinished: Saving | None = None
        self._began = time.monotonic()
        self._spikes = self._spike_watch()
        self._saving = SavingClock(course.saving, expected=self._began - loading)
        self._monitor: Monitor | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._engine.is_main:
            self._view.stage_started(self._course.name, self._course.steps, self.first.step)
            self._monitor = self._open.enter_context(Monitor(self._course.folder, self.first.step, self._view))
        self._open.enter_context(self._interruption.deferred())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Wall time of training so far, over all processes that worked on it up to their last checkpoints."""
        return self.first.seconds + time.monotonic() - self._began

    @property
    def seconds_of_saving(self) -> float:
        """Time that this process spent on saving."""
        return self._saving.spent

    def agreed(self, sums: Sequence[float], count: float, gradient_norm: float, warmed_up: bool = False) -> list[float]:
        """Every process's sums together, divided by `count`; the first is the loss.

        Before the update, so that weights are saved, when a save is due, which this step has shown to be good: raises
        DivergedError where loss or gradient are not finite (or, of a training that is `warmed_up`, the loss stays worse
        than guessing), and Interrupted, after saving, when a stop was asked for.

        Where the loss is a spike, `spike` says so until the next step. Where the weights went back for it, `went_back`
        is true: this step must not update them.
        """
        # One reduction a step: the losses, and what must be agreed on before anyone acts on it.
        stop = self._interruption.requested is not None
        due = self._engine.is_main and self._unfinished is None and self._saving.due(self.position.step)
        written = self._unfinished is not None and self._unfinished.is_written
        counted = [value * self._engine.counted for value in sums]
        mine_of_all = torch.tensor([*counted, float(stop), float(due), float(written)], dtype=torch.float64)
        *totals, stops, dues, all_written = self._engine.sum(mine_of_all).tolist()
        means = [total / count for total in totals]
        fault = self._watch.fault(means[0], gradient_norm, warmed_up=warmed_up)
        if fault:
            raise self._diverged(self.position.step + 1, fault)
        if all_written == self._engine.world_size:
            self._complete()
        self.spike = self._look_for_spike(means[0], warmed_up)
        if self.went_back:
            return means  # what is in memory is of an earlier step, and a stop is noticed in the next one
        if stops:
            self.save()
        elif dues:
            # What a spike goes back to must not depend on how long a save takes.
            must_wait = self._course.spikes is not None and self._course.spikes.action == "rollback"
            self._begin_saving(in_background=self._engine.saves_in_background and not must_wait)
        if stops:
            raise Interrupted(self._interruption.requested or signal.SIGTERM)
        return means

    @property
    def went_back(self) -> bool:
        """Whether the last step was a spike for which the weights are those of an earlier step again."""
        return "rolled_back_to" in self.spike

    def _spike_watch(self) -> SpikeWatch | None:
        """Every process reads the metrics alike, before the main one takes back what is behind the checkpoint."""
        if self._course.spikes is None:
            return None
        name, path = self._course.loss_name, self._course.folder / "metrics.jsonl"
        records = [record for record in read_metrics(path) if record["step"] <= self.position.step]
        self._engine.sum(torch.zeros(1))
        counted = [record for record in records if name in record and "rolled_back_to" not in record]
        return SpikeWatch(self._course.spikes, [float(record[name]) for record in counted])

    def _look_for_spike(self, loss: float, warmed_up: bool) -> dict[str, float]:
        """What to record of a spike, with the weights already rolled back where that was asked for; else nothing."""
        settings = self._course.spikes
        if self._spikes is None or settings is None:
            return {}
        height = self._spikes.height(loss, warmed_up=warmed_up)
        if height is None:
            self._spikes.note(loss)
            return {}
        found = {"spike": height}
        said = f"{self._course.name}  loss {loss:.4f} at step {self.position.step + 1} is {height:.1f} standard "
        said += "deviations above the last ones"
        goal = self._goal() if settings.action == "rollback" and self.position.rollbacks < settings.most else None
        if goal is None:
            self._spikes.note(loss)
        else:
            checkpoint.load(goal, self._tensors, self._engine)
            self.position = replace(self.position, rollbacks=self.position.rollbacks + 1)
            found["rolled_back_to"] = float(checkpoint.step_of(goal))
            said += f": back to the weights of step {checkpoint.step_of(goal)}, without the steps since"
        self._view.say(f"warning: {said}")
        return found

    def _goal(self) -> Path | None:
        """The newest checkpoint at even steps that was there before the last step, whoever was killed when."""
        even = checkpoint.spaced(self._course.checkpoints, self._course.saving.steps)
        return next((path for path in reversed(even) if checkpoint.step_of(path) < self.position.step), None)

    def check_held_out(self, loss: float) -> None:
        """Raise DivergedError where the loss on held-out text, which every process has, is not finite."""
        if not math.isfinite(loss):
            raise self._diverged(self.position.step, f"held-out loss {loss}")

    def _diverged(self, step: int, fault: str) -> DivergedError:
        """The error of a diverged run; all processes come to it together."""
        return DivergedError(
            fault,
            step=step,
            steps=self._course.steps,
            where=f"stage {self._course.name}",
            fix=f"{self._course.remedy}; the last good checkpoint is kept at {self._kept}",
        )

    def advance(self, **changes: Any) -> None:
        """Count a step that was done, and whatever else of the position has changed."""
        self.position = replace(self.position, step=self.position.step + 1, seconds=self.seconds, **changes)

    def record(self, record: dict[str, Any]) -> None:
        """Write down figures of the steps done so far."""
        if self._monitor:
            self._monitor.record({"step": self.position.step, **record})

    def save(self) -> None:
        """Save what is not saved yet, and wait for it."""
        self._complete()
        self._begin_saving(in_background=False)

    def finish(self) -> None:
        """Save the last state; raises Interrupted when a stop was asked for during the last step."""
        self.save()
        if self._engine.sum(torch.tensor([float(self._interruption.requested is not None)])).item():
            raise Interrupted(self._interruption.requested or signal.SIGTERM)

    def _begin_saving(self, in_background: bool) -> None:
        if self.position.step == self.saved.step:
            return
        if self._monitor:
            self._monitor.flush()
        course = self._course
        is_last = self.position.step == course.steps
        kept = course.kept if is_last or course.kept_meanwhile is None else course.kept_meanwhile
        newest = 1 if is_last else course.newest
        where = course.checkpoints, self._tensors, self.position, self._engine
        begin = partial(begin_save, *where, kept, newest)
        self._unfinished = self._saving.timed(partial(begin, in_background=in_background))
        if not in_background:
            self._complete()

    def _complete(self) -> None:
        """Wait for the checkpoint that is being written, if there is one: from then on it counts."""
        if self._unfinished is not None:
            self._kept = self._saving.timed(self._unfinished.finish, is_rest=True)
            self.saved = self._unfinished.position
            self._unfinished = None


def of_main(value: float, engine: Engine) -> float:
    """The main process's value, in every process: what they decide by it, they decide alike."""
    return float(engine.sum(torch.tensor(value if engine.is_main else 0.0, dtype=torch.float64)))
