"""What stands in the way of a family on a cluster, with the nearest setting that works, and what to know of a plan."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.laws.other_forms import critical_batch
from kinfolk.plan.cluster.choice import least_memory
from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.cluster.question import Question
from kinfolk.plan.cluster.step import Work
from kinfolk.plan.layouts import describe, lacking
from kinfolk.plan.stages import Load, Scratch


def warnings_about(question: Question, recommended: dict[str, Any], way: str) -> list[str]:
    """What to know of the recommended number of GPUs, as sentences."""
    found = []
    if way == "best":
        lacks = ", ".join(recommended["lacks"])
        found.append(f"as the engine is, no number of GPUs here runs this family; the best layout takes {lacks}")
    tokens = question.family.recipe.tokens_per_step
    small = [name for name, loss in question.losses.items() if loss and tokens > critical_batch(loss)]
    if small:
        found.append(
            f"{tokens:,} tokens a step are beyond the critical batch of {', '.join(small)}: some of them are wasted"
        )
    node = question.cluster.node_memory_gb * 1e9
    found += [
        f"{stage['name']} begins with {stage['checkpoint']['weights_bytes'] / 1e9:,.0f} GB of weights, and a node has "
        f"{node / 1e9:,.0f}: the main process draws random weights, or loads those of a checkpoint, by itself"
        for stage in recommended["stages"]
        if isinstance(question.plan.stage(stage["name"]).source, Scratch | Load)
        and stage["checkpoint"]["weights_bytes"] > node
    ]
    if question.plan.strategy != "progressive":
        found.append("stages are timed one after the other; those that do not need each other could run side by side")
    return found


def misfit_text(stage: str, memory: Mapping[str, float], cluster: Cluster) -> str:
    """What does not fit, and which part of it is the largest."""
    part = max((name for name in memory if name != "total"), key=lambda name: memory[name])
    return (
        f"{stage} takes {memory['total'] / 1e9:.3g} GB of a GPU with {cluster.memory_gb:g}, "
        f"{memory[part] / 1e9:.3g} of it for {part.replace('_', ' ')}"
    )


def nothing_runs(question: Question, works: Sequence[Work], counts: Sequence[dict[str, Any]]) -> KinfolkError:
    """Why no number of GPUs runs the family, and the nearest setting that does."""
    where, cluster = f"{question.origin} --cluster", question.cluster
    short = [count for count in counts if count["engine"]["reason"] == "memory"]
    if not short:
        rows, context = min(question.smallest_rows), question.family.model.context_length
        fewest = counts[0]["gpus"]
        return KinfolkError(
            f"{fewest} GPUs are too many for the batch: {counts[0]['engine']['refused']}",
            where=where,
            fix=f"use {_divisor(rows, fewest)} GPUs, or a recipe.tokens_per_step of {fewest * context} "
            "(times the patch size) or a multiple",
        )
    last = short[-1]
    work = max(works, key=lambda work: work.tensors.parameters)
    gpus = last["gpus"]
    while gpus * 2 <= work.rows and work.rows % (gpus * 2) == 0:
        gpus *= 2
        layout = least_memory(work, gpus, cluster).layout
        if least_memory(work, gpus, cluster).fits:
            lacks = ", ".join(lacking(layout))
            fix = f"use {gpus} GPUs: {describe(layout)}" + (f" (the engine lacks {lacks})" if lacks else "")
            return KinfolkError(last["engine"]["refused"], where=where, fix=fix)
    least = least_memory(work, last["gpus"], cluster)
    return KinfolkError(
        f"{last['engine']['refused']}; {misfit_text('the largest member', least.memory, cluster)} even "
        f"{describe(least.layout)}",
        where=where,
        fix=f"use GPUs of {math.ceil(least.memory['total'] / 1e9)} GB or more, a shorter model.context_length, or "
        "smaller members",
    )


def _divisor(rows: int, gpus: int) -> int:
    """The most GPUs, no more than `gpus`, that divide so many rows."""
    return next(number for number in range(min(rows, gpus), 0, -1) if rows % number == 0)
