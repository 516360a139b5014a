"""kinfolk export"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption, TextOption
from kinfolk.cli.progress import progress
from kinfolk.cli.tables import print_table

if TYPE_CHECKING:
    from kinfolk.export.export import Exported


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="Run directory; with --format also a member or any checkpoint.")
    ],
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="Name of a stage of the run's plan.", show_default=False)
    ] = None,
    format_: Annotated[
        list[str],
        typer.Option("--format", metavar="FORMAT", help="gguf-f16, gguf-q8_0, gguf-q4_0, int8, int4 (repeatable)."),
    ] = [],  # noqa: B006
    text: TextOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option(help="Measure on the held-out documents of this run.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; by default RUN/exports/STAGE or MODEL-FORMAT.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """Write the newest state of a stage as a checkpoint, or models as GGUF or quantised, with what that costs."""
    from kinfolk.errors import KinfolkError

    if (stage is None) == (not format_):
        raise KinfolkError(
            "STAGE and --format are both given" if format_ else "there is nothing to export to",
            fix="kinfolk export RUN STAGE, or kinfolk export MODEL --format gguf",
        )
    if stage is not None:
        if text or run is not None:
            raise KinfolkError("--text and --run belong to --format", fix="leave them out")
        _stage(Path(source), stage, output, force, json_)
        return
    from kinfolk.export.formats import formats_of

    formats = formats_of(format_)
    with progress("starting") as report:
        from kinfolk.evaluate.measure import members_of
        from kinfolk.evaluate.text import text_for
        from kinfolk.export.export import export_models

        models = [Path(path) for path in members_of(source)]
        made = export_models(models, formats, output, lambda model: text_for([str(model)], text, run), force, report)
    if json_:
        print(json.dumps([each.to_dict() for each in made], indent=2, allow_nan=False))
        return
    _print(made)


def _stage(run: Path, stage: str, output: Path | None, force: bool, json_: bool) -> None:
    from rich.console import Console

    with Console(stderr=True).status("exporting"):
        from kinfolk.build.snapshot import export_stage

        made = export_stage(run, stage, output, force)
    if json_:
        print(json.dumps(made.to_dict(), indent=2, allow_nan=False))
        return
    print(f"{made.stage}: step {made.steps[0]:,}, held-out loss {made.held_out['loss']:.4f} nats per token")
    print(made.folder)


def _print(made: "list[Exported]") -> None:
    headings = [
        "model", "format", "bytes", "of the original", "loss (nats/token)", "difference",
        "bits per byte", "difference", "90 % interval",
    ]  # fmt: skip
    rows = []
    for each in made:
        cost = each.cost
        low, high = cost.bits_per_byte_low, cost.bits_per_byte_high
        rows.append(
            [
                Path(each.model).name,
                each.format,
                f"{cost.weight_bytes:,}",
                f"{cost.weight_bytes / cost.original_bytes:.1%}",
                f"{cost.loss:.4f}",
                f"{cost.loss_difference:+.5f}",
                f"{cost.bits_per_byte:.4f}",
                f"{cost.bits_per_byte_difference:+.5f}",
                "-" if low is None or high is None else f"{low:+.5f} to {high:+.5f}",
            ]
        )
    print_table(None, headings, rows, left=(0, 1))
    for each in made:
        if each.stored_as_f16:
            print(f"{each.folder.name}: {each.stored_as_f16} matrices have rows that are no whole blocks; they are f16")
        print(each.folder)
