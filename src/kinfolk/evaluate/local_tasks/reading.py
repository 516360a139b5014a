"""What the task files beside this one call, in kinfolk and in lm-eval's own command line alike.

lm-eval loads this file by its path; `task_data`, the folder with the questions, reaches it as metadata.
"""

import bz2
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json


def json_lines(
    *,
    file: str,
    fields: Sequence[str],
    only: Mapping[str, str] | None = None,
    task_data: str | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """The split `test` of a task: the rows of the one JSON lines file below `task_data` that is called `file`.

    `file` may be a pattern, and the file compressed (.bz2). Every row must have `fields`; with `only`, rows with other
    values than these are left out. KinfolkError for a missing folder or file, and for rows that are none.
    """
    if task_data is None:
        raise KinfolkError(
            f"it is not said where {file} lies",
            where="task_data",
            fix="give --task-data DIR; to lm-eval itself, --metadata task_data=DIR",
        )
    path = _find(Path(task_data), file)
    rows = _rows(path, path.stat().st_mtime_ns, tuple(fields))
    for field, value in (only or {}).items():
        rows = [row for row in rows if row.get(field) == value]
    if not rows:
        raise KinfolkError(f"no row of it has {dict(only or {})}", where=str(path), fix="restore the file")
    kept = (*fields, *(only or {}))
    return {"test": datasets.Dataset.from_list([{key: row[key] for key in kept} for row in rows])}


def final_number(document: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """How a worked answer of GSM8K ends: the number behind "#### ", the last number, and whether there is a "#### ".

    >>> final_number({"answer": "2 + 2 = 4\\n#### 1,004"}, ["So it is 7.\\n#### 1004."])
    {'exact_match': 1.0, 'last_number': 1.0, 'answer_format': 1.0}
    """
    right, given = _number(document["answer"].rpartition("####")[2]), answers[0]
    _, mark, behind = given.partition("#### ")
    numbers = _NUMBER.findall(given)
    return {
        "exact_match": float(bool(mark) and _number(behind) == right),
        "last_number": float(bool(numbers) and _number(numbers[-1]) == right),
        "answer_format": float(bool(mark)),
    }


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _number(text: str) -> float | None:
    """The first number in a text, its commas left out."""
    found = _NUMBER.search(text)
    return float(found.group().replace(",", "")) if found else None


def _find(folder: Path, file: str) -> Path:
    if not folder.is_dir():
        raise KinfolkError("there is no such folder", where=str(folder), fix=f"give the folder that {file} lies in")
    found = sorted(path for path in folder.rglob(file) if path.is_file())
    if not found:
        raise KinfolkError(
            f"there is no {file} in the folder or below it",
            where=str(folder),
            fix="copy the file there, or leave the task out",
        )
    if len(found) > 1:
        raise KinfolkError(
            f"{found[0]} and {found[1]} could both be meant by {file}",
            where=str(folder),
            fix="give a folder with one of them",
        )
    return found[0]


@cache
def _rows(path: Path, changed: int, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file, read once for all tasks that are made of it, as long as it is not changed."""
    rows = []
    try:
        with bz2.open(path, "rt", encoding="utf-8") if path.suffix == ".bz2" else open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = parse_json(line)
                missing = [name for name in fields if not isinstance(row, dict) or name not in row]
                if missing:
                    raise KinfolkError(
                        f"line {number} has no field {missing[0]!r}", where=str(path), fix="restore the file"
                    )
                rows.append(row)
    except (OSError, ValueError, EOFError) as error:  # not there to read, no JSON, no UTF-8, cut off
        raise KinfolkError(f"cannot be read: {error}", where=str(path), fix="restore the file") from error
    return rows
