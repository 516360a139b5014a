"""What `kinfolk plan` shows to people."""

from typing import Any

from kinfolk.build.view import duration
from kinfolk.cli.numbers import short
from kinfolk.cli.tables import print_table


def print_comparison(name: str, rows: list[dict[str, Any]], gpu: str) -> None:
    """Every strategy, without and with patches."""
    title = f"{name}: what each way of building it costs, with decay_share {rows[0]['decay_share']:g}"
    headings = ("6ND FLOPs", "of alone", "matmul FLOPs", "of alone", "tokens read", "steps", gpu)
    print_table(title, ("strategy", "patches", *headings), [_compared(row) for row in rows], left=(0, 1))
    print("tokens read and steps are those of the longest line of stages; alone is each member alone at token level")
    for message in dict.fromkeys(row["refused"] for row in rows if row["refused"]):
        print(f"refused: {message}")
    for message in dict.fromkeys(message for row in rows for message in row.get("warnings", [])):
        print(f"warning: {message}")


def _compared(row: dict[str, Any]) -> list[str]:
    patch = row["patch"]
    cells = [row["strategy"], f"{patch['size']}, {patch['members']}" if patch else "-"]
    if row["refused"] is not None:
        return [*cells, "see below", *["-"] * 6]
    for kind in ("six_nd", "matmul"):
        known = row["total"][kind] is not None
        cells += [f"{row['total'][kind]:.3g}", f"{row['cost'][kind]:.1%}"] if known else ["-", "-"]
    return [*cells, short(row["tokens_read"]), f"{row['steps']:,}", duration(row["gpu_seconds"])]


def print_plan(document: dict[str, Any]) -> None:
    """Every stage, the sums, the forecasts, and the warnings."""
    print_stages(document)
    total, alone = document["total"], document["independent"]
    for kind, name in (("six_nd", "6ND"), ("matmul", "matmul")):
        if total[kind]:
            saving = document["savings"][kind]
            print(f"total {total[kind]:.4g} FLOPs ({name}); each alone {alone[kind]:.4g}; saving {saving:.1%}")
    print_cost(document)
    print(f"about {duration(document['machine']['seconds'])} on this machine")
    if document["rate_transfer"]:
        print_factors(document)
    print(f"the longest line of stages reads {short(document['data']['tokens_read'])} tokens")
    if document["versions"]:
        _print_versions(document["versions"])
    print(f"recipe: {recipe_line(document['recipe'], document['tokens_per_step'])}")
    if document["schedule_probe"]:
        print(f"schedule: auto; planned with the usual one. {probe_line(document['schedule_probe'])}")
    print_forecasts(document["forecast"])
    for warning in document["warnings"]:
        print(f"warning: {warning}")


def print_stages(document: dict[str, Any]) -> None:
    """Every stage with its costs; with its time where that was estimated."""
    timed = "gpu" in document
    headings = ["stage", "from", "reads", "layers x hidden", "parameters", "non-emb.", "tokens", "steps", "peak rate"]
    headings += ["6ND FLOPs", "matmul FLOPs", "share"]
    if timed:
        headings += ["here", f"{document['gpu']['name']} @ {document['gpu']['utilisation']:.0%}"]
    rows = []
    for stage in document["stages"]:
        shape, parameters, flops = stage["shape"], stage["parameters"], stage["flops"]
        rows.append(
            [
                stage["name"],
                stage["parent"] or "scratch",
                _reads(stage, bool(document["versions"])),
                f"{shape['num_hidden_layers']} x {shape['hidden_size']}" if shape else "-",
                short(parameters["total"] if shape else parameters["counted"]),
                short(parameters["non_embedding"]) if shape else "-",
                short(stage["tokens"]),
                f"{stage['steps']:,}",
                f"{stage['rate']['peak']:.3g}",
                f"{flops['six_nd']:.3g}",
                f"{flops['matmul']:.3g}" if flops["matmul"] else "-",
                f"{stage['share']:.1%}",
                *([duration(stage["machine_seconds"]), duration(stage["gpu_seconds"])] if timed else []),
            ]
        )
    print_table(f"{document['family']}: {document['strategy']}", headings, rows, left=(0, 1))


def print_cost(document: dict[str, Any]) -> None:
    """What the whole plan costs: FLOPs counted both ways, hours, money and energy."""
    cost, machines = document["cost"], document["machines"]
    money = "" if cost["money"] is None else f", money {cost['money']:,.2f}"
    matmul = "" if cost["matmul"] is None else f", {cost['matmul']:.4g} (matmul)"
    print(
        f"cost {cost['six_nd']:.4g} FLOPs (6ND){matmul}: {cost['gpu_hours']:,.4g} GPU-hours of "
        f"{machines['gpu']} at {machines['utilisation']:.0%}, {duration(3600 * cost['hours'])} on {machines['gpus']}"
        f"{money}, {cost['kilowatt_hours']:,.4g} kWh ({machines['energy_overhead']:g} times the boards' power)"
    )


