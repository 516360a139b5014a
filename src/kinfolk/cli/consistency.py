"""kinfolk consistency"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kinfolk.cli.options import BatchSizeOption, JsonOption, LimitOption, TaskDataOption, TasksOption, TextOption
from kinfolk.cli.progress import progress
from kinfolk.cli.tables import print_table
from kinfolk.cli.task_runs import compare_tasks, short_names, wants_tasks


def consistency(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Two or more members or Hugging Face checkpoints; a run is its members."
        ),
    ],
    text: TextOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option(help="Compare on the held-out documents of this run.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Window; by default the shortest context of all.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; by default half a window.")] = None,
    draft_tokens: Annotated[int, typer.Option(min=1, help="Tokens drafted for each pass of the larger model.")] = 4,
    decode: Annotated[
        int, typer.Option(min=0, help="Prompts to decode with the smaller as draft, to measure acceptance.")
    ] = 0,
    tasks: TasksOption = [],  # noqa: B006
    task_data: TaskDataOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = 1,
    force: Annotated[bool, typer.Option("--force", help="Also weights that were trained on patches last.")] = False,
    json_: JsonOption = False,
) -> None:
    """How alike models predict on the same text: divergence, agreement, acceptance; or on tasks: prediction flips."""
    only_text = {
        "--text": text,
        "--run": run,
        "--context-length": context_length,
        "--stride": stride,
        "--decode": decode,
    }
    if wants_tasks(tasks, {"--task-data": task_data, "--limit": limit}, only_text):
        compare_tasks(models, tasks, task_data, limit, batch_size, force, json_)
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting"):
        from kinfolk.evaluate.in_run import keep_consistency
        from kinfolk.evaluate.measure import members_of
        from kinfolk.evaluate.pairs import compare_pairs, matrices, settings_for
        from kinfolk.evaluate.text import text_for
    paths = [path for model in models for path in members_of(model)]
    settings = settings_for(paths, context_length, stride, draft_tokens, decode, force)
    what = text_for(paths, text, run)
    with progress("starting") as report:
        pairs, known = compare_pairs(paths, what, settings, report)
    if len(models) == 1 and not text and run in (None, Path(models[0])):
        kept = keep_consistency(Path(models[0]), paths, settings, pairs)
        console.print(f"kept for kinfolk report in {kept}" if kept else "the run's folder may not be written to")
    if known:
        console.print(f"{known} of {len(pairs)} known from before, of the same weights and text")
    if json_:
        document = {"models": paths, **vars(settings), "pairs": pairs, "matrices": matrices(paths, pairs)}
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    _print(paths, pairs, matrices(paths, pairs))


def _print(paths: list[str], pairs: list[dict[str, Any]], found: dict[str, list[list[float | None]]]) -> None:
    names = short_names(paths)
    per_token = [pair for pair in pairs if pair["kind"] == "per_token"]
    if per_token:
        k = per_token[0]["tokens_per_pass"]["draft_tokens"]
        headings = (
            "p, q",
            "KL(p || q)",
            "KL(q || p)",
            "Jensen-Shannon",
            "same first token",
            "acceptance",
            f"tokens/pass, {k} drafted",
        )
        print_table(
            "per token, nats, 90 % intervals over documents", headings, [_row(pair, names) for pair in per_token]
        )
    measured = [pair for pair in per_token if pair["measured"]]
    if measured:
        decoded = ("draft, target", "decoding", "tested", "measured acceptance", "expected there", "tokens/pass")
        print_table("decoded", decoded, [row for pair in measured for row in _decoded(pair, names)], left=(0, 1))
    print_table(
        "by document, bits per byte",
        ("p, q", "p", "q", "q - p", "q better on", "rank correlation"),
        [_by_document(pair, names) for pair in pairs],
    )
    if len(paths) > 2 and per_token:
        for title, key in (("KL(row || column), nats", "kl"), ("acceptance", "acceptance")):
            rows = [
                [names[path], *("-" if value is None else f"{value:.4f}" for value in line)]
                for path, line in zip(paths, found[key], strict=True)
            ]
            print_table(title, ("", *(names[path] for path in paths)), rows)


def _row(pair: dict[str, Any], names: dict[str, str]) -> list[str]:
    figures = ("kl_first_to_second", "kl_second_to_first", "jensen_shannon", "top1_agreement", "acceptance")
    passes = pair["tokens_per_pass"]
    return [
        f"{names[pair['first']]}, {names[pair['second']]}",
        *(_with_interval(pair[name]) for name in figures),
        f"{passes['independent' if passes['in_place'] is None else 'in_place']:.2f}",
    ]


def _decoded(pair: dict[str, Any], names: dict[str, str]) -> list[list[str]]:
    found = pair["measured"]
    return [
        [
            f"{names[found['draft']]}, {names[found['target']]}",
            how,
            f"{found[how]['tested']:,}",
            f"{found[how]['measured']:.4f}",
            f"{found[how]['expected']:.4f} ± {found[how]['standard_error']:.4f}",
            f"{found[how]['tokens_per_pass']:.2f}",
        ]
        for how in ("sampled", "greedy")
    ]


def _by_document(pair: dict[str, Any], names: dict[str, str]) -> list[str]:
    found = pair["by_document"]
    correlation = found["rank_correlation"]
    return [
        f"{names[pair['first']]}, {names[pair['second']]}",
        f"{found['first_bits_per_byte']:.4f}",
        f"{found['second_bits_per_byte']:.4f}",
        _with_interval(found["difference"], "+.4f"),
        f"{found['second_better_share']:.0%} of {found['documents']:,}",
        "-" if correlation is None else f"{correlation:.3f}",
    ]


def _with_interval(figure: dict[str, Any], form: str = ".4f") -> str:
    mean = f"{figure['mean']:{form}}"
    return mean if figure["low"] is None else f"{mean} ({figure['low']:{form}} to {figure['high']:{form}})"
