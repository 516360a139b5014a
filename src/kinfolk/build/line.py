"""The line of training that one schedule covers: from a beginning from scratch, or a growth, to a stage.

Steps are whole batches here: a batch-size warm-up takes some of them in several optimizer steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kinfolk.plan.batches import Stretch, part_at
from kinfolk.schedule.live import NotYet
from kinfolk.schedule.own_runs import joined, stage_schedule
from kinfolk.schedule.shapes import Array, NamedSchedule, Schedule, Steps

StageDocument = Mapping[str, Any]
"""A stage as plan.json holds it."""
Point = tuple[int, float]
"""Optimizer steps of a stage that are done, and the quick held-out loss after them."""


@dataclass(frozen=True)
class Line:
    """Stages that follow one another in one shape, on the same data, under one optimizer state."""

    stages: tuple[StageDocument, ...]

    @property
    def schedule(self) -> Schedule:
        return joined([stage_schedule(stage["rate"], _batches(stage)) for stage in self.stages])

    @property
    def before(self) -> int:
        """Batches before the last stage."""
        return sum(_batches(stage) for stage in self.stages[:-1])

    @property
    def steps(self) -> int:
        return self.before + _batches(self.stages[-1])

    @property
    def grown(self) -> bool:
        return bool(self.stages[0]["source"]["kind"] == "grow")

    @property
    def decays(self) -> bool:
        return any(stage["rate"]["decay_steps"] for stage in self.stages)

    def curve(self, points: Sequence[Sequence[Point]]) -> tuple[Steps, Array]:
        """Batches done (point,) and losses (point,) from the points of each stage."""
        steps, losses, before = [], [], 0
        for stage, some in zip(self.stages, points, strict=True):
            steps += [before + batches_done(stage, step) for step, _ in some]
            losses += [loss for _, loss in some]
            before += _batches(stage)
        return np.array(steps, dtype=np.int64), np.array(losses, dtype=np.float64)


def line_of(stages: Mapping[str, StageDocument], name: str) -> Line | NotYet:
    """The line that ends with the stage `name`, or why no law holds for it."""
    found: list[StageDocument] = []
    stage = stages[name]
    while True:
        why = _unfit(stage, found[0] if found else None)
        if why:
            return NotYet(why)
        if stage["steps"]:
            found.insert(0, stage)
        if stage["source"]["kind"] != "continue":
            return Line(tuple(found)) if found else NotYet("it has no steps")
        stage = stages[stage["parent"]]


def planned_decay(stages: Mapping[str, StageDocument], name: str) -> NamedSchedule | None:
    """The schedule with the decay that the line of a stage is to end with: its own, or that of a stage after it."""
    for other, stage in stages.items():
        if other == name or (stage["source"]["kind"] == "continue" and stage["parent"] == name):
            line = line_of(stages, other)
            if not isinstance(line, NotYet) and isinstance(line.schedule, NamedSchedule) and line.schedule.decay_steps:
                return line.schedule
    return None


def _unfit(stage: StageDocument, after: StageDocument | None) -> str | None:
    """Why a stage cannot stand in a line, with the one after it."""
    source = stage["source"]
    if stage.get("objective", {}).get("kind", "token") != "token":
        return "patch-level training is on no law" if after is None else "it goes on from patch-level training"
    if after is not None and after.get("data") != stage.get("data"):
        return "it goes on with other data"
    if source["kind"] == "load":
        return "it goes on from a checkpoint whose schedule is not known"
    if source["kind"] == "continue" and source.get("optimizer", "carry") != "carry":
        return "it goes on with a new optimizer state"
    if source["kind"] == "grow" and source.get("dynamics", {}).get("rates", "uniform") != "uniform":
        return "new coordinates have rates of their own"
    return None


def batches_done(stage: StageDocument, step: int) -> int:
    """Whole batches after so many optimizer steps of a stage; one of which only parts are done does not count."""
    return part_at(_stretches(stage), step).batch


def step_at(stage: StageDocument, batches: int) -> int:
    """Optimizer steps of a stage after so many whole batches of it."""
    step = 0
    for stretch in _stretches(stage):
        if batches <= stretch.batches:
            return step + batches * stretch.parts
        step, batches = step + stretch.steps, batches - stretch.batches
    return step + batches


def decay_begin(stage: StageDocument) -> int | None:
    """The optimizer step at which a stage that first holds its rate begins its decay; None for one that does not."""
    rate, batches = stage["rate"], _batches(stage)
    begin = batches - rate["decay_steps"]
    return step_at(stage, begin) if rate["warmup_steps"] < begin < batches else None


def _stretches(stage: StageDocument) -> list[Stretch]:
    return [Stretch(int(each["batches"]), int(each["parts"])) for each in stage.get("batch_warmup") or ()]


def _batches(stage: StageDocument) -> int:
    return batches_done(stage, int(stage["steps"]))