def probe_line(probe: dict[str, Any]) -> str:
    """What a probe of schedules trains and costs."""
    if probe["refused"]:
        return f"A build refuses it: {probe['refused']}"
    price, peaks = probe["price"], ", ".join(f"{peak:.3g}" for peak in probe["peaks"])
    decays = ", ".join(f"{each['shape']} {each['share']:.0%}" for each in probe["decays"])
    horizons = " and ".join(f"{steps:,}" for steps in probe["horizons"])
    return (
        f"A probe of {price['runs']} runs (peaks {peaks}; decays {decays}; {horizons} of {probe['own_steps']:,} steps) "
        f"comes first: {price['flops']['matmul']:.3g} FLOPs (matmul), {price['share']:.1%} of the build, about "
        f"{duration(probe['seconds'])} on this machine"
    )


def _reads(stage: dict[str, Any], versions: bool) -> str:
    """What a stage reads, and of which version of the data where there are several."""
    kind = f"patches of {stage['objective']['size']}" if stage["objective"]["kind"] == "patch" else "tokens"
    return f"{kind}, {' + '.join(stage['data'])}" if versions else kind


def _print_versions(rows: list[dict[str, Any]]) -> None:
    """Every version of the data beside training it from scratch on all data so far."""
    headings = ("new tokens", "costs", "from scratch", "so far", "from scratch", "of it", "saving")
    kinds = ("cost", "from_scratch", "so_far", "from_scratch_so_far")
    cells = [
        [
            row["version"],
            ", ".join(row["members"]),
            short(row["tokens"]),
            *(f"{row[kind]['six_nd']:.3g}" for kind in kinds),
            f"{1 - row['saving']:.1%}",
            f"{row['saving']:.1%}",
        ]
        for row in rows
    ]
    print_table("versions of the data, 6ND FLOPs", ("version", "members", *headings), cells, left=(0, 1))


def print_factors(document: dict[str, Any]) -> None:
    """What rate transfer makes of the parameters of every other shape, those that are treated alike in one row."""
    transfer = document["rate_transfer"]
    base = transfer["base_shape"]
    shown = f"{base['num_hidden_layers']} x {base['hidden_size']}" if base else "shapes that are not given"
    title = f"rate transfer by {transfer['rule']}: multiples of what {shown} has, whose peak is the recipe's"
    rows: list[list[str]] = []
    seen = []
    for stage in document["stages"]:
        shape, factors = stage["shape"], stage["factors"]
        if factors is None or shape in seen or shape == base:
            continue
        seen.append(shape)
        alike: dict[tuple[float, ...], list[str]] = {}
        for name, each in factors.items():
            alike.setdefault(tuple(each.values()), []).append(name)
        for index, (values, names) in enumerate(alike.items()):
            size = "" if index else f"{shape['num_hidden_layers']} x {shape['hidden_size']}"
            rows.append([size, ", ".join(names), *(f"{value:.4g}" for value in values)])
    headings = ("initial deviation or gamma", "learning rate", "weight decay", "eps")
    print_table(title, ("layers x hidden", "parameters", *headings), rows, left=(0, 1))


def recipe_line(recipe: dict[str, Any], tokens_per_step: int) -> str:
    """What trains, and what of the recipe is not as usual."""
    optimizer, warmup = recipe["optimizer"], recipe["batch_warmup"]
    parts = ["Muon for the layers' matrices, AdamW for the rest" if optimizer["matrices"] == "muon" else "AdamW"]
    if optimizer["weight_decay_rule"] == "cautious":
        parts.append("cautious weight decay")
    if recipe["z_loss"]:
        parts.append(f"z-loss {recipe['z_loss']:g}")
    if recipe["gradient_clip"] == "none":
        parts.append("no gradient clip")
    if recipe["peak_rule"] != "exponent":
        parts.append(f"peaks by {recipe['peak_rule']}")
    size = f"{tokens_per_step:,} tokens a step"
    if warmup:
        size = (
            f"{warmup['start']:,} tokens a step, doubling to {tokens_per_step:,} in {warmup['share']:.0%} of the start"
        )
    return ", ".join([*parts, size])


