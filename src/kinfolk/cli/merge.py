"""kinfolk merge"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.cli.progress import progress


class Method(StrEnum):
    regmean = "regmean"
    mean = "mean"


def merge(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Two or more members or Hugging Face checkpoints of one shape."),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the merged checkpoint.")],
    text: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE", help="What layers read: one UTF-8 file for all, or one for each model in their order."
        ),
    ] = [],  # noqa: B006
    method: Annotated[
        Method, typer.Option(help="Regression mean of linear layers, or the mean of all.")
    ] = Method.regmean,
    off_diagonal: Annotated[
        float, typer.Option(help="Factor of the Gram matrices' off-diagonal entries, 0 to 1.")
    ] = 0.9,
    tokens: Annotated[int, typer.Option(help="The most tokens that each model reads.")] = 100_000,
    json_: JsonOption = False,
) -> None:
    """One model from several of one shape, such as siblings tuned on different text (RegMean, arXiv 2212.09849)."""
    from rich.console import Console

    with Console(stderr=True).status("starting"):
        from kinfolk.evaluate.text import Text
        from kinfolk.merge.checkpoint import merge_checkpoints
    with progress("starting") as report:
        record = merge_checkpoints(
            models,
            [Text((file,)) for file in text],
            output,
            method=method.value,
            off_diagonal=off_diagonal,
            tokens=tokens,
            progress=report,
        )
    if json_:
        print(json.dumps({"path": str(output), **record}, indent=2, allow_nan=False))
        return
    print(f"{len(models)} models merged by {method.value}: {len(record['regression_means'])} regression means")
    print(output)
