"""kinfolk plan of a family file, its comparison of strategies, and the replay of decisions"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinfolk.cli.machine import this_machine
from kinfolk.cli.options import with_strategy
from kinfolk.errors import KinfolkError

if TYPE_CHECKING:
    from kinfolk.family.load import LoadedFamily
    from kinfolk.plan.machines import Machines


def load_with_vocabulary(family: str, set_: list[str], strategy: str | None) -> "LoadedFamily":
    """A family with the vocabulary of its tokenizer."""
    from dataclasses import replace

    from kinfolk.family.load import load_family

    # A mistake in the family is told before anything heavy is imported.
    loaded = load_family(family, with_strategy(set_, strategy))

    from kinfolk.data.tokenizer import with_vocabulary

    return replace(loaded, family=with_vocabulary(loaded))


def tokens_given(unique_tokens: str | None) -> int | None:
    """The tokens of --unique-tokens."""
    from kinfolk.plan.wish import parse_count

    return None if unique_tokens is None else round(parse_count(unique_tokens, "--unique-tokens", 1, 1e17))


def show_plan(
    loaded: "LoadedFamily",
    unique: int | None,
    machines: "Machines",
    law: list[str],
    bytes_per_token: float | None,
    json_: bool,
) -> None:
    """Every stage of a family with its costs and forecasts."""
    from kinfolk.growth.claims import refuse_plan
    from kinfolk.laws.choose import choose_law
    from kinfolk.plan.document import plan_document
    from kinfolk.plan.strategies import plan_family

    family = loaded.family
    plan_ = plan_family(family, loaded.origin)
    refuse_plan(plan_, family.model.architecture)
    document = plan_document(family, plan_, unique, choose_law(law, bytes_per_token))
    rate = this_machine()
    for stage in document["stages"]:
        best = _best_flops(stage["flops"])
        stage["gpu_seconds"], stage["machine_seconds"] = machines.seconds(best), best / rate
    document["gpu"] = {
        "name": machines.gpu,
        "utilisation": machines.utilisation,
        "seconds": _sum(document, "gpu_seconds"),
    }
    document["machine"] = {"flops_per_second": rate, "seconds": _sum(document, "machine_seconds")}
    document["machines"] = machines.to_dict()
    document["cost"] = {**document["total"], **machines.cost(_best_flops(document["total"]))}
    document["schedule_probe"] = _schedule_probe(loaded, rate) if loaded.auto_schedule else None
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
    else:
        from kinfolk.cli.plan_tables import print_plan

        print_plan(document)


def _schedule_probe(loaded: "LoadedFamily", rate: float) -> dict[str, Any]:
    """What a build adds to the plan to choose its schedule, or why it cannot."""
    from kinfolk.plan.schedule_probe import design_document, design_probe

    try:
        document = design_document(loaded.family, design_probe(loaded.family))
    except KinfolkError as error:
        return {"refused": str(error)}
    return {**document, "seconds": _best_flops(document["price"]["flops"]) / rate, "refused": None}


def show_comparison(loaded: "LoadedFamily", unique: int | None, machines: "Machines", json_: bool) -> None:
    """Every strategy, with and without patches."""
    from kinfolk.plan.compare import compare_strategies

    rows = compare_strategies(loaded.family, loaded.origin, unique)
    for row in rows:
        if row["refused"] is None:
            row["gpu_seconds"] = machines.seconds(_best_flops(row["total"]))
    if json_:
        gpu = {"name": machines.gpu, "utilisation": machines.utilisation}
        print(json.dumps({"family": loaded.family.name, "gpu": gpu, "rows": rows}, indent=2, allow_nan=False))
    else:
        from kinfolk.cli.plan_tables import print_comparison

        print_comparison(loaded.family.name, rows, f"{machines.gpu} @ {machines.utilisation:.0%}")


def show_replay(ladder: Path, where: list[str], below: float | None, json_: bool, **columns: str | None) -> None:
    """Decisions that would have been made on a table of runs, and what they would have cost."""
    from kinfolk.cli.options import conditions
    from kinfolk.laws.columns import Choice
    from kinfolk.laws.runs import read_runs
    from kinfolk.plan.replay import replay

    document = replay(read_runs([ladder], Choice(**columns), only=conditions(where)), below)
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.plan_tables import print_replay

    print_replay(document)


def _best_flops(flops: dict[str, Any]) -> float:
    """Exact FLOPs where the shape is known, 6ND otherwise."""
    return float(flops["six_nd"] if flops["matmul"] is None else flops["matmul"])


def _sum(document: dict[str, Any], key: str) -> float:
    return float(sum(stage[key] for stage in document["stages"]))
