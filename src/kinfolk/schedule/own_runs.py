"""Finished stages of a kinfolk run: schedules from the plan, curves of the quick held-out loss from the metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.json_text import parse_json
from kinfolk.lines import read_lines
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, Schedule, Steps, rates

_FIX = "give a folder that `kinfolk build` has written, or a table of runs"


def own_runs(folder: Path, only: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    """A run for each leaf of the plan that was trained from scratch to its end, and what was left out.

    `only` may name a `member` or a `stage`. A stage that diverged is a run without a loss, whatever was to follow it.

    A stage that goes on from another in the same shape is one run with it. A grown stage is left out: growth begins a
    schedule of its own at a loss that no schedule explains. So is training on patches.
    """
    plan = plan_of(folder)
    runs, findings = [], []
    try:
        stages = {stage["name"]: stage for stage in plan["stages"]}
        diverged = _diverged(folder)
        for name in _ends(stages, diverged):
            if any(
                only.get(key, value) != value for key, value in (("stage", name), ("member", stages[name]["member"]))
            ):
                continue
            lineage = _lineage(stages, name)
            why = _unfit(lineage)
            if why:
                findings.append(f"{folder.name}: {name} is left out: {why}")
                continue
            steps, loss, reached = _curve(folder, lineage)
            lost = name in diverged
            if not lost and (not len(steps) or reached != sum(stage["steps"] for stage in lineage)):
                findings.append(f"{folder.name}: {name} is left out: it is not finished")
                continue
            runs.append(
                Run(
                    f"{folder.name}/{name}",
                    joined([stage_schedule(stage["rate"], stage["steps"]) for stage in lineage if stage["steps"]]),
                    None if lost else float(loss[-1]),
                    steps,
                    loss,
                    size=float(lineage[-1]["parameters"]["total"]),
                    tokens_per_step=float(plan["tokens_per_step"]),
                    stopped_at=sum(stage["steps"] for stage in lineage[:-1]) + diverged[name] if lost else None,
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise KinfolkError(
            f"plan.json or metrics.jsonl lacks what a law needs ({error})", where=str(folder), fix=_FIX
        ) from error
    if not runs:
        raise KinfolkError(
            "no stage of it was trained from scratch to its end" + (f" ({findings[0]})" if findings else ""),
            where=str(folder),
            fix="go on with the build, or give another run",
        )
    return runs, findings


def stage_schedule(rate: dict[str, Any], steps: int) -> NamedSchedule:
    """The schedule of a stage of a plan.

    The warm-up of kinfolk reaches the peak at the last of its W steps and has 1 / W of it at the first.
    """
    warmup = int(rate["warmup_steps"])
    decay = int(rate["decay_steps"])
    return NamedSchedule(
        steps=steps,
        peak=float(rate["peak"]),
        shape=rate["decay_shape"] if decay else "constant",
        warmup_steps=max(warmup - 1, 0),
        warmup_from=1 / warmup if warmup > 1 else 0.0,
        decay_fraction=decay / steps,
        end_ratio=float(rate["end_ratio"]) if decay else 0.0,
    )


def joined(parts: list[NamedSchedule]) -> Schedule:
    """Schedules that follow one another as one."""
    if len(parts) == 1:
        return parts[0]
    return _named(parts) or np.concatenate([rates(part) for part in parts])


def _named(parts: list[NamedSchedule]) -> NamedSchedule | None:
    """A trunk and its decay under one name, so that they count as the family that they are."""
    trunk, last = parts[0], parts[-1]
    holds = all(part.decay_steps == 0 and part.peak == trunk.peak for part in parts[:-1])
    goes_on = all(part.warmup_steps == 0 for part in parts[1:]) and last.peak == trunk.peak
    if not holds or not goes_on:
        return None
    steps = sum(part.steps for part in parts)
    return NamedSchedule(
        steps=steps,
        peak=trunk.peak,
        shape=last.shape,
        warmup_steps=trunk.warmup_steps,
        warmup_from=trunk.warmup_from,
        decay_fraction=last.decay_steps / steps,
        end_ratio=last.end_ratio,
    )


def _ends(stages: dict[str, Any], diverged: Mapping[str, int]) -> list[str]:
    """Stages that end a run: leaves, those that finish a member, and those that diverged, but nothing after these."""
    parents = {stage["parent"] for stage in stages.values()}
    ends = [name for name, stage in stages.items() if name not in parents or stage["member"] or name in diverged]
    return [name for name in ends if not any(stage["name"] in diverged for stage in _lineage(stages, name)[:-1])]


def _diverged(folder: Path) -> dict[str, int]:
    """Stages that the ledger last says have diverged, and the step at which they did."""
    found: dict[str, int] = {}
    for event in json_lines(folder / "ledger.jsonl"):
        if event.get("event") == "stage_diverged":
            found[str(event["stage"])] = int(event["step"])
        elif event.get("event") == "stage_finished":
            found.pop(str(event["stage"]), None)
    return found


def _lineage(stages: dict[str, Any], name: str) -> list[dict[str, Any]]:
    stage = stages[name]
    return [*(_lineage(stages, stage["parent"]) if stage["parent"] else []), stage]


def _unfit(lineage: list[dict[str, Any]]) -> str | None:
    kinds = {stage["source"]["kind"] for stage in lineage}
    if "grow" in kinds:
        return "it was grown, and growth begins a schedule of its own"
    if "load" in kinds:
        return "it goes on from a checkpoint whose schedule is not known"
    if any(stage.get("objective", {}).get("kind", "token") != "token" for stage in lineage):
        return "it was trained on patches"
    return None


def _curve(folder: Path, lineage: list[dict[str, Any]]) -> tuple[Steps, Array, int]:
    """Steps done since the beginning of the lineage, the quick held-out loss after them, and all steps done."""
    steps, loss, before, reached = [], [], 0, 0
    for stage in lineage:
        for record in json_lines(folder / "stages" / stage["name"] / "metrics.jsonl"):
            reached = before + int(record["step"])
            if "held_out_loss" in record:
                steps.append(before + int(record["step"]))
                loss.append(float(record["held_out_loss"]))
        before += stage["steps"]
    return np.array(steps, dtype=np.int64), np.array(loss), reached


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file of JSON lines; none where it is missing."""
    return [record for _, record in read_lines(path).records]


def plan_of(folder: Path) -> dict[str, Any]:
    """What plan.json of a run folder holds; KinfolkError if it is missing or no plan."""
    path = folder / "plan.json"
    try:
        document = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise KinfolkError(
            f"{path.name} cannot be read ({error.strerror})", where=str(path.parent), fix=_FIX
        ) from error
    except ValueError as error:
        raise KinfolkError("this is not JSON", where=str(path), fix=_FIX) from error
    if not isinstance(document, dict):
        raise KinfolkError("this is not a plan", where=str(path), fix=_FIX)
    return document
