"""kinfolk build"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import FamilyArgument, SetOption


def build(
    family: FamilyArgument,
    run: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME.", show_default=False)] = None,
    strategy: Annotated[str | None, typer.Option(help="independent or progressive; overrides the file.")] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Build every member of a family, or go on with a build that was stopped or killed."""
    from rich.console import Console

    from kinfolk.build.build import build as build_family
    from kinfolk.build.view import LiveView
    from kinfolk.family.load import load_family
    from kinfolk.report.page import write_report
    from kinfolk.train.interruption import Interrupted

    overrides = [*set_, f"strategy={strategy}"] if strategy else set_
    loaded = load_family(family, overrides)
    folder = run or Path("runs") / loaded.family.name
    console = Console(stderr=True)
    try:
        with LiveView(console) as view:
            build_family(loaded, folder, view)
    except Interrupted as stop:
        console.print(f"stopped by {stop}; what was done is saved, and the same command goes on from there")
        sys.exit(128 + stop.number)
    page = write_report([folder], folder / "report.html")
    print(f"report:  {page}")
    print(f"members: {folder / 'members'}")
