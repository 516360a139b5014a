"""kinfolk schedule stability"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption, WhereOption, conditions


def predict_divergence(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Tables of runs of any sizes, loss curves, or run directories."),
    ],
    where: WhereOption = [],  # noqa: B006 (typer copies it)
    json_: JsonOption = False,
) -> None:
    """Learn from short runs which peaks diverge at which size and warm-up, and test that on runs left out."""
    from kinfolk.schedule.runs import read_sweep
    from kinfolk.schedule.sweep import sweep_document

    document = sweep_document(read_sweep(runs, only=conditions(where)))
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.schedule_stability_tables import print_sweep

    print_sweep(document)
