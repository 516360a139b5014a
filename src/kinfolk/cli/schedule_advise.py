"""kinfolk schedule advise"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kinfolk.cli.options import JsonOption

if TYPE_CHECKING:
    from kinfolk.build.advise import StageAdvice
    from kinfolk.schedule.advice import Option


def advise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory; the run may be going on.")],
    stage: Annotated[
        str | None, typer.Option(help="The stage; by default the last one that holds its rate.", show_default=False)
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS|Nsteps",
            help="Where training is to end, since the beginning of the stage's schedule; by default as planned.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say when a stage that holds its rate should begin its decay, and what it would end at if it began now."""
    from kinfolk.build.advise import advice_of_stage_document, advise_stage

    found = advise_stage(run, stage, end)
    if json_:
        print(json.dumps(advice_of_stage_document(found), indent=2, allow_nan=False))
        return
    _show(found)


def _show(found: "StageAdvice") -> None:
    from rich.console import Console
    from rich.table import Table

    from kinfolk.cli.numbers import short

    advice, each = found.advice, found.tokens_per_step
    print(f"{found.stage}: {advice.verdict}")
    table = Table(
        title=f"decays that end at step {advice.end:,} ({short(advice.end * each)} tokens); now: step {advice.now:,}",
        title_justify="left",
    )
    for heading in ("", "begins at step", "tokens", "share", "shape", "forecast", "90 % interval", "tied"):
        table.add_column(heading, justify="left" if heading in ("", "shape") else "right")

    def row(label: str, option: "Option") -> None:
        table.add_row(
            label,
            f"{option.begin:,}",
            short(option.begin * each),
            f"{100 * option.share:.0f} %",
            option.shape,
            f"{option.loss:.4f}",
            f"{option.low:.4f} to {option.high:.4f}",
            "yes" if option.tied else "no",
        )

    for option in advice.options:
        row("", option)
    table.add_section()
    row("planned" if found.planned else "habit", advice.planned)
    row("now", advice.begun_now)
    Console(width=None if Console().is_terminal else 120).print(table)
    if advice.latest.begin > advice.choice.begin:
        print(
            f"a {advice.latest.shape} decay from as late as step {advice.latest.begin:,} cannot be told from the best, "
            f"though its forecast is {advice.latest.loss - advice.options[0].loss:.4f} nats higher"
        )
    source = f"the decay of {found.gain_from}" if found.gain_from else "public runs"
    print(f"what a decay brings is taken from {source} until this stage's own rate falls")
    if found.grown:
        print("note: the stage was grown; its curve is fitted from the growth on")