def print_forecasts(forecast: dict[str, Any]) -> None:
    """The loss of every member with its interval, and what the law is."""
    law = forecast["law"]
    headings = ("parameters", "worth tokens alone", "per parameter", "loss", "90 % interval", "bits per byte")
    rows = [
        [
            member["member"],
            "-" if member["parameters"] is None else short(member["parameters"]),
            "-" if member["tokens"] is None else short(member["tokens"]),
            "-" if member["ratio"] is None else f"{member['ratio']:.3g}",
            *loss_cells(member),
            in_range(member),
        ]
        for member in forecast["members"]
    ]
    if all(member["loss"] is None for member in forecast["members"]):
        print(f"no loss is forecast by {law['name']}:")
        _print_notes(forecast)
        return
    title = f"forecast by {law['name']}, {law['unit']}"
    print_table(title, ("member", *headings, "90 % interval", "in the law's range"), rows)
    print_law(forecast)


def loss_cells(member: dict[str, Any]) -> list[str]:
    """Loss, its interval, bits per byte, its interval."""
    cells = []
    for value, low, high in (("loss", "low", "high"), ("bits_per_byte", "bits_low", "bits_high")):
        cells.append("-" if member[value] is None else f"{member[value]:.3f}")
        unknown = member[low] is None or member[high] is None
        cells.append("-" if unknown else f"{member[low]:.3f} to {member[high]:.3f}")
    return cells


def in_range(member: dict[str, Any]) -> str:
    """Whether a forecast lies among the runs of its law."""
    within = member["within_fitted_range"]
    return "unknown" if within is None else "yes" if within else "no"


def print_law(forecast: dict[str, Any]) -> None:
    """What the forecasts' law is, how far it can be trusted, and what it takes for granted."""
    law = forecast["law"]
    if law["bytes_per_token"]:
        print(f"bits per byte at {law['bytes_per_token']:.3g} bytes a token ({law['bytes_basis']})")
    held = "not back-tested"
    if law["coverage"] is not None:
        held = f"in back-tests such intervals held {law['coverage']:.0%} of {law['coverage_runs']} hidden runs"
    basis = {"rolling hold-out": "calibrated by hiding larger runs", "assumed": "an assumption", None: "none"}
    print(f"N counts {law['counting']} parameters; interval: {basis[law['interval_basis']]}, {held}")
    print_credit(forecast)
    _print_notes(forecast)


def _print_notes(forecast: dict[str, Any]) -> None:
    """What the forecasts take for granted, and what is said of several members in one line."""
    for note in forecast["notes"]:
        print(f"note: {note}")
    said: dict[str, list[str]] = {}
    for member in forecast["members"]:
        for caution in member["cautions"]:
            said.setdefault(caution, []).append(member["member"])
    for caution, names in said.items():
        print(f"note: {', '.join(names)}: {caution}")


def print_credit(forecast: dict[str, Any]) -> None:
    """What the members would reach if growth kept another share of a parent's compute than the plan takes."""
    parts = []
    for row in forecast["credit_effect"]:
        losses = [f"{loss:.3f}" for loss in row["losses"].values() if loss is not None]
        if len(losses) == len(row["losses"]):
            taken = " (taken here)" if row["credit"] == forecast["credit"] else ""
            parts.append(f"{row['credit']:g}{taken}: {', '.join(losses)}")
    if parts:
        print(f"losses by the share of a parent's compute that growth keeps: {'; '.join(parts)}")


def print_replay(document: dict[str, Any]) -> None:
    """Every decision, and the regret over all of them."""
    title = f"{document['source']}: decisions by a law of {document['fitted']} runs up to {document['cut']:.3g} FLOPs"
    headings = ("budget", "runs", "chosen", "on tokens", "forecast", "loss", "best", "on tokens", "loss", "regret")
    rows = [
        [
            f"{made['compute']:.3g}",
            str(made["candidates"]),
            short(made["chosen_parameters"]),
            short(made["chosen_tokens"]),
            f"{made['forecast']:.4f}" + ("" if made["inside"] is not False else " (missed)"),
            f"{made['chosen_loss']:.4f}",
            short(made["best_parameters"]),
            short(made["best_tokens"]),
            f"{made['best_loss']:.4f}",
            f"{made['regret']:.2%}",
            f"{made['rule_regret']:.2%}",
            f"{made['blind_regret']:.2%}",
        ]
        for made in document["decisions"]
    ]
    print_table(title, (*headings, "20 each", "at random"), rows, left=())
    print(
        f"realised regret: mean {document['mean_regret']:.2%}, worst {document['worst_regret']:.2%} of the loss; the "
        f"best run was chosen {document['best_chosen']} of {len(document['decisions'])} times; {document['inside']} of "
        "the chosen runs lie in their 90 % interval"
    )
    print(
        f"for comparison: 20 tokens per parameter {document['mean_rule_regret']:.2%}, at random "
        f"{document['mean_blind_regret']:.2%}"
    )
    for finding in document["findings"]:
        print(f"note: {finding}")
