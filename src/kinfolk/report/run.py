"""Reads a run folder, finished or not, into plain data."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.report.records import (
    EVENTS,
    BuildFinished,
    BuildStarted,
    DataPrepared,
    Event,
    Flops,
    ForecastChecked,
    Grown,
    Interrupted,
    MemberFinished,
    Outlook,
    Plan,
    PlannedStage,
    StageFinished,
    StageResumed,
    StageStarted,
)

Points = tuple[tuple[int, float], ...]
"""(step within the stage, loss), by step."""


@dataclass(frozen=True)
class StageRun:
    """One stage: what was planned and what the ledger and the metrics say became of it."""

    plan: PlannedStage
    started: StageStarted | None
    growth: Grown | None
    finished: StageFinished | None
    member: MemberFinished | None
    forecast: ForecastChecked | None
    interruptions: tuple[Interrupted | StageResumed, ...]
    train: Points
    held_out: Points
    outlooks: tuple[Outlook, ...]
    """Forecasts of its end, by step."""
    damaged_metrics: int
    """Lines of metrics.jsonl that could not be read."""

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        return "unfinished" if self.started or self.train or self.held_out else "not started"

    @property
    def steps_done(self) -> int:
        if self.finished:
            return self.finished.steps
        return min(self.plan.steps, max((step for step, _ in (*self.train, *self.held_out)), default=0))

    @property
    def flops(self) -> Flops:
        """What the stage has cost: the ledger's figure once it is finished, the plan's by tokens until then."""
        if self.finished:
            return self.finished.flops
        share = self.plan.share_after(self.steps_done)
        return Flops(six_nd=share * self.plan.flops.six_nd, matmul=share * self.plan.flops.matmul)


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    """As the page calls it; unique among the runs of one page."""
    family_file: str
    plan: Plan
    stages: tuple[StageRun, ...]
    builds: tuple[BuildStarted, ...]
    data: DataPrepared | None
    build_finished: BuildFinished | None
    damaged_lines: tuple[int, ...]
    """Numbers of the ledger's lines that could not be read."""

    @cached_property
    def by_name(self) -> dict[str, StageRun]:
        return {stage.plan.name: stage for stage in self.stages}

    def ancestors(self, stage: StageRun) -> list[StageRun]:
        """What a stage was trained as before, root first."""
        parent = self.by_name[stage.plan.parent] if stage.plan.parent else None
        return [*self.ancestors(parent), parent] if parent else []

    @property
    def is_baseline(self) -> bool:
        """Whether every member is trained alone, from its tokens."""
        by_patches = any(stage.plan.objective.get("kind") == "patch" for stage in self.stages)
        return self.plan.strategy == "independent" and not by_patches

    @property
    def member_stages(self) -> tuple[StageRun, ...]:
        return tuple(stage for stage in self.stages if stage.plan.member)

    @property
    def members(self) -> tuple[MemberFinished, ...]:
        return tuple(stage.member for stage in self.stages if stage.member)

    @property
    def complete(self) -> bool:
        """Every stage is trained, every member evaluated, and the build has said so."""
        trained = all(stage.finished for stage in self.stages)
        return trained and len(self.members) == len(self.member_stages) and self.build_finished is not None

    @property
    def spent(self) -> Flops:
        return Flops(
            six_nd=sum(stage.flops.six_nd for stage in self.stages),
            matmul=sum(stage.flops.matmul for stage in self.stages),
        )

    @property
    def training_seconds(self) -> float:
        """Of the finished stages."""
        return sum(stage.finished.seconds for stage in self.stages if stage.finished)

    @property
    def growing_seconds(self) -> float:
        return sum(stage.growth.seconds for stage in self.stages if stage.growth)


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in `folder`. Raises KinfolkError naming the file, and in it the field, that is missing or garbled."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "there is no such run"
        raise KinfolkError(problem, where=str(folder), fix="give a folder that a build has written, such as runs/NAME")
    family_file = _text(folder / "family.yaml")
    plan = _plan(folder / "plan.json")
    events, damaged = _ledger(folder / "ledger.jsonl")
    last = {type(event): event for event in events}
    data, finished = last.get(DataPrepared), last.get(BuildFinished)
    # A build that was started again after it had finished is going on.
    ended = bool(events) and isinstance(events[-1], BuildFinished)
    return Run(
        name=name if name is not None else (folder.resolve().name or str(folder)),
        family_file=family_file,
        plan=plan,
        stages=tuple(_stage(folder, stage, events) for stage in plan.stages),
        builds=tuple(event for event in events if isinstance(event, BuildStarted)),
        data=data if isinstance(data, DataPrepared) else None,
        build_finished=finished if isinstance(finished, BuildFinished) and ended else None,
        damaged_lines=damaged,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise KinfolkError(
            f"{path.name} {problem}", where=str(path.parent), fix="give a folder that a build has written"
        ) from error


def _plan(path: Path) -> Plan:
    try:
        plan = Plan.model_validate(json.loads(_text(path)))
    except ValidationError as error:
        raise _garbled(path, error) from error
    except (ValueError, RecursionError) as error:
        raise KinfolkError(f"this is not JSON ({error})", where=str(path), fix="build the run again") from error
    seen: set[str] = set()
    for stage in plan.stages:
        if stage.name in seen:
            raise KinfolkError(f"two stages are called {stage.name!r}", where=str(path), fix="build the run again")
        if stage.parent is not None and stage.parent not in seen:
            raise KinfolkError(
                f"stage {stage.name!r} comes from {stage.parent!r}, which is not a stage before it",
                where=str(path),
                fix="build the run again",
            )
        seen.add(stage.name)
    return plan


def _ledger(path: Path) -> tuple[list[Event], tuple[int, ...]]:
    events: list[Event] = []
    records, damaged = _json_lines(_text(path))
    for number, record in records:
        kind = EVENTS.get(str(record.get("event")))
        if kind is None:
            continue
        try:
            events.append(kind.model_validate(record))
        except ValidationError as error:
            raise _garbled(path, error, f"line {number} ({record['event']}): ") from error
    return events, damaged


def _json_lines(text: str) -> tuple[list[tuple[int, dict[str, Any]]], tuple[int, ...]]:
    """The objects of a .jsonl with their line numbers, and the numbers of lines that hold none.

    A process that was killed leaves half a line, and one that goes on later writes behind it.
    """
    records: list[tuple[int, dict[str, Any]]] = []
    damaged: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append((number, record))
        else:
            damaged.append(number)
    return records, tuple(damaged)


def _garbled(path: Path, error: ValidationError, line: str = "") -> KinfolkError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    return KinfolkError(f"{line}{field}: {first['msg']}", where=str(path), fix="build the run again, or mend the file")


def _stage(folder: Path, plan: PlannedStage, events: list[Event]) -> StageRun:
    own = [event for event in events if getattr(event, "stage", None) == plan.name]
    last = {type(event): event for event in own}
    started, growth = last.get(StageStarted), last.get(Grown)
    finished, member = last.get(StageFinished), last.get(MemberFinished)
    forecast = last.get(ForecastChecked)
    train, held_out, outlooks, damaged = _metrics(folder / "stages" / plan.name / "metrics.jsonl")
    return StageRun(
        plan=plan,
        started=started if isinstance(started, StageStarted) else None,
        growth=growth if isinstance(growth, Grown) else None,
        finished=finished if isinstance(finished, StageFinished) else None,
        member=member if isinstance(member, MemberFinished) else None,
        forecast=forecast if isinstance(forecast, ForecastChecked) else None,
        interruptions=tuple(event for event in own if isinstance(event, Interrupted | StageResumed)),
        train=train,
        held_out=held_out,
        outlooks=outlooks,
        damaged_metrics=damaged,
    )


def _metrics(path: Path) -> tuple[Points, Points, tuple[Outlook, ...], int]:
    """Training and held-out loss and forecasts by step; where a step was done twice, the later record counts."""
    if not path.is_file():
        return (), (), (), 0
    records, damaged = _json_lines(_text(path))
    losses: dict[str, dict[int, float]] = {"loss": {}, "held_out_loss": {}}
    outlooks: dict[int, Outlook] = {}
    unreadable = len(damaged)
    for _, record in records:
        step = record.get("step")
        if not isinstance(step, int):
            unreadable += 1
            continue
        for key, points in losses.items():
            if isinstance(record.get(key), int | float):
                points[step] = float(record[key])
        if "forecast_loss" in record:
            try:
                outlooks[step] = Outlook.model_validate(record)
            except ValidationError:
                unreadable += 1
    train, held_out = (tuple(sorted(points.items())) for points in losses.values())
    return train, held_out, tuple(outlooks[step] for step in sorted(outlooks)), unreadable
