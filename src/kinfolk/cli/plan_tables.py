"""What `kinfolk plan` shows to people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from kinfolk.build.view import duration
from kinfolk.cli.numbers import short


def print_comparison(name: str, rows: list[dict[str, Any]], gpu: str) -> None:
    """Every strategy, without and with patches."""
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


def print_plan(document: dict[str, Any]) -> None:
    """Every stage, the sums, the forecasts, and the warnings."""
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
    if document["rate_transfer"]:
        print_factors(document)
    print(f"the longest line of stages reads {short(document['data']['tokens_read'])} tokens")
    if document["versions"]:
        _print_versions(document["versions"])
    print(f"recipe: {recipe_line(document['recipe'], document['tokens_per_step'])}")
    print_forecasts(document["forecast"])
    for warning in document["warnings"]:
        print(f"warning: {warning}")


def _reads(stage: dict[str, Any], versions: bool) -> str:
    """What a stage reads, and of which version of the data where there are several."""
    kind = f"patches of {stage['objective']['size']}" if stage["objective"]["kind"] == "patch" else "tokens"
    return f"{kind}, {' + '.join(stage['data'])}" if versions else kind


def _print_versions(rows: list[dict[str, Any]]) -> None:
    """Every version of the data beside training it from scratch on all data so far."""
    table = Table(title="versions of the data, 6ND FLOPs", title_justify="left")
    table.add_column("version", no_wrap=True)
    table.add_column("members", no_wrap=True)
    for heading in ("new tokens", "costs", "from scratch", "so far", "from scratch", "of it", "saving"):
        table.add_column(heading, justify="right")
    for row in rows:
        kinds = ("cost", "from_scratch", "so_far", "from_scratch_so_far")
        table.add_row(
            row["version"],
            ", ".join(row["members"]),
            short(row["tokens"]),
            *(f"{row[kind]['six_nd']:.3g}" for kind in kinds),
            f"{1 - row['saving']:.1%}",
            f"{row['saving']:.1%}",
        )
    Console(width=None if Console().is_terminal else 140).print(table)


def print_factors(document: dict[str, Any]) -> None:
    """What rate transfer makes of the parameters of every other shape, those that are treated alike in one row."""
    transfer = document["rate_transfer"]
    base = transfer["base_shape"]
    shown = f"{base['num_hidden_layers']} x {base['hidden_size']}" if base else "shapes that are not given"
    title = f"rate transfer by {transfer['rule']}: multiples of what {shown} has, whose peak is the recipe's"
    table = Table(title=title, title_justify="left")
    table.add_column("layers x hidden", no_wrap=True)
    table.add_column("parameters")
    for heading in ("initial deviation or gamma", "learning rate", "weight decay", "eps"):
        table.add_column(heading, justify="right")
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
            table.add_row(size, ", ".join(names), *(f"{value:.4g}" for value in values))
    Console(width=None if Console().is_terminal else 140).print(table)


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
    size = f"{tokens_per_step:,} tokens a step"
    if warmup:
        size = (
            f"{warmup['start']:,} tokens a step, doubling to {tokens_per_step:,} in {warmup['share']:.0%} of the start"
        )
    return ", ".join([*parts, size])


def print_forecasts(forecast: dict[str, Any]) -> None:
    """The loss of every member with its interval, and what the law is."""
    law = forecast["law"]
    table = Table(title=f"forecast by {law['name']}, {law['unit']}", title_justify="left")
    table.add_column("member", no_wrap=True)
    for heading in ("parameters", "worth tokens alone", "per parameter", "loss", "90 % interval"):
        table.add_column(heading, justify="right")
    for heading in ("bits per byte", "90 % interval", "in the law's range"):
        table.add_column(heading, justify="right")
    for member in forecast["members"]:
        within = member["within_fitted_range"]
        table.add_row(
            member["member"],
            "-" if member["parameters"] is None else short(member["parameters"]),
            "-" if member["tokens"] is None else short(member["tokens"]),
            "-" if member["ratio"] is None else f"{member['ratio']:.3g}",
            *_between(member["loss"], member["low"], member["high"]),
            *_between(member["bits_per_byte"], member["bits_low"], member["bits_high"]),
            "unknown" if within is None else "yes" if within else "no",
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    if law["bytes_per_token"]:
        print(f"bits per byte at {law['bytes_per_token']:.3g} bytes a token ({law['bytes_basis']})")
    held = "not back-tested"
    if law["coverage"] is not None:
        held = f"in back-tests such intervals held {law['coverage']:.0%} of {law['coverage_runs']} hidden runs"
    basis = {"rolling hold-out": "calibrated by hiding larger runs", "assumed": "an assumption", None: "none"}
    print(f"N counts {law['counting']} parameters; interval: {basis[law['interval_basis']]}, {held}")
    for note in forecast["notes"]:
        print(f"note: {note}")
    said: dict[str, list[str]] = {}
    for member in forecast["members"]:
        for caution in member["cautions"]:
            said.setdefault(caution, []).append(member["member"])
    for caution, names in said.items():
        print(f"note: {', '.join(names)}: {caution}")


def _between(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A loss with its interval, as cells."""
    shown = "-" if value is None else f"{value:.3f}"
    return shown, "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def print_replay(document: dict[str, Any]) -> None:
    """Every decision, and the regret over all of them."""
    title = f"{document['source']}: decisions by a law of {document['fitted']} runs up to {document['cut']:.3g} FLOPs"
    table = Table(title=title, title_justify="left")
    for heading in ("budget", "runs", "chosen", "tokens", "forecast", "loss", "best", "tokens", "loss", "regret"):
        table.add_column(heading, justify="right")
    for heading in ("20 each", "at random"):
        table.add_column(heading, justify="right")
    for made in document["decisions"]:
        table.add_row(
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
        )
    Console(width=None if Console().is_terminal else 140).print(table)
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
