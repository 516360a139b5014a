"""kinfolk plan"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.options import (
    BytesOption,
    JsonOption,
    LawOption,
    SetOption,
    StrategyOption,
    with_strategy,
)

if TYPE_CHECKING:
    from kinfolk.family.spec import Family


REPLAY = "Replay of decisions"


def plan(
    family: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="A family file, or the name of a preset.")
    ] = None,
    strategy: StrategyOption = None,
    gpu: Annotated[str, typer.Option(help="GPU of the time estimate.")] = "H100",
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that training reaches.")] = 0.4,
    law: LawOption = [],  # noqa: B006 (typer copies it)
    bytes_per_token: BytesOption = None,
    compare: Annotated[bool, typer.Option("--compare", help="Every strategy, with and without patches.")] = False,
    train_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the training data, to be warned of repeating them.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="LADDER", help="Replay decisions on a table of runs instead.", rich_help_panel=REPLAY),
    ] = None,
    where: Annotated[
        list[str], typer.Option(metavar="COLUMN=VALUE", help="Only rows with this value.", rich_help_panel=REPLAY)
    ] = [],  # noqa: B006
    loss: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of losses.", rich_help_panel=REPLAY)
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(metavar="FLOPS", help="Fit runs below this; by default the cheaper half.", rich_help_panel=REPLAY),
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    json_: JsonOption = False,
) -> None:
    """Show every stage of a family's plan, its cost and saving, and the loss that each member is forecast to reach."""
    if replay is not None:
        _replay(replay, where, loss, below, json_)
        return
    if family is None:
        raise typer.BadParameter("there is none; `kinfolk design` makes one from a budget", param_hint="FAMILY")
    from kinfolk.family.load import load_family

    # The family first: a mistake in it is told before anything heavy is imported.
    loaded = load_family(family, with_strategy(set_, strategy))

    from kinfolk.data.tokenizer import with_vocabulary
    from kinfolk.growth.claims import refuse_plan
    from kinfolk.laws.choose import choose_law
    from kinfolk.plan.document import plan_document
    from kinfolk.plan.machines import gpu_seconds
    from kinfolk.plan.strategies import plan_family

    family_ = with_vocabulary(loaded)
    if compare:
        _compare(family_, loaded.origin, train_tokens, gpu, utilisation, json_)
        return
    plan_ = plan_family(family_, loaded.origin)
    refuse_plan(plan_, family_.model.architecture)
    document = plan_document(family_, plan_, train_tokens, choose_law(law, bytes_per_token))
    for stage in document["stages"]:
        stage["gpu_seconds"] = gpu_seconds(_best_flops(stage["flops"]), gpu, utilisation)
    rate = _this_machine()
    for stage in document["stages"]:
        stage["machine_seconds"] = _best_flops(stage["flops"]) / rate
    document["gpu"] = {"name": gpu, "utilisation": utilisation, "seconds": _sum(document, "gpu_seconds")}
    document["machine"] = {"flops_per_second": rate, "seconds": _sum(document, "machine_seconds")}
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        from kinfolk.cli.plan_tables import print_plan

        print_plan(document)


def _replay(ladder: Path, where: list[str], loss: str | None, below: float | None, json_: bool) -> None:
    from kinfolk.cli.options import conditions
    from kinfolk.laws.columns import Choice
    from kinfolk.laws.runs import read_runs
    from kinfolk.plan.replay import replay

    document = replay(read_runs([ladder], Choice(loss=loss), only=conditions(where)), below)
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.plan_tables import print_replay

    print_replay(document)


def _compare(
    family: "Family", origin: str, train_tokens: int | None, gpu: str, utilisation: float, json_: bool
) -> None:
    from kinfolk.plan.compare import compare_strategies
    from kinfolk.plan.machines import gpu_seconds

    rows = compare_strategies(family, origin, train_tokens)
    possible = [row for row in rows if row["refused"] is None]
    for row in possible:
        row["gpu_seconds"] = gpu_seconds(_best_flops(row["total"]), gpu, utilisation)
    if json_:
        document = {"family": family.name, "gpu": {"name": gpu, "utilisation": utilisation}, "rows": rows}
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        from kinfolk.cli.plan_tables import print_comparison

        print_comparison(family.name, rows, f"{gpu} @ {utilisation:.0%}")


def _best_flops(flops: dict[str, Any]) -> float:
    """Exact FLOPs where the shape is known, 6ND otherwise."""
    return float(flops["six_nd"] if flops["matmul"] is None else flops["matmul"])


def _sum(document: dict[str, Any], key: str) -> float:
    return float(sum(stage[key] for stage in document["stages"]))


def _this_machine() -> float:
    """Training FLOP/s to expect of this machine, measured; importing torch for it takes seconds."""
    from rich.console import Console

    with Console(stderr=True).status("measuring how fast this machine is"):
        from kinfolk.train.engine import fastest_precision, single_engine
        from kinfolk.train.speed import TRAINING_SHARE, matmul_rate

        engine = single_engine()
        return TRAINING_SHARE * matmul_rate(engine, fastest_precision(engine.device))
