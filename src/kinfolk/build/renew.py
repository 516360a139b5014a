"""A member's card written anew, with what came after the build or differs between builds: tasks, time, commands."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kinfolk import files
from kinfolk.build.card_results import TaskResult
from kinfolk.build.member_card import BuildRecord, member_card
from kinfolk.build.members import weights_digest
from kinfolk.build.run import Run
from kinfolk.build.snapshot import open_existing
from kinfolk.card.card import render
from kinfolk.card.marker import is_unedited
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.cache import checkpoint_digest
from kinfolk.plan.stages import Stage

TASKS = Path("evaluation") / "tasks.json"
"""File of a run with what tasks have measured."""

README = "README.md"


class _Task(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    member: str
    task: str
    metric: str
    value: float | None = None
    """None where lm-eval has none."""
    filter: str | None = None
    """What lm-eval did to answers before it compared them."""
    shots: int | None = None
    checkpoint: str | None = None
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    examples: int | None = None
    version: str | float | None = None
    limit: float | None = None


class _Tasks(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    results: tuple[_Task, ...]


def is_member(folder: Path) -> bool:
    """Whether a folder is that of a member in its run directory."""
    whole = folder.resolve()
    return whole.parent.name == "members" and (whole.parent.parent / "ledger.jsonl").is_file()


def renewed_card(folder: Path, repository: str | None = None, bases: Mapping[str, str] | None = None) -> str:
    """The card of the member in `folder`, with all that its run has on record by now.

    `repository` is its name on the hub, and `bases` those of the members, by member. KinfolkError where the run is
    damaged, or the weights are not those that it has on record.
    """
    member = folder.resolve()
    run = open_existing(member.parent.parent)
    finished = [event for event in run.ledger.events("member_finished") if event["member"] == member.name]
    if not finished:
        raise KinfolkError("its run has not finished this member", where=str(folder), fix="go on with the build")
    event = finished[-1]
    if weights_digest(member) != event["sha256"]:
        raise KinfolkError(
            "the weights are not those that the build wrote, and so its card is not theirs",
            where=str(folder),
            fix="copy the member from an unharmed copy of the run, or delete its folder and build again",
        )
    stage = run.plan.stage(event["stage"])
    parent = _nearest_member(run, stage)
    known = bases or {}
    card = member_card(
        run,
        stage,
        event["held_out"],
        event["held_out_of_version"],
        record=build_record(run, stage),
        tasks=_tasks(run, member, event["sha256"]),
        repository=repository,
        bases=[known[parent]] if parent is not None and parent in known else [],
    )
    return render(card)


def write_renewed(folder: Path, text: str) -> bool:
    """Replace a member's card, unless somebody has edited it; returns whether it was replaced."""
    if not may_replace(folder):
        return False
    files.write_text(folder / README, text)
    return True


def may_replace(folder: Path) -> bool:
    """Whether a card is missing, or as kinfolk wrote it."""
    path = folder / README
    return not path.is_file() or is_unedited(path.read_text("utf-8", errors="replace"))


def build_record(run: Run, stage: Stage) -> BuildRecord:
    """Time, machines and commands of what led to a stage."""
    lineage = {part.name for part in run.plan.lineage(stage.name)}
    seconds = {event["stage"]: event["seconds"] for event in run.ledger.events("stage_finished")}
    started = run.ledger.events("build_started")
    return BuildRecord(
        seconds=sum(value for name, value in seconds.items() if name in lineage),
        machines=_once([_machine(event["machine"]) for event in started]),
        commands=_once([without_folders(event["command"]) for event in started]),
        software=_once(
            [", ".join(f"{name} {value}" for name, value in event["versions"].items()) for event in started]
        ),
    )


def without_folders(command: str) -> str:
    """A command whose absolute paths have lost their folders, which tell of the machine and nobody else.

    >>> without_folders("kinfolk build /home/jo/mine.yaml --run=/data/x --set data.train.0.path=/a/b.txt")
    'kinfolk build mine.yaml --run=x --set data.train.0.path=b.txt'
    """
    return shlex.join(_without_folders(part) for part in shlex.split(command))


def _without_folders(part: str) -> str:
    name, equals, value = part.partition("=") if part.startswith("-") else ("", "", part)
    if value.startswith(("/", "~")):
        return name + equals + Path(value).name
    return name + equals + re.sub(r"(?<![\w./~-])[/~][^\s,}\]\"']*/", "", value)


def _once(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _machine(machine: Mapping[str, Any]) -> str:
    processes = machine.get("processes", 1)
    each = f"{machine.get('threads')} threads of {machine.get('cores')} cores"
    return f"{machine.get('device')} {machine.get('name')}, {processes} process{'es' * (processes != 1)}, {each}"


def _nearest_member(run: Run, stage: Stage) -> str | None:
    """The member whose training this one goes on from, if it does."""
    for ancestor in reversed(run.plan.lineage(stage.name)[:-1]):
        if ancestor.member is not None:
            return ancestor.member
    return None


def _tasks(run: Run, member: Path, weights: str) -> list[TaskResult]:
    """What tasks have measured of this very checkpoint. KinfolkError for a damaged file."""
    path = run.folder / TASKS
    if not path.is_file():
        return []
    try:
        found = _Tasks.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise KinfolkError(
            f"no results of tasks: {error.errors()[0]['msg']}", where=str(path), fix="evaluate the tasks again"
        ) from error
    if found.format != 1:
        raise KinfolkError(
            f"results of format {found.format}, which this kinfolk does not know", where=str(path), fix="update kinfolk"
        )
    digests = {checkpoint_digest(str(member)), weights}
    return [
        TaskResult(
            task=each.task,
            metric=each.metric if each.filter in (None, "none") else f"{each.metric},{each.filter}",
            value=each.value,
            low=None if each.interval is None else each.interval[0],
            high=None if each.interval is None else each.interval[1],
            examples=each.examples,
            limit=each.limit,
            shots=each.shots,
            task_version="" if each.version is None else f"version {each.version}",
        )
        for each in found.results
        if each.value is not None and each.member == member.name and not _is_stale(each.checkpoint, digests)
    ]


def _is_stale(checkpoint: str | None, digests: set[str | None]) -> bool:
    """Whether a result names other weights than the member's, by their hash."""
    is_hash = checkpoint is not None and re.fullmatch(r"[0-9a-f]{64}", checkpoint) is not None
    return is_hash and checkpoint not in digests
