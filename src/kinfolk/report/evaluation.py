"""What was measured of a finished run by commands of its own: RUN/evaluation/*.json, where it is there."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json
from kinfolk.report.records import Record

FOLDER = "evaluation"
Kept = TypeVar("Kept", bound=Record)


class KeptMember(Record):
    member: str
    sha256: str
    """Of the weights that were compared."""


class Consistency(Record):
    """What `kinfolk consistency RUN` found: square matrices in the order of `members`, empty where undefined."""

    format: Literal[1]
    members: tuple[KeptMember, ...]
    context_length: int
    stride: int
    matrices: dict[str, tuple[tuple[float | None, ...], ...]]


class TaskResult(Record):
    """One figure of one member on one task, with its 90 % interval."""

    member: str
    task: str
    metric: str
    value: float | None
    part_of: str | None = None
    """The group of tasks that was asked for, of which this is a part."""
    filter: str = "none"
    interval: tuple[float, float] | None = None
    examples: int | None = None
    shots: int | None = None
    version: str | None = None
    limit: int | None = None
    higher_is_better: bool | None = None


class Tasks(Record):
    """What lm-eval found of the members."""

    format: Literal[1]
    results: tuple[TaskResult, ...]


def read_consistency(run: Path) -> Consistency | None:
    """None where nothing was measured; KinfolkError naming the file if it is garbled."""
    return _read(run / FOLDER / "consistency.json", Consistency)


def read_tasks(run: Path) -> tuple[TaskResult, ...]:
    """Empty where nothing was measured; KinfolkError naming the file if it is garbled."""
    found = _read(run / FOLDER / "tasks.json", Tasks)
    return found.results if found else ()


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        what = error.errors()[0] if isinstance(error, ValidationError) else None
        problem = f"{'.'.join(map(str, what['loc']))}: {what['msg']}" if what else f"this is not JSON ({error})"
        raise KinfolkError(problem, where=str(path), fix="delete it, and measure again") from error
