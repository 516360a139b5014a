"""What `kinfolk plan` shows to people of a budget."""

from typing import Any

from kinfolk.cli.numbers import short
from kinfolk.cli.plan_tables import in_range, loss_cells, print_cost, print_law, print_stages
from kinfolk.cli.tables import print_table


def print_budget_plan(document: dict[str, Any]) -> None:
    """Members, stages, forecasts, costs, other strategies, and what holds the plan."""
    _print_members(document)
    print_stages(document)
    print_cost(document)
    if document["budget"]["serving"]:
        print(f"and {document['budget']['serving']:.4g} FLOPs of the budget for serving")
    _print_strategies(document)
    print("limits (-> reached, !! broken):")
    for limit in document["constraints"]:
        print(f"  {'!!' if limit['broken'] else '->' if limit['binding'] else '  '} {limit['text']}")
    for warning in document["warnings"]:
        print(f"warning: {warning}")


def _print_members(document: dict[str, Any]) -> None:
    law = document["forecast"]["law"]
    trained: dict[str, float] = {}
    owner = ""
    for stage in reversed(document["stages"]):
        owner = stage["member"] or owner
        trained[owner] = trained.get(owner, 0.0) + stage["tokens"]
    names = (
        "layers x hidden",
        "heads / KV heads",
        "feed-forward",
        "parameters",
        "  without embeddings",
        "tokens alone",
        "  per parameter",
        "tokens of its own stages",
        "peak learning rate",
        "  published rules",
        "tokens per step",
        "  published rules",
        "memory, GB a GPU",
        f"loss, {law['unit']}",
        "  90 % interval",
        "bits per byte",
        "  90 % interval",
        "in the law's range",
        "worth of its split",
    )
    columns = [_member(member, trained[member["name"]]) for member in document["members"]]
    rows = [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    title = f"{document['strategy']} family for {document['budget']['given']}"
    print_table(title, ("", *(member["name"] for member in document["members"])), rows)
    print(
        "worth of its split: the share of a member's FLOPs that, optimally split between size and tokens, would reach "
        "the same loss (the compute-only law says 100 % always)"
    )
    print_law(document["forecast"])
    memory = [member["memory"] for member in document["members"]][-1]
    sizes = {part.replace("_", " "): size for part, size in memory.items() if size and part != "total"}
    parts = ", ".join(f"{size / 1e9:.3g} {part}" for part, size in sizes.items())
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


def _member(member: dict[str, Any], trained: float) -> list[str]:
    shape, worth = member["shape"], member["price"]["effective_compute"]
    peaks = [rule["peak"] for rule in member["rules"]]
    batches = [rule["tokens_per_step"] for rule in member["rules"]]
    return [
        f"{shape['num_hidden_layers']} x {shape['hidden_size']}",
        f"{shape['num_attention_heads']} / {shape['num_key_value_heads']} of {shape['head_dim']}",
        f"{shape['intermediate_size']:,}",
        short(member["parameters"]["total"]),
        short(member["parameters"]["non_embedding"]),
        short(member["tokens"]),
        f"{member['ratio']:.3g}",
        short(trained),
        f"{member['peak_learning_rate']:.2g}",
        f"{min(peaks):.2g}-{max(peaks):.2g}",
        short(member["tokens_per_step"]),
        f"{short(min(batches))}-{short(max(batches))}",
        f"{member['memory']['total'] / 1e9:.3g}",
        *loss_cells(member["forecast"]),
        in_range(member["forecast"]),
        "-" if worth is None else f"{worth:.0%}",
    ]


def _print_strategies(document: dict[str, Any]) -> None:
    rows = []
    for row in document["strategies"]:
        cells = [row["strategy"], f"{row['patch']['size']}, {row['patch']['members']}" if row["patch"] else "-"]
        if row["refused"]:
            rows.append([*cells, "not possible", "-", "-"])
            continue
        total = row["total"]
        rows.append([*cells, f"{total['six_nd']:.3g}", f"{total['matmul']:.3g}", f"{row['saving_of_plan']:+.1%}"])
    headings = ("strategy", "patches", "6ND FLOPs", "matmul FLOPs", "this plan saves")
    print_table("the same members by every strategy", headings, rows, left=(0, 1))
