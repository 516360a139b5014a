"""kinfolk export"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of a stage of its plan.")],
    output: Annotated[Path | None, typer.Option(help="By default RUN/exports/STAGE.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """Write the newest state of any stage as a Hugging Face checkpoint."""
    from rich.console import Console

    with Console(stderr=True).status("exporting"):
        from kinfolk.build.snapshot import export_stage

        made = export_stage(run, stage, output, force)
    if json_:
        print(json.dumps(made.to_dict(), indent=2, allow_nan=False))
        return
    print(f"{made.stage}: step {made.steps[0]:,}, held-out loss {made.held_out['loss']:.4f} nats per token")
    print(made.folder)
