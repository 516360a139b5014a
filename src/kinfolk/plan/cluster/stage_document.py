"""A stage on a cluster as JSON, and when the members are finished."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kinfolk.plan.activations import head_bytes
from kinfolk.plan.cluster.question import Question
from kinfolk.plan.cluster.step import Step, Work
from kinfolk.plan.cluster.storage import growing, saving, state_of
from kinfolk.plan.layouts import describe
from kinfolk.plan.stages import Grow, Stage


def stage_document(question: Question, stage: Stage, work: Work, step: Step, gpus: int) -> dict[str, Any]:
    """All about a stage with this step: memory, communication, time, checkpoints, growth."""
    cluster, recipe = question.cluster, question.family.recipe
    state = state_of(work.tensors, work.muon)
    seconds = stage.steps * step.seconds
    saved = saving(state, stage.steps, seconds, recipe.checkpoints, cluster, gpus)
    grown = _growth(question, stage, work, gpus)
    growth_seconds = grown["seconds"] if grown else 0.0
    positions = work.rows * work.context_length
    whole = head_bytes(work.shape, work.vocab_size, step.portion.positions, step.layout.precision, chunked=False)
    return {
        "name": stage.name,
        "member": stage.member,
        "parameters": work.tensors.parameters,
        "layout": asdict(step.layout) | {"text": describe(step.layout)},
        "rows_per_step": work.rows,
        "rows_at_once": step.rows_at_once,
        "micro_batches": step.portion.micro_batches,
        "memory": step.memory,
        "head_of_whole_logits": whole,
        "traffic_bytes": asdict(step.traffic) | {"total": step.traffic.total},
        "step_seconds": step.seconds,
        "compute_seconds": step.compute_seconds,
        "waiting_seconds": step.waiting_seconds,
        "utilisation": step.utilisation,
        "tokens_per_second": positions * stage.patch_size / step.seconds,
        "tokens_per_second_per_gpu": positions * stage.patch_size / step.seconds / gpus,
        "steps": stage.steps,
        "seconds": seconds,
        "checkpoint": {
            "bytes": state.total,
            "weights_bytes": state.weights,
            "weights_bytes_bfloat16": state.weights // 2,
            **asdict(saved),
            "total_seconds": saved.total,
        },
        "growth": grown,
        "total_seconds": seconds + saved.total + growth_seconds,
    }


def _growth(question: Question, stage: Stage, work: Work, gpus: int) -> dict[str, Any] | None:
    """What the growth that a stage starts with takes; None for a stage that starts otherwise."""
    if not isinstance(stage.source, Grow):
        return None
    parent = state_of(question.work(question.plan.stage(stage.source.stage)).tensors, work.muon)
    carries = stage.source.dynamics.optimizer != "reset"
    return asdict(growing(parent, state_of(work.tensors, work.muon), question.cluster, carries, gpus))


def members_document(question: Question, stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """When each member is finished, and what the stages since the member before took, in the order of the plan."""
    found: list[dict[str, Any]] = []
    passed = before = 0.0
    for stage in stages:
        passed += stage["total_seconds"]
        if stage["member"] is not None:
            found.append({"name": stage["member"], "seconds": passed - before, "finished_after": passed})
            before = passed
    return found
