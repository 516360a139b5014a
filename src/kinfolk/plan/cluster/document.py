"""A family's plan on a cluster as JSON: every number of GPUs, and the one to take."""

from collections.abc import Sequence
from typing import Any

from kinfolk.laws.other_forms import critical_batch
from kinfolk.plan.cluster.choice import Setting, as_engine, at_best, sequences_to_set, too_many
from kinfolk.plan.cluster.communication import REACHED
from kinfolk.plan.cluster.findings import misfit_text, nothing_runs, warnings_about
from kinfolk.plan.cluster.question import Question, refuse_family
from kinfolk.plan.cluster.stage_document import members_document, stage_document
from kinfolk.plan.cluster.step import Step, Work
from kinfolk.plan.cluster.storage import COPIED_BYTES_PER_SECOND, HASHED_BYTES_PER_SECOND
from kinfolk.plan.layouts import Layout, engine_options, lacking
from kinfolk.plan.memory import RESERVE_BYTES, RESERVE_SHARE

SWEEP = tuple(2**power for power in range(3, 11))
"""Numbers of GPUs, where the cluster does not say how many it has."""

WASTE = 0.1
"""How many more GPU-hours than the fewest the recommended number may take."""


def cluster_document(question: Question) -> dict[str, Any]:
    """What `kinfolk plan FAMILY --cluster` prints as JSON.

    KinfolkError where no number of GPUs asked for can train the family, which says what is in the way.
    """
    refuse_family(question)
    cluster, family = question.cluster, question.family
    works = [question.work(stage) for stage in question.stages]
    counts = [_count(question, works, gpus) for gpus in ([cluster.gpus] if cluster.gpus else SWEEP)]
    way = next((way for way in ("engine", "best") if any(count[way]["runs"] for count in counts)), None)
    if way is None:
        raise nothing_runs(question, works, counts)
    running = [count for count in counts if count[way]["runs"]]
    fewest = min(count[way]["gpu_hours"] for count in running)
    recommended = max(
        (count for count in running if count[way]["gpu_hours"] <= (1 + WASTE) * fewest), key=lambda count: count["gpus"]
    )
    return {
        "family": family.name,
        "strategy": question.plan.strategy,
        "cluster": cluster.model_dump(),
        "engine": {"lacks": lacking(Layout(16, 8, "bfloat16"))},
        "assumptions": {
            "kernel_efficiency": question.efficiency,
            "bandwidth_share": REACHED,
            "reserve_share": RESERVE_SHARE,
            "reserve_bytes": RESERVE_BYTES,
            "hashed_bytes_per_second": HASHED_BYTES_PER_SECOND,
            "copied_bytes_per_second": COPIED_BYTES_PER_SECOND,
            "overlap": "gathering and reducing hide behind computation, but for the first block and the last",
        },
        "batch": _batch(question),
        "counts": counts,
        "recommended": {
            "gpus": recommended["gpus"],
            "way": way,
            "rule": f"the most GPUs that take at most {WASTE:.0%} more GPU-hours than the fewest do",
        },
        "warnings": warnings_about(question, recommended[way], way),
    }


def _count(question: Question, works: Sequence[Work], gpus: int) -> dict[str, Any]:
    family = question.family
    refused = too_many(works, question.smallest_rows, gpus)
    found: dict[str, Any] = {"gpus": gpus, "nodes": question.cluster.nodes(gpus)}
    if refused:
        return found | {way: {"runs": False, "refused": refused, "reason": "batch"} for way in ("engine", "best")}
    setting = Setting(family.recipe.sequences_per_micro_batch, family.model.context_length)
    own = as_engine(works, gpus, question.cluster, setting, question.efficiency)
    best = [at_best(work, gpus, question.cluster, question.efficiency) for work in works]
    found["engine"] = _timed(question, works, own, gpus)
    found["engine"]["options"] = engine_options(own[0].layout)
    found["engine"]["sequences_per_micro_batch"] = sequences_to_set(own, works, setting)
    steps = [step for step in best if step is not None]
    if len(steps) == len(works):
        found["best"] = _timed(question, works, steps, gpus)
        found["best"]["lacks"] = sorted(
            {lack for step, work in zip(steps, works, strict=True) for lack in lacking(step.layout)}
        )
    else:
        found["best"] = {"runs": False, "refused": "no layout fits", "reason": "memory"}
    return found


def _timed(question: Question, works: Sequence[Work], steps: Sequence[Step], gpus: int) -> dict[str, Any]:
    """All stages with these steps, and what they take together."""
    stages = [
        stage_document(question, stage, work, step, gpus)
        for stage, work, step in zip(question.stages, works, steps, strict=True)
    ]
    fullest, at = max((step.memory["total"], index) for index, step in enumerate(steps))
    seconds = sum(stage["total_seconds"] for stage in stages)
    trained = sum(stage["seconds"] for stage in stages)
    document: dict[str, Any] = {
        "runs": fullest <= question.cluster.memory,
        "refused": None,
        "memory": steps[at].memory,
        "seconds": seconds,
        "gpu_hours": gpus * seconds / 3600,
        "money": _money(question, gpus * seconds / 3600),
        "utilisation": sum(stage["seconds"] * stage["utilisation"] for stage in stages) / trained,
        "members": members_document(question, stages),
        "stages": stages,
    }
    if not document["runs"]:
        document["reason"] = "memory"
        document["refused"] = misfit_text(question.stages[at].name, steps[at].memory, question.cluster)
    return document


def _batch(question: Question) -> dict[str, Any]:
    """How many GPUs a step can feed, and what would be a critical batch for the members' forecast losses."""
    context = question.family.model.context_length
    members = []
    for name, loss in question.losses.items():
        critical = critical_batch(loss) if loss else None
        members.append(
            {
                "name": name,
                "loss": loss,
                "critical_tokens_per_step": critical,
                "most_gpus": int(critical // context) if critical else None,
            }
        )
    return {
        "tokens_per_step": question.family.recipe.tokens_per_step,
        "most_gpus": min(question.smallest_rows),
        "members": members,
        "source": "Kaplan et al., arXiv 2001.08361, equation 1.4, for the loss at the end",
    }


def _money(question: Question, gpu_hours: float) -> float | None:
    return None if question.cluster.price is None else gpu_hours * question.cluster.price
