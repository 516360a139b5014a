"""kinfolk plan"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.options import FamilyArgument, JsonOption, SetOption, StrategyOption, with_strategy

if TYPE_CHECKING:
    from kinfolk.family.spec import Family


def plan(
    family: FamilyArgument,
    strategy: StrategyOption = None,
    gpu: Annotated[str, typer.Option(help="GPU of the time estimate.")] = "H100",
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's peak that training reaches.")] = 0.4,
    compare: Annotated[bool, typer.Option("--compare", help="Every strategy, with and without patches.")] = False,
    train_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the training data, to be warned of repeating them.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    json_: JsonOption = False,
) -> None:
    """Show every stage of a family's plan, what it costs, and what it saves against training each member alone."""
    from kinfolk.data.tokenizer import with_vocabulary
    from kinfolk.family.load import load_family
    from kinfolk.growth.claims import refuse_plan
    from kinfolk.plan.document import plan_document
    from kinfolk.plan.machines import gpu_seconds
    from kinfolk.plan.strategies import plan_family

    loaded = load_family(family, with_strategy(set_, strategy))
    family_ = with_vocabulary(loaded)
    if compare:
        _compare(family_, loaded.origin, train_tokens, gpu, utilisation, json_)
        return
    plan_ = plan_family(family_, loaded.origin)
    refuse_plan(plan_, family_.model.architecture)
    document = plan_document(family_, plan_, train_tokens)
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
        _print_table(document)


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
        _print_comparison(family.name, rows, f"{gpu} @ {utilisation:.0%}")


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


def _print_comparison(name: str, rows: list[dict[str, Any]], gpu: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from kinfolk.build.view import duration
    from kinfolk.cli.numbers import short

    title = f"{name}: what each way of building it costs, with decay_share {rows[0]['decay_share']:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("strategy")
    table.add_column("patches")
    for heading in ("6ND FLOPs", "of alone", "matmul FLOPs", "of alone", "tokens read", "steps", gpu):
        table.add_column(heading, justify="right")
    for row in rows:
        patch = row["patch"]
        cells = [row["strategy"], f"{patch['size']}, {patch['members']}" if patch else "-"]
        if row["refused"] is not None:
            table.add_row(*cells, "not with this family file, see below")
            continue
        for kind in ("six_nd", "matmul"):
            known = row["total"][kind] is not None
            cells += [f"{row['total'][kind]:.3g}", f"{row['cost'][kind]:.1%}"] if known else ["-", "-"]
        table.add_row(*cells, short(row["tokens_read"]), f"{row['steps']:,}", duration(row["gpu_seconds"]))
    Console(width=None if Console().is_terminal else 140).print(table)
    print("tokens read and steps are those of the longest line of stages; alone is each member alone at token level")
    for message in dict.fromkeys(row["refused"] for row in rows if row["refused"]):
        print(f"refused: {message}")
    for message in dict.fromkeys(message for row in rows for message in row.get("warnings", [])):
        print(f"warning: {message}")


def _print_table(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from kinfolk.build.view import duration
    from kinfolk.cli.numbers import short

    gpu = document["gpu"]
    table = Table(title=f"{document['family']}: {document['strategy']}", title_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for heading in ("reads", "layers x hidden", "parameters", "non-emb.", "tokens", "steps", "peak rate"):
        table.add_column(heading, justify="right")
    for heading in ("6ND FLOPs", "matmul FLOPs", "share", "here", f"{gpu['name']} @ {gpu['utilisation']:.0%}"):
        table.add_column(heading, justify="right")
    for stage in document["stages"]:
        shape, parameters, flops = stage["shape"], stage["parameters"], stage["flops"]
        table.add_row(
            stage["name"],
            stage["parent"] or "scratch",
            f"patches of {stage['objective']['size']}" if stage["objective"]["kind"] == "patch" else "tokens",
            f"{shape['num_hidden_layers']} x {shape['hidden_size']}" if shape else "-",
            short(parameters["total"] if shape else parameters["counted"]),
            short(parameters["non_embedding"]) if shape else "-",
            short(stage["tokens"]),
            f"{stage['steps']:,}",
            f"{stage['rate']['peak']:.3g}",
            f"{flops['six_nd']:.3g}",
            f"{flops['matmul']:.3g}" if flops["matmul"] else "-",
            f"{stage['share']:.1%}",
            duration(stage["machine_seconds"]),
            duration(stage["gpu_seconds"]),
        )
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    total, alone = document["total"], document["independent"]
    for kind, name in (("six_nd", "6ND"), ("matmul", "matmul")):
        if total[kind]:
            saving = document["savings"][kind]
            print(f"total {total[kind]:.4g} FLOPs ({name}); each alone {alone[kind]:.4g}; saving {saving:.1%}")
    print(
        f"about {duration(document['machine']['seconds'])} on this machine, {duration(gpu['seconds'])} on one "
        f"{gpu['name']} at {gpu['utilisation']:.0%} of its peak"
    )
    print(f"the longest line of stages reads {short(document['data']['tokens_read'])} tokens")
    for warning in document["warnings"]:
        print(f"warning: {warning}")
