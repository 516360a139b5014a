"""kinfolk build"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import FamilyArgument, LawOption, SetOption, StrategyOption, with_strategy


def build(
    family: FamilyArgument,
    run: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME.", show_default=False)] = None,
    strategy: StrategyOption = None,
    law: LawOption = [],  # noqa: B006 (typer copies it)
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Build every member of a family, or go on with a build that was stopped or killed."""
    from rich.console import Console

    from kinfolk.family.load import load_family

    # The family first: a mistake in it is told at once, and not after the seconds that importing torch takes.
    loaded = load_family(family, with_strategy(set_, strategy))

    from kinfolk.build.auto import build_family
    from kinfolk.build.view import LiveView
    from kinfolk.laws.choose import choose_law
    from kinfolk.report.page import write_report
    from kinfolk.train.engine import MainStopped
    from kinfolk.train.interruption import Interrupted

    chosen = choose_law(law) if law else None
    folder = run or Path("runs") / loaded.family.name
    is_main = os.environ.get("RANK", "0") == "0"  # under torchrun, one process speaks for all
    console = Console(stderr=True, quiet=not is_main)
    try:
        with LiveView(console) as view:
            build_family(loaded, folder, view, law=chosen)
    except Interrupted as stop:
        message = f"stopped by {stop}; what was done is saved, and the same command goes on from there"
        console.print(message, soft_wrap=True)
        sys.exit(128 + stop.number)
    except MainStopped:
        sys.exit(1)
    if not is_main:
        return
    page = write_report([folder], folder / "report.html")
    print(f"report:  {page}")
    print(f"members: {folder / 'members'}")
