"""What `kinfolk design` shows to people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kinfolk.build.view import duration
from kinfolk.cli.numbers import short
from kinfolk.cli.plan_tables import print_forecasts


def print_design(document: dict[str, Any]) -> None:
    """Members, forecasts, costs, other strategies, and what holds the design."""
    _print_members(document)
    print_forecasts(document["plan"]["forecast"])
    _print_cost(document)
    _print_strategies(document)
    print("held by:")
    for constraint in document["constraints"]:
        print(f"  {'->' if constraint['binding'] else '  '} {constraint['text']}")
    for caution in document["cautions"]:
        print(f"warning: {caution}")


def _print_members(document: dict[str, Any]) -> None:
    table = Table(title=f"{document['strategy']} family for {document['budget']['given']}", title_justify="left")
    table.add_column("member", no_wrap=True)
    for heading in ("layers x hidden", "heads/KV", "feed-forward", "parameters", "tokens alone", "each", "own tokens"):
        table.add_column(heading, justify="right")
    for heading in ("peak rate", "rules say", "batch", "rules say", "GB a GPU", "worth"):
        table.add_column(heading, justify="right")
    trained: dict[str, float] = {}
    owner = ""
    for stage in reversed(document["plan"]["stages"]):
        owner = stage["member"] or owner
        trained[owner] = trained.get(owner, 0.0) + stage["tokens"]
    for member in document["members"]:
        shape, rules, worth = member["shape"], member["rules"], member["price"]["effective_compute"]
        peaks, batches = [rule["peak"] for rule in rules], [rule["tokens_per_step"] for rule in rules]
        table.add_row(
            member["name"],
            f"{shape['num_hidden_layers']} x {shape['hidden_size']}",
            f"{shape['num_attention_heads']}/{shape['num_key_value_heads']} of {shape['head_dim']}",
            str(shape["intermediate_size"]),
            short(member["parameters"]["total"]),
            short(member["tokens"]),
            f"{member['ratio']:.3g}",
            short(trained[member["name"]]),
            f"{member['peak_learning_rate']:.2g}",
            f"{min(peaks):.2g}-{max(peaks):.2g}",
            short(member["tokens_per_step"]),
            f"{short(min(batches))}-{short(max(batches))}",
            f"{member['memory']['total'] / 1e9:.3g}",
            "-" if worth is None else f"{worth:.0%}",
        )
    Console(width=None if Console().is_terminal else 200).print(table)
    print(
        "each: tokens per parameter; worth: share of the FLOPs that, optimally split, would reach the same loss (the "
        "compute-only law says 100 % always)"
    )
    memory = [member["memory"] for member in document["members"]][-1]
    parts = ", ".join(
        f"{memory[part] / 1e9:.3g} {part}" for part in ("weights", "gradients", "optimizer", "activations")
    )
    gpus = document["machines"]["gpus"]
    print(f"memory of the largest on each of {gpus} GPUs, in GB: {parts} (of one sequence)")
    for member in document["members"]:
        serving = member["price"]["serving"]
        if serving:
            print(
                f"{member['name']}: serving {short(serving['served_tokens'])} tokens costs "
                f"{serving['serving_flops']:.3g} FLOPs; over its life it costs {serving['lifetime_over_cheapest']:.3g} "
                f"times the cheapest model of that loss, {short(serving['cheapest_parameters'])} parameters on "
                f"{short(serving['cheapest_tokens'])} tokens (arXiv 2401.00448)"
            )


def _print_cost(document: dict[str, Any]) -> None:
    cost, machines = document["cost"], document["machines"]
    money = "" if cost["money"] is None else f", money {cost['money']:,.2f}"
    print(
        f"total {cost['six_nd']:.4g} FLOPs (6ND), {cost['matmul']:.4g} (matmul): {cost['gpu_hours']:,.4g} GPU-hours of "
        f"{machines['gpu']} at {machines['utilisation']:.0%}, {duration(3600 * cost['hours'])} on {machines['gpus']}"
        f"{money}, {cost['kilowatt_hours']:,.4g} kWh ({machines['energy_overhead']:g} times the boards' power)"
    )
    if document["budget"]["serving"]:
        print(f"and {document['budget']['serving']:.4g} FLOPs of the budget for serving")


def _print_strategies(document: dict[str, Any]) -> None:
    table = Table(title="the same members by every strategy", title_justify="left")
    table.add_column("strategy")
    table.add_column("patches")
    for heading in ("6ND FLOPs", "matmul FLOPs", "this design saves"):
        table.add_column(heading, justify="right")
    for row in document["strategies"]:
        patch = f"{row['patch']['size']}, {row['patch']['members']}" if row["patch"] else "-"
        if row["refused"]:
            table.add_row(row["strategy"], patch, "-", "-", "not possible")
            continue
        total = row["total"]
        saving = f"{row['saving_of_design']:+.1%}"
        table.add_row(row["strategy"], patch, f"{total['six_nd']:.3g}", f"{total['matmul']:.3g}", saving)
    Console(width=None if Console().is_terminal else 140).print(table)
