"""kinfolk adaptability"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kinfolk.cli.options import JsonOption, TextOption
from kinfolk.cli.tables import print_table


def adaptability(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run directories, members, or any Hugging Face checkpoint.")
    ],
    text: TextOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option(help="Measure on the held-out documents of this run.")] = None,
    tune: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A UTF-8 text to tune on, briefly (repeatable).")
    ] = [],  # noqa: B006
    noise: Annotated[
        float, typer.Option(min=0, help="Deviation of the noise, in that of the weights when they were drawn.")
    ] = 0.2,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the fine-tune, of 8 sequences each.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the fine-tune, constant.")] = 1e-4,
    context_length: Annotated[int | None, typer.Option(help="Window; by default the shortest context of all.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; by default half a window.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """How well models bear noise on their weights and a short fine-tune; members also before their decay."""
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        from kinfolk.evaluate.adaptabilities import compare_adaptability
        from kinfolk.evaluate.adaptability import Trial
        from kinfolk.evaluate.measure import common_context, members_of
        from kinfolk.evaluate.text import Text, text_for

        paths = [path for model in models for path in members_of(model)]
        records = compare_adaptability(
            paths,
            text_for(paths, text, run),
            Text(tuple(tune)) if tune else None,
            context_length=common_context(paths) if context_length is None else context_length,
            stride=stride,
            trial=Trial(noise=noise, steps=steps, learning_rate=learning_rate),
            force=force,
            say=status.update,
        )
    if json_:
        print(json.dumps(records, indent=2, allow_nan=False))
        return
    headings = ["model", "loss (nats/token)", "after noise", "range of the draws"]
    if tune:
        headings += ["after tuning", "tuned text, before", "after"]
    print_table(None, headings, [_row(record) for record in records])


def _row(record: dict[str, Any]) -> list[str]:
    noise, tuning = record["noise"], record["tuning"]
    cells = [
        record["model"] + (", before its decay" if record["before_decay"] else ""),
        f"{record['loss']:.4f}",
        f"{noise['loss']:.4f} ({noise['increase']:+.4f})",
        f"{noise['lowest']:.4f} to {noise['highest']:.4f}",
    ]
    if tuning is None:
        return cells
    return [
        *cells,
        f"{tuning['loss']:.4f} ({tuning['increase']:+.4f})",
        f"{tuning['own_loss_before']:.4f}",
        f"{tuning['own_loss']:.4f} ({-tuning['gain']:+.4f})",
    ]
