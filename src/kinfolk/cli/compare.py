"""kinfolk compare"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.cli.progress import progress
from kinfolk.cli.tables import print_table

if TYPE_CHECKING:
    from kinfolk.report.compare.comparison import Comparison
    from kinfolk.report.compare.differences import Difference


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Run directories; the first is what the others are held against."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("compare.html"),
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs/--no-pairs",
            help="Measure members document by document, to tell small differences from chance; or read ledgers only.",
        ),
    ] = True,
    json_: JsonOption = False,
) -> None:
    """Families side by side: which is better at what cost, as a table and as one self-contained HTML page."""
    from rich.console import Console

    from kinfolk.report.embed import refuse_folder

    refuse_folder(output, "compare.html")
    console = Console(stderr=True)
    with console.status("starting"):
        from kinfolk.report.compare.comparison import compare as compare_runs
        from kinfolk.report.compare.page import document, write_comparison
    with progress("reading the runs") as report:
        found = compare_runs(runs, pairs, report)
    page = write_comparison(found, output)
    if found.known:
        console.print(f"{found.known} members known from before, of the same weights and text")
    if json_:
        print(json.dumps({"page": str(page), **document(found)}, indent=2, allow_nan=False))
        return
    _print(found)
    print(f"page:  {page}")


def _print(found: "Comparison") -> None:
    from rich.console import Console

    from kinfolk.report.compare.verdict import against_reference, comparable, headline

    console = Console(highlight=False, markup=False)
    _, verdict, consequence = comparable(found)
    console.print(headline(found), style="bold", soft_wrap=True)
    console.print(f"{verdict} {consequence}", soft_wrap=True)
    held = against_reference(found)
    if len(held) > 1:
        for each in held:
            console.print(f"  {each.sentence}", soft_wrap=True)
    if found.rows:
        _print_members(found)
    from kinfolk.report import numbers

    print_table(
        "families",
        ("family", "strategy", "runs", "6ND", "matmul", "tokens", "time"),
        [
            [
                side.name,
                side.strategy,
                f"{len(side.builds)}" + ("" if side.complete else ", not finished"),
                str(numbers.flops(side.cost.six_nd)),
                str(numbers.flops(side.cost.matmul)),
                str(numbers.count(side.tokens)),
                str(numbers.seconds(side.seconds)),
            ]
            for side in found.sides
        ],
        left=(0, 1, 2),
    )
    if found.specs:
        print_table(
            "what differs in the family files",
            ("field", *(side.name for side in found.sides)),
            [[each.field, *("-" if value is None else value for value in each.values)] for each in found.specs],
            left=range(len(found.sides) + 1),
        )
    for caution in found.cautions:
        if caution.level != "note":
            console.print(f"{caution.level}: {caution.run + ': ' if caution.run else ''}{caution.text}", soft_wrap=True)
    if found.not_paired:
        console.print(f"not compared document by document: {found.not_paired}", soft_wrap=True)
    else:
        for member in found.unpaired:
            text = f"not compared document by document: {member.member} of {member.family} ({member.reason})"
            console.print(text, soft_wrap=True)


def _print_members(found: "Comparison") -> None:
    from kinfolk.report import numbers

    several = any(len(side.builds) > 1 for side in found.sides)
    alone = len(found.sides) == 1
    rows = []
    for row, differences in zip(found.rows, found.differences, strict=True):
        for side, entry, difference in zip(found.sides, row.entries, differences, strict=True):
            if entry is None:
                continue
            interval = f"{entry.interval[0]:.4f} to {entry.interval[1]:.4f}" if entry.interval else "-"
            rows.append(
                [
                    f"{row.name}, {side.name}",
                    f"{entry.loss:.4f}" if found.per_token else "-",
                    f"{entry.bits_per_byte:.4f}",
                    f"± {entry.spread:.4f} over seeds" if entry.spread is not None else interval,
                    *([] if alone else _difference(difference, several)),
                    str(numbers.flops(entry.flops.six_nd)),
                    str(numbers.flops(entry.flops.matmul)),
                    str(numbers.count(entry.tokens)),
                    str(numbers.seconds(entry.seconds)),
                ]
            )
    headings = ["member", "loss", "bits per byte", "90 % interval"]
    against = ["difference", "90 %, documents", *(["90 %, seeds"] if several else []), ""]
    headings += [*([] if alone else against), "6ND", "matmul", "tokens", "time"]
    left = (0,) if alone else (0, 6 + several)
    print_table("members, each with what its lineage cost", headings, rows, left=left)


def _difference(difference: "Difference | None", several: bool) -> list[str]:
    if difference is None:
        return ["-"] * (3 + several)
    seeds = [_between(difference.seed_interval)] if several else []
    mean = f"{difference.mean:+.4f} ({difference.relative:+.2%})"
    return [mean, _between(difference.interval), *seeds, difference.verdict]


def _between(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "-"
