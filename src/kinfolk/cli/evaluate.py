"""kinfolk evaluate"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kinfolk.cli.options import BatchSizeOption, JsonOption, LimitOption, TaskDataOption, TasksOption, TextOption
from kinfolk.cli.progress import progress
from kinfolk.cli.tables import print_table
from kinfolk.cli.task_runs import evaluate_tasks, wants_tasks


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run directories, members, or any Hugging Face checkpoint.")
    ],
    text: TextOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option(help="Evaluate on the held-out documents of this run.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Window; by default what the model was made for.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; by default half a window.")] = None,
    ensembles: Annotated[
        bool, typer.Option("--ensembles", help="Also two smaller models together, at no more FLOPs than each.")
    ] = False,
    tasks: TasksOption = [],  # noqa: B006
    task_data: TaskDataOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 1,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """Held-out loss, perplexity and bits per byte, on a run's held-out documents or a text of your own; or tasks."""
    only_text = {
        "--text": text,
        "--run": run,
        "--context-length": context_length,
        "--stride": stride,
        "--ensembles": ensembles,
    }
    if wants_tasks(tasks, {"--task-data": task_data, "--limit": limit}, only_text):
        evaluate_tasks(models, tasks, task_data, limit, batch_size, force, json_)
        return
    from rich.console import Console

    from kinfolk.errors import KinfolkError

    if text and run is not None:
        raise KinfolkError("--text and --run are both given", fix="choose what to evaluate on")
    console = Console(stderr=True)
    with console.status("starting"):
        from kinfolk.evaluate.measure import common_context, members_of, scored
        from kinfolk.evaluate.text import text_for
    paths = [path for model in models for path in members_of(model)]
    if ensembles and context_length is None:
        context_length = common_context(paths)
    results: list[dict[str, Any]] = []
    known = 0
    with progress("starting") as report:
        for path in paths:
            score, was_known = scored(
                path,
                text_for([path], text, run),
                context_length=context_length,
                stride=stride,
                force=force,
                progress=report,
            )
            known += was_known
            results.append({"model": path, **score})
        if ensembles and context_length is not None:
            from kinfolk.evaluate.ensembles import add_ensembles

            what = text_for(paths, text, run)
            add_ensembles(results, what, context_length, stride, force, report)
    if known:
        console.print(f"{known} of {len(paths)} known from before, of the same weights and text")
    if json_:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=2, allow_nan=False))
        return
    headings = ["model", "loss (nats/token)", "perplexity", "bits per byte", "90 % interval", "tokens", "bytes"]
    if ensembles:
        headings += ["FLOPs/token", "two smaller together (bits per byte)"]
    print_table(None, headings, [_row(result, ensembles) for result in results])


def _row(result: dict[str, Any], ensembles: bool) -> list[str]:
    low, high = result["bits_per_byte_low"], result["bits_per_byte_high"]
    cells = [
        result["model"],
        f"{result['loss']:.4f}",
        f"{result['perplexity']:.3f}" if result["perplexity"] is not None else "overflow",
        f"{result['bits_per_byte']:.4f}",
        f"{low:.4f} to {high:.4f}" if low is not None else "-",
        f"{result['tokens']:,}",
        f"{result['bytes']:,}",
    ]
    if not ensembles:
        return cells
    best = result["two_smaller"]
    if best is None:
        return [*cells, f"{result['flops_per_token']:.3g}", "-"]
    names = " + ".join(Path(path).name for path in best["models"])
    share = best["flops_per_token"] / result["flops_per_token"]
    return [
        *cells,
        f"{result['flops_per_token']:.3g}",
        f"{best['bits_per_byte']:.4f} ({names}, {share:.0%} of the FLOPs)",
    ]
