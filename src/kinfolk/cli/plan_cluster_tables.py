"""What `kinfolk plan FAMILY --cluster` shows to people."""

from typing import Any

from kinfolk.build.view import duration
from kinfolk.cli.numbers import short
from kinfolk.cli.tables import print_table

WAYS = {"engine": "as the engine is", "best": "best layout"}


def print_cluster_plan(document: dict[str, Any]) -> None:
    """Every number of GPUs, and for the recommended one its stages, memory, communication, checkpoints and growth."""
    cluster, recommended = document["cluster"], document["recommended"]
    _print_counts(document)
    count = next(count for count in document["counts"] if count["gpus"] == recommended["gpus"])
    way = recommended["way"]
    plan = count[way]
    if len(document["counts"]) > 1:
        print(f"recommended: {count['gpus']:,} GPUs, {WAYS[way]} ({recommended['rule']})")
    at = f"{count['gpus']:,} {cluster['gpu']}, {WAYS[way]}"
    _print_stages(plan, at)
    _print_memory(plan, at)
    _print_members(plan)
    for stage in plan["stages"]:
        if stage["growth"]:
            _print_growth(stage)
    _print_notes(document, count)


def _print_counts(document: dict[str, Any]) -> None:
    headings = ["GPUs", "nodes"]
    for name in WAYS.values():
        headings += [name, "GB a GPU", "of the peak", "time", "GPU-hours"]
    rows = []
    for count in document["counts"]:
        cells = [f"{count['gpus']:,}", f"{count['nodes']:,}"]
        for way in WAYS:
            plan = count[way]
            if not plan["runs"]:
                size = f"{plan['memory']['total'] / 1e9:,.0f}" if "memory" in plan else "-"
                cells += ["too many" if plan["reason"] == "batch" else "does not fit", size, "-", "-", "-"]
                continue
            layouts = dict.fromkeys(stage["layout"]["text"] for stage in plan["stages"])
            cells += [
                next(iter(layouts)) if len(layouts) == 1 else f"{len(layouts)} layouts",
                f"{plan['memory']['total'] / 1e9:,.0f}",
                f"{plan['utilisation']:.1%}",
                duration(plan["seconds"]),
                f"{plan['gpu_hours']:,.0f}",
            ]
        rows.append(cells)
    cluster = document["cluster"]
    title = f"{document['family']}: {document['strategy']}, on {cluster['gpu']} of {cluster['memory_gb']:g} GB"
    print_table(title, headings, rows, left=(2, 7))


def _print_stages(plan: dict[str, Any], at: str) -> None:
    headings = ["parameters", "layout", "rows a step", "at once", "GB received", "step", "waiting", "of the peak"]
    headings += ["tokens/s a GPU", "steps", "training", "checkpoint", "written in"]
    rows = [
        [
            stage["name"],
            short(stage["parameters"]),
            stage["layout"]["text"],
            f"{stage['rows_per_step']:,}",
            f"{stage['micro_batches']} x {stage['rows_at_once']}",
            f"{stage['traffic_bytes']['total'] / 1e9:,.3g}",
            f"{stage['step_seconds']:.3g} s",
            f"{stage['waiting_seconds'] / stage['step_seconds']:.0%}",
            f"{stage['utilisation']:.1%}",
            short(stage["tokens_per_second_per_gpu"]),
            f"{stage['steps']:,}",
            duration(stage["seconds"]),
            f"{stage['checkpoint']['bytes'] / 1e9:,.0f} GB",
            f"{stage['checkpoint']['checkpoints']} x "
            f"{duration(stage['checkpoint']['writing_seconds'] + stage['checkpoint']['hashing_seconds'])}",
        ]
        for stage in plan["stages"]
    ]
    print_table(f"stages on {at}", ("stage", *headings), rows, left=(0, 2))


def _print_memory(plan: dict[str, Any], at: str) -> None:
    names = [name for name in plan["stages"][0]["memory"] if any(stage["memory"][name] for stage in plan["stages"])]
    rows = [[stage["name"], *(f"{stage['memory'][name] / 1e9:,.3g}" for name in names)] for stage in plan["stages"]]
    headings = (name.replace("_", " ") for name in names)
    print_table(f"memory of a GPU on {at}, GB", ("stage", *headings), rows)


def _print_members(plan: dict[str, Any]) -> None:
    for member in plan["members"]:
        print(f"{member['name']} takes {duration(member['seconds'])}, done after {duration(member['finished_after'])}")
    money = "" if plan["money"] is None else f", money {plan['money']:,.0f}"
    print(f"the family takes {duration(plan['seconds'])}, {plan['gpu_hours']:,.0f} GPU-hours{money}")


def _print_growth(stage: dict[str, Any]) -> None:
    grown = stage["growth"]
    print(
        f"growth before {stage['name']}: {grown['read'] / 1e9:,.0f} GB read, {grown['written'] / 1e9:,.0f} GB written, "
        f"{duration(grown['seconds'])}; memory of each process {grown['process_bytes'] / 1e9:.1f} GB"
    )


def _print_notes(document: dict[str, Any], count: dict[str, Any]) -> None:
    batch, assumed = document["batch"], document["assumptions"]
    known = [member for member in batch["members"] if member["critical_tokens_per_step"]]
    critical = ", ".join(
        f"{member['name']} {short(member['critical_tokens_per_step'])} ({member['most_gpus']:,} GPUs)"
        for member in known
    )
    print(
        f"batch: {batch['tokens_per_step']:,} tokens a step feed at most {batch['most_gpus']:,} GPUs, a sequence each; "
        + (f"critical batches at the forecast losses: {critical}" if critical else "no loss is forecast")
    )
    print(
        f"assumed: kernels reach {assumed['kernel_efficiency']:.0%} of the peak, links "
        f"{assumed['bandwidth_share']:.0%} of theirs; {assumed['overlap']}"
    )
    if count["engine"]["runs"]:
        sequences = count["engine"]["sequences_per_micro_batch"]
        options = list(count["engine"]["options"])
        options += [f"--set recipe.sequences_per_micro_batch={sequences}"] if sequences else []
        print(f"as the engine is, by: kinfolk build {' '.join([document['family'], *options])}")
    for way in WAYS:
        if count[way]["refused"]:
            print(f"refused {WAYS[way]}: {count[way]['refused']}")
    if count["best"].get("lacks"):
        print(f"note: the best layout takes what the engine does not do yet: {', '.join(count['best']['lacks'])}")
    for warning in document["warnings"]:
        print(f"warning: {warning}")
