"""Reads a run folder, finished or not, into plain data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from kinfolk.build.ledger import is_over
from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json
from kinfolk.lines import parse_lines
from kinfolk.report.evaluation import Consistency, TaskResult, read_consistency, read_tasks
from kinfolk.report.events import (
    EVENTS,
    BuildFinished,
    BuildStarted,
    DataPrepared,
    Event,
    ForecastChecked,
    Grown,
    Interrupted,
    JobFinished,
    MemberFinished,
    MembersCompared,
    StageDiverged,
    StageFinished,
    StageResumed,
    StageStarted,
)
from kinfolk.report.metrics import Metrics, metrics_of
from kinfolk.report.records import Flops, Plan, PlannedStage

Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class StageRun:
    """One stage: what was planned and what the ledger and the metrics say became of it."""

    plan: PlannedStage
    started: StageStarted | None
    growth: Grown | None
    finished: StageFinished | None
    member: MemberFinished | None
    forecast: ForecastChecked | None
    diverged: StageDiverged | None
    interruptions: tuple[Interrupted | StageResumed, ...]
    metrics: Metrics

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        return "unfinished" if self.started or self.metrics.last_step else "not started"

    @property
    def steps_done(self) -> int:
        if self.finished:
            return self.finished.steps
        return min(self.plan.steps, self.metrics.last_step)

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
    open_jobs: tuple[BuildStarted, ...]
    """Of several jobs, those that have not come to their end: they are at work, or were stopped or killed."""
    data: DataPrepared | None
    build_finished: BuildFinished | None
    damaged_lines: tuple[int, ...]
    """Numbers of the ledger's lines that could not be read."""
    consistency: Consistency | None
    tasks: tuple[TaskResult, ...]

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
    names = {kind: event for event, kind in EVENTS.items()}
    ended = is_over([names[type(event)] for event in events])
    return Run(
        name=name if name is not None else (folder.resolve().name or str(folder)),
        family_file=family_file,
        plan=plan,
        stages=tuple(_stage(folder, stage, events) for stage in plan.stages),
        builds=tuple(event for event in events if isinstance(event, BuildStarted)),
        open_jobs=_open_jobs(events),
        data=data if isinstance(data, DataPrepared) else None,
        build_finished=finished if isinstance(finished, BuildFinished) and ended else None,
        damaged_lines=damaged,
        consistency=read_consistency(folder),
        tasks=read_tasks(folder),
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
        plan = Plan.model_validate(parse_json(_text(path)))
    except ValidationError as error:
        raise _garbled(path, error) from error
    except ValueError as error:
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
    lines = parse_lines(_text(path))
    for number, record in lines.records:
        kind = EVENTS.get(str(record.get("event")))
        if kind is None:
            continue
        try:
            events.append(kind.model_validate(record))
        except ValidationError as error:
            raise _garbled(path, error, f"line {number} ({record['event']}): ") from error
    return events, lines.damaged


def _open_jobs(events: list[Event]) -> tuple[BuildStarted, ...]:
    """By their members, the last job with each choice that was started and has not ended, with the build or before."""
    found: dict[tuple[str, ...], BuildStarted] = {}
    for event in events:
        if isinstance(event, BuildStarted) and event.only:
            found[event.only] = event
        elif isinstance(event, JobFinished):
            found = {only: job for only, job in found.items() if job.job != event.job}
        elif isinstance(event, BuildStarted | BuildFinished):  # a build of all members begins when no job is at work
            found = {}
    return tuple(found.values())


def _garbled(path: Path, error: ValidationError, line: str = "") -> KinfolkError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    return KinfolkError(f"{line}{field}: {first['msg']}", where=str(path), fix="build the run again, or mend the file")


def _stage(folder: Path, plan: PlannedStage, events: list[Event]) -> StageRun:
    own = [event for event in events if getattr(event, "stage", None) == plan.name]

    def last(kind: type[Kind]) -> Kind | None:
        return next((event for event in reversed(own) if isinstance(event, kind)), None)

    member, compared = last(MemberFinished), last(MembersCompared)
    if member and compared and own.index(compared) > own.index(member):
        later = {"kl_from_previous": compared.kl_from_previous, "kl_from_earlier": compared.kl_from_earlier}
        member = member.model_copy(update=later)
    path = folder / "stages" / plan.name / "metrics.jsonl"
    lines = parse_lines(_text(path) if path.is_file() else "")
    return StageRun(
        plan=plan,
        started=last(StageStarted),
        growth=last(Grown),
        finished=last(StageFinished),
        member=member,
        forecast=last(ForecastChecked),
        diverged=last(StageDiverged),
        interruptions=tuple(event for event in own if isinstance(event, Interrupted | StageResumed)),
        metrics=metrics_of((record for _, record in lines.records), len(lines.damaged)),
    )
