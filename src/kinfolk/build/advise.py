"""When to begin the decay of a stage of a run, for an end that the user gives."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinfolk.build.line import StageDocument
from kinfolk.build.line_curves import read_points
from kinfolk.build.outlook import Prospect, prospect
from kinfolk.errors import KinfolkError
from kinfolk.schedule.advice import Advice, advice_document, advise
from kinfolk.schedule.live import NotYet
from kinfolk.schedule.own_runs import plan_of
from kinfolk.schedule.shapes import NamedSchedule, length

DEFAULT = {"shape": "linear", "decay_fraction": 0.2, "end_ratio": 0.0}
"""The decay that is compared with where the plan has none: the habit of trunks."""


@dataclass(frozen=True)
class StageAdvice:
    """Advice about one stage; its steps are whole batches since the beginning of the stage's schedule."""

    stage: str
    advice: Advice
    tokens_per_step: int
    gain_from: str | None
    """The earlier stage that says what a decay brings; None where public runs do."""
    grown: bool
    planned: bool
    """Whether the plan has a decay for it."""


def advise_stage(folder: Path, name: str | None, end: str | None) -> StageAdvice:
    """Advice for the stage `name`, by default the last one that has begun and holds its rate.

    `end` is in tokens, as in `2e9`, or in steps, as in `12000steps`, since the beginning of the stage's schedule; by
    default the planned end. KinfolkError where there is nothing to choose or too little to say.
    """
    try:
        stages = {stage["name"]: stage for stage in plan_of(folder)["stages"]}
        name = _holding(folder, stages) if name is None else name
        if name not in stages:
            raise KinfolkError(
                f"there is no stage {name!r}", where=str(folder), fix=f"use one of {', '.join(list(stages)[:8])}"
            )
        seen, points = prospect(folder, stages, name), read_points(folder, stages[name])
        if isinstance(seen, NotYet):
            raise KinfolkError(
                f"no law holds for {name}: {seen.why}", where=str(folder), fix="ask about another --stage"
            )
        each = int(stages[name]["tokens_per_step"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KinfolkError(
            f"plan.json or metrics.jsonl lacks what a law needs ({error})",
            where=str(folder),
            fix="give a folder that `kinfolk build` has written",
        ) from error
    held = _held(seen, name, points[-1][0] if points else 0)
    last = _end(end, each, seen)
    planned = seen.planned or NamedSchedule(steps=last, peak=held.peak, **DEFAULT)  # type: ignore[arg-type]
    share = replace(planned, steps=last, warmup_steps=min(planned.warmup_steps, last))
    steps, losses = seen.curve(points)
    found = advise(held, steps, losses, last, share, seen.gain)
    if isinstance(found, NotYet):
        raise KinfolkError(f"{name}: {found.why}", where=str(folder), fix="ask again later, or give a nearer --end")
    return StageAdvice(name, found, each, seen.gain_from, seen.line.grown, seen.planned is not None)


def _holding(folder: Path, stages: dict[str, StageDocument]) -> str:
    begun = [name for name, stage in stages.items() if read_points(folder, stage)]
    for name in reversed(begun):
        seen = prospect(folder, stages, name)  # type: ignore[arg-type]
        points = read_points(folder, stages[name])
        if not isinstance(seen, NotYet) and _hold_ends(seen) >= seen.curve(points)[0][-1]:
            return name
    raise KinfolkError(
        "no stage of it holds its rate" if begun else "no stage of it has a held-out loss yet",
        where=str(folder),
        fix="name one with --stage, or ask again later",
    )


def _hold_ends(seen: Prospect) -> int:
    """Up to which step of its schedule a line holds its rate."""
    schedule = seen.line.schedule
    if not isinstance(schedule, NamedSchedule):
        return 0
    return schedule.steps - schedule.decay_steps


def _held(seen: Prospect, name: str, step: int) -> NamedSchedule:
    """The warm-up and the constant rate so far."""
    schedule = seen.line.schedule
    if not isinstance(schedule, NamedSchedule):
        raise KinfolkError("its rate changes between stages: no single decay is planned", where=name)
    if step and seen.line.curve([*seen.before, [(step, 0.0)]])[0][-1] > _hold_ends(seen):
        raise KinfolkError(
            f"its decay began at step {_hold_ends(seen):,}: there is nothing left to choose",
            where=name,
            fix="ask about a stage that holds its rate",
        )
    return replace(schedule, shape="constant", decay_fraction=0.0, end_ratio=0.0)


def _end(text: str | None, tokens_per_step: int, seen: Prospect) -> int:
    if text is None:
        if seen.planned is None:
            raise KinfolkError("no end is planned", where="--end", fix="give tokens, as in 2e9, or 12000steps")
        return length(seen.planned)
    number = text.strip().lower().removesuffix("steps").strip()
    in_steps = number != text.strip().lower()
    try:
        value = float(number)
        found = round(value if in_steps else value / tokens_per_step)
    except (ValueError, OverflowError):
        raise KinfolkError(f"{text!r} is no end", where="--end", fix="give tokens, as in 2e9, or 12000steps") from None
    if found < 2:
        raise KinfolkError(f"{text} is less than two steps", where="--end", fix="give a later end")
    return found


def advice_of_stage_document(found: StageAdvice) -> dict[str, Any]:
    """Advice about a stage as JSON; steps are whole batches since the beginning of its schedule."""
    document = advice_document(found.advice)
    return {
        "stage": found.stage,
        "tokens_per_step": found.tokens_per_step,
        "end_tokens": found.advice.end * found.tokens_per_step,
        "decay_is_planned": found.planned,
        "gain_from": found.gain_from,
        "grown": found.grown,
        **document,
    }
