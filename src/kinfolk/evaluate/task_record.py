"""Where a run keeps what its members reached on tasks: RUN/evaluation/tasks.json (its fields: docs/evaluate.md)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kinfolk import files
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.tasks import TaskResult
from kinfolk.json_text import parse_json

FILE = Path("evaluation") / "tasks.json"
"""Within a run directory."""

FORMAT = 1

_SAME = ("member", "task", "part_of", "metric", "filter", "limit")
"""Of two records that agree in these the newer one counts."""


def records(results: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """All figures as plain data; `member` is None for a checkpoint that is no member of a run."""
    return [
        {
            "model": result.path,
            "member": None if _run_of(result.path) is None else Path(result.path).resolve().name,
            "checkpoint": result.checkpoint,
            **figure,
        }
        for result in results
        for figure in result.figures
    ]


def check(paths: Iterable[str]) -> None:
    """Refuse, before anything is computed, runs whose record cannot be read. KinfolkError."""
    for run in {run for path in paths if (run := _run_of(path)) is not None}:
        _kept(run)


def keep(results: Sequence[TaskResult]) -> list[Path]:
    """Write the figures of members into the records of their runs; the files that were written.

    A figure takes the place of an older one of the same member, task, metric and limit, and whatever was measured on
    other weights of the member goes. KinfolkError for a record that cannot be read.
    """
    by_run: dict[Path, list[dict[str, Any]]] = {}
    for record in records(results):
        run = _run_of(record.pop("model"))
        if run is not None:
            by_run.setdefault(run, []).append(record)
    for run, new in by_run.items():
        weights = {record["member"]: record["checkpoint"] for record in new}
        replaced = {_key(record) for record in new}
        old = [
            record
            for record in _kept(run)
            if weights.get(record.get("member"), record.get("checkpoint")) == record.get("checkpoint")
            and _key(record) not in replaced
        ]
        files.write_json(run / FILE, {"format": FORMAT, "results": [*old, *new]})
    return [run / FILE for run in by_run]


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in _SAME)


def _run_of(path: str) -> Path | None:
    """The run directory that a finished member lies in."""
    folder = Path(path).resolve()
    run = folder.parent.parent
    return run if folder.parent.name == "members" and (run / "plan.json").is_file() else None


def _kept(run: Path) -> list[dict[str, Any]]:
    path = run / FILE
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    found = document.get("results") if isinstance(document, dict) and document.get("format") == FORMAT else None
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise _damaged(path, "no record of task results that this version of kinfolk knows")
    return found


def _damaged(path: Path, problem: str) -> KinfolkError:
    return KinfolkError(problem, where=str(path), fix="move the file away; what was measured is measured again")
