"""kinfolk build"""

from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.live import is_main_process, live_view
from kinfolk.cli.options import FamilyArgument, LawOption, SetOption, StrategyOption, with_strategy


def build(
    family: FamilyArgument,
    run: Annotated[Path | None, typer.Option(help="Run directory; by default runs/NAME.", show_default=False)] = None,
    strategy: StrategyOption = None,
    law: LawOption = [],  # noqa: B006 (typer copies it)
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Build every member of a family, or go on with a build that was stopped or killed."""
    from kinfolk.family.load import load_family

    # The family first: a mistake in it is told at once, and not after the seconds that importing torch takes.
    loaded = load_family(family, with_strategy(set_, strategy))

    from kinfolk.build.auto import build_family
    from kinfolk.laws.choose import choose_law
    from kinfolk.report.page import write_report

    chosen = choose_law(law) if law else None
    folder = run or Path("runs") / loaded.family.name
    with live_view() as view:
        build_family(loaded, folder, view, law=chosen)
    if not is_main_process():
        return
    page = write_report([folder], folder / "report.html")
    print(f"report:  {page}")
    print(f"members: {folder / 'members'}")
