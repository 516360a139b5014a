"""What this machine has, and what a family would need of it."""

from pathlib import Path
from typing import Any

import psutil
import torch

from kinfolk.build.provenance import versions
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document
from kinfolk.plan.strategies import plan_family
from kinfolk.plan.warnings import longest_reading
from kinfolk.train.engine import Precision, single_engine
from kinfolk.train.speed import TRAINING_SHARE, matmul_rate

TRAINING_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient and two Adam moments."""

CHECKPOINT_BYTES_PER_PARAMETER = 12
"""float32 weight and two Adam moments."""


def examine_machine() -> dict[str, Any]:
    """Versions, device, memory, threads, and the precision that multiplies matrices fastest here (measured)."""
    engine = single_engine()
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    rates = {precision: matmul_rate(engine, precision) for precision in precisions}
    facts: dict[str, Any] = dict(versions())
    facts["device"] = engine.device.type
    if engine.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(engine.device)
        facts["free_memory_bytes"], facts["memory_bytes"] = torch.cuda.mem_get_info(engine.device)
    else:
        memory = psutil.virtual_memory()
        facts["free_memory_bytes"], facts["memory_bytes"] = memory.available, memory.total
    facts["free_disk_bytes"] = psutil.disk_usage(str(Path.cwd())).free
    facts["cores"] = psutil.cpu_count(logical=False) or psutil.cpu_count()
    facts["threads"] = torch.get_num_threads()
    facts |= {f"{precision}_flops_per_second": rate for precision, rate in rates.items()}
    facts["fastest_precision"] = max(rates, key=lambda precision: rates[precision])
    return facts


def needs_of(family: Family, machine: dict[str, Any], origin: str | None = None) -> dict[str, Any]:
    """Memory, disk and time that building the family here would take, and whether it fits."""
    unshaped = [member.name for member in family.members if member.shape is None]
    if unshaped:
        return {"buildable": f"no: {unshaped[0]} has a number of parameters and no shape; plan it with `kinfolk plan`"}
    plan = plan_family(family, origin)
    document = plan_document(family, plan)
    counts = [stage["parameters"]["total"] for stage in document["stages"] if stage["member"]]
    # Growing holds a parent's and a child's state and verifies in float64.
    memory = TRAINING_BYTES_PER_PARAMETER * max(counts) * 2 + 2**30
    # Every stage keeps a checkpoint, and its second one is written before the first is deleted; members are float32.
    checkpoints = [CHECKPOINT_BYTES_PER_PARAMETER * stage["parameters"]["total"] for stage in document["stages"]]
    tokens = longest_reading(plan)
    token_bytes = 2 if family.embedding_rows <= 2**16 else 4
    disk = sum(checkpoints) + max(checkpoints) + 4 * sum(counts) + tokens * token_bytes
    rate = TRAINING_SHARE * machine[f"{machine['fastest_precision']}_flops_per_second"]
    return {
        "stages": len(document["stages"]),
        "largest_member_parameters": max(counts),
        "memory_bytes": memory,
        "memory_fits": memory <= machine["free_memory_bytes"],
        "disk_bytes": disk,
        "disk_fits": disk <= machine["free_disk_bytes"],
        "training_tokens": sum(stage["tokens"] for stage in document["stages"]),
        "estimated_seconds": document["total"]["matmul"] / rate,
        "buildable": "yes" if memory <= machine["free_memory_bytes"] and disk <= machine["free_disk_bytes"] else "no",
    }
