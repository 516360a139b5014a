"""kinfolk build"""

import sys
from functools import partial
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
    replicas: Annotated[
        int, typer.Option(help="Under torchrun: groups of processes that each hold the whole model in shards.")
    ] = 1,
    tensor_parallel: Annotated[
        int, typer.Option(help="Under torchrun: processes that share the matrices of every block.")
    ] = 1,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations again for the gradient: less memory, more time.")
    ] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the blocks with torch.compile.")] = False,
    reduce_each: Annotated[
        bool,
        typer.Option("--reduce-each", help="Sum gradients with every micro-batch: less memory, more communication."),
    ] = False,
    background_saving: Annotated[
        bool | None,
        typer.Option(help="Write checkpoints while training goes on; by default on a GPU.", show_default=False),
    ] = None,
    only: Annotated[
        list[str],
        typer.Option(
            metavar="MEMBER",
            help="Build these members only (repeatable); other jobs may build others in the same run directory.",
        ),
    ] = [],  # noqa: B006 (typer copies it)
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Build every member of a family, or go on with a build that was stopped or killed."""
    from kinfolk.family.load import load_family

    # The family first: a mistake in it is told at once, and not after the seconds that importing torch takes.
    loaded = load_family(family, with_strategy(set_, strategy))

    from kinfolk.build.auto import build_family
    from kinfolk.build.locks import one_at_a_time
    from kinfolk.laws.choose import choose_law
    from kinfolk.report.page import write_report
    from kinfolk.train.layout import Layout

    chosen = choose_law(law) if law else None
    folder = run or Path("runs") / loaded.family.name
    layout = Layout(replicas, tensor_parallel, recompute, compile_, reduce_each, background_saving)
    with live_view() as view:
        build_family(loaded, folder, view, chosen, layout, only)
    if not is_main_process():
        return
    with one_at_a_time(folder, partial(print, file=sys.stderr)):  # of several jobs, the last one's report stays
        page = write_report([folder], folder / "report.html")
    print(f"report:  {page}")
    print(f"members: {folder / 'members'}")
