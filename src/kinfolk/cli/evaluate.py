"""kinfolk evaluate"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.status import Status


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run directories, members, or any Hugging Face checkpoint.")
    ],
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file to evaluate on, as one document.")] = None,
    run: Annotated[Path | None, typer.Option(help="Evaluate on the held-out documents of this run.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Window; by default what the model was made for.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; by default half a window.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """Held-out loss, perplexity and bits per byte, on a run's held-out documents or on a text of your own."""
    from rich.console import Console

    from kinfolk.errors import KinfolkError

    if text is not None and run is not None:
        raise KinfolkError("--text and --run are both given", fix="choose what to evaluate on")
    console = Console(stderr=True)
    with console.status("starting"):
        from kinfolk.evaluate.measure import measure, members_of, run_of
    paths = [path for model in models for path in members_of(model)]
    results: list[dict[str, Any]] = []
    for path in paths:
        with console.status(f"evaluating {path}") as status:
            score = measure(
                path,
                text=text,
                run=None if text else run or run_of(path),
                context_length=context_length,
                stride=stride,
                force=force,
                progress=partial(_show_progress, status, path),
            )
        results.append({"model": path, **score.to_dict()})
    if json_:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=2, allow_nan=False))
        return
    _print_table(results)


def _show_progress(status: "Status", path: str, done: int) -> None:
    status.update(f"evaluating {path}: {done:,} tokens")


def _print_table(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("model", overflow="fold")
    for heading in ("loss (nats/token)", "perplexity", "bits per byte", "90 % interval", "tokens", "bytes"):
        table.add_column(heading, justify="right")
    for result in results:
        low, high = result["bits_per_byte_low"], result["bits_per_byte_high"]
        table.add_row(
            result["model"],
            f"{result['loss']:.4f}",
            f"{result['perplexity']:.3f}" if result["perplexity"] is not None else "overflow",
            f"{result['bits_per_byte']:.4f}",
            f"{low:.4f} to {high:.4f}" if low is not None else "-",
            f"{result['tokens']:,}",
            f"{result['bytes']:,}",
        )
    Console(width=None if Console().is_terminal else 140).print(table)
