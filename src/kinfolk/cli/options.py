"""Arguments that several commands share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.errors import KinfolkError

FamilyArgument = Annotated[str, typer.Argument(metavar="FAMILY", help="A family file, or the name of a preset.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, as in --set recipe.seed=3.")
]
StrategyOption = Annotated[str | None, typer.Option(help="independent, progressive or trunk; overrides the file.")]
LawOption = Annotated[
    list[str],
    typer.Option(
        metavar="LAW",
        help="Law of the forecasts: a file of `laws fit`, a published law, or runs to fit (repeatable).",
    ),
]
BytesOption = Annotated[
    float | None, typer.Option(metavar="BYTES", help="Bytes in a token, for bits per byte; measured in your own runs.")
]
WhereOption = Annotated[list[str], typer.Option(metavar="COLUMN=VALUE", help="Use only rows with this value.")]
TextOption = Annotated[
    list[Path], typer.Option(metavar="FILE", help="A UTF-8 text file, as one document (repeatable).")
]
TasksOption = Annotated[
    list[str],
    typer.Option(
        metavar="TASK,...",
        help="Tasks of lm-eval by name, or task files (.yaml), instead of a text; local_... read --task-data.",
    ),
]
TaskDataOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder with the questions of the tasks local_...")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first questions of each task.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Texts of a task at a time.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]


def conditions(where: Sequence[str]) -> dict[str, str]:
    """Columns and values of --where; KinfolkError for what is no condition.

    >>> conditions(["dataset=c4"])
    {'dataset': 'c4'}
    """
    for condition in where:
        if "=" not in condition:
            raise KinfolkError(f"{condition!r} is no condition", where="--where", fix="write COLUMN=VALUE")
    return dict(condition.split("=", 1) for condition in where)


def with_strategy(overrides: Sequence[str], strategy: str | None) -> list[str]:
    """The overrides of --set, and that of --strategy after them.

    >>> with_strategy(["recipe.seed=3"], "independent")
    ['recipe.seed=3', 'strategy="independent"']
    """
    return [*overrides, *([f"strategy={json.dumps(strategy)}"] if strategy is not None else [])]


def numbers(text: str | None, where: str) -> list[float] | None:
    """Numbers between commas; KinfolkError for anything else.

    >>> numbers("1e-3, 2e-3", "--peaks")
    [0.001, 0.002]
    """
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise KinfolkError(f"{text!r} is not a list of numbers", where=where, fix="write numbers with commas") from None
    if not found or any(not 0 <= value < float("inf") for value in found):
        raise KinfolkError(f"{text!r} is not a list of numbers from 0 up", where=where, fix="write such as 1e-3,2e-3")
    return found
