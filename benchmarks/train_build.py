"""kinfolk's own trainings in benchmarks/train.py: ordinary builds in new run folders, whose losses are watched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_task import read_family


def begin_run(work: Path, run: Path) -> None:
    """A run folder that has the tokens and nothing else; an earlier one is removed."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    shutil.copytree(work / "data", run / "data")


def watched_build(work: Path, name: str, run: Path, on_loss: Callable[[str, float], None]) -> None:
    """Build the family file of that name, or what is missing of it; `on_loss` is told of every step, stage and loss."""
    from kinfolk.build.build import build

    build(read_family(work, name), run, Watching(on_loss))


class Watching:
    """The view of a build that shows nothing."""

    def __init__(self, on_loss: Callable[[str, float], None]) -> None:
        self._on_loss = on_loss
        self._stage = ""

    def planned(self, name: str, stages: Any) -> None: ...

    def prepared(self, what: str, done: int, total: int | None) -> None: ...

    def say(self, message: str) -> None: ...

    def stage_started(self, name: str, steps: int, first_step: int) -> None:
        self._stage = name

    def stepped(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self._on_loss(self._stage, record["loss"])
