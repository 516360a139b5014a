"""Tables with a row for each run: the settings of its schedule, and the loss it ended with."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.checks import lines
from kinfolk.laws.columns import number
from kinfolk.laws.tables import Row, table_rows
from kinfolk.schedule.columns import settings_columns
from kinfolk.schedule.curves import HIGHEST_LOSS, MOST_STEPS, Curve, Flag, curve_of, sentences
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import SHAPES, NamedSchedule, Shape, rates
from kinfolk.schedule.sources import LARGEST_RATE

OTHER_NAMES: dict[str, Shape] = {
    **{"const": "constant", "cos": "cosine", "sqrt": "1-sqrt", "1sqrt": "1-sqrt", "one_minus_sqrt": "1-sqrt"},
    **{"exp": "exponential", "two_stage": "two-stage", "polynomial": "power"},
}
FIELDS = ("steps", "peak_lr", "shape", "warmup_steps", "warmup_from", "decay_fraction", "end_ratio", "power")
"""Of a schedule, by the names of their columns."""


def settings_runs(rows: Sequence[Row], path: Path) -> tuple[list[Run], list[str]]:
    """The runs in the rows of a table, and what is odd about them.

    An empty, infinite or NaN loss is that of a run that diverged. KinfolkError, with the line, for settings that make
    no schedule.
    """
    columns = settings_columns(rows, ("steps", "peak_lr", "loss"), str(path))
    runs, flags = [], []
    odd_fractions: dict[str, list[str]] = {}
    for row in rows:
        schedule, note = settings_schedule(row, columns, path)
        if note:
            odd_fractions.setdefault(note, []).append(row.name)
        loss = number(row.values.get(columns["loss"]), columns["loss"], f"{path}: {row.name}")
        run = Run(
            row.values.get(columns.get("name", ""), "") or row.name,
            schedule,
            loss,
            size=_optional(row, columns, "size", path),
            tokens_per_step=_tokens_per_step(row, columns, schedule, path),
            stopped_at=_stopped_at(row, columns, schedule, path) if loss is None else None,
        )
        file = row.values.get(columns.get("curve", ""), "")
        if file:
            curve, odd = _curve_beside(path.parent / file, schedule)
            flags += odd
            run = replace(run, curve_steps=curve.steps, curve_loss=curve.loss)
            if curve.diverged:
                run = replace(run, loss=None, stopped_at=curve.reached if run.stopped_at is None else run.stopped_at)
        runs.append(run)
    findings = [f"{note}: {lines(found)}" for note, found in odd_fractions.items()] + sentences(flags)
    _check_losses(runs, rows, columns["loss"], path)
    return runs, findings


def settings_schedule(row: Row, columns: dict[str, str], path: Path) -> tuple[NamedSchedule, str | None]:
    """The schedule of one row, and what was assumed about it; KinfolkError for what makes none."""
    where = f"{path}: {row.name}"
    steps, peak = _needed(row, columns, "steps", path), _needed(row, columns, "peak_lr", path)
    if steps != int(steps) or not 1 <= steps <= MOST_STEPS:
        raise KinfolkError(
            f"{steps:g} is not a number of steps: other units?",
            where=f"{where}, column {columns['steps']!r}",
            fix="give optimizer steps as whole numbers, not thousands or tokens",
        )
    if not 0 < peak < LARGEST_RATE:
        raise KinfolkError(
            f"{peak:g} is not a peak learning rate: other units?",
            where=f"{where}, column {columns['peak_lr']!r}",
            fix="give the rate itself, such as 3e-4",
        )
    warmup = _optional(row, columns, "warmup_steps", path) or 0.0
    if warmup != int(warmup):
        raise KinfolkError(
            f"{warmup:g} is not a number of steps",
            where=f"{where}, column {columns['warmup_steps']!r}",
            fix="give the steps of the warm-up, not a share",
        )
    shape, fraction = _shape(row, columns, where), _optional(row, columns, "decay_fraction", path)
    note = None
    if shape == "cosine" and not fraction:
        fraction, note = 1.0, "a cosine without decay_fraction is taken to decay from the end of its warm-up"
    elif shape != "constant" and fraction is None:
        raise KinfolkError(f"a {shape} decay without a decay_fraction", where=where, fix="say which share decays")
    if fraction is not None and fraction > 1:
        raise KinfolkError(
            f"decay_fraction is {fraction:g}", where=where, fix="give a share from 0 to 1, not percent or steps"
        )
    try:
        schedule = NamedSchedule(
            steps=int(steps),
            peak=peak,
            shape=shape,
            warmup_steps=int(warmup),
            decay_fraction=fraction or 0.0,
            end_ratio=_optional(row, columns, "end_ratio", path) or 0.0,
            power=_optional(row, columns, "power", path) or 1.0,
            warmup_from=_optional(row, columns, "warmup_from", path) or 0.0,
        )
    except KinfolkError as error:
        raise KinfolkError(error.problem, where=where, fix=error.fix) from error
    return schedule, note


def _shape(row: Row, columns: dict[str, str], where: str) -> Shape:
    text = row.values.get(columns.get("shape", ""), "").strip().lower() or "constant"
    found = OTHER_NAMES.get(text, text)
    for shape in SHAPES:
        if found == shape:
            return shape
    raise KinfolkError(f"{text!r} is no shape", where=where, fix=f"use one of {', '.join(SHAPES)}")


def _tokens_per_step(row: Row, columns: dict[str, str], schedule: NamedSchedule, path: Path) -> float | None:
    given = _optional(row, columns, "tokens_per_step", path)
    tokens = _optional(row, columns, "tokens", path)
    return given if given is not None or tokens is None else round(tokens / schedule.steps)


def _stopped_at(row: Row, columns: dict[str, str], schedule: NamedSchedule, path: Path) -> int | None:
    """Steps that a diverged run did."""
    found = _optional(row, columns, "stopped_at", path)
    if found is None or (found == int(found) and found <= schedule.steps):
        return None if found is None else int(found)
    raise KinfolkError(
        f"{found:g} is not one of the {schedule.steps} steps of the run",
        where=f"{path}: {row.name}, column {columns['stopped_at']!r}",
        fix="give the step at which it was stopped, or nothing",
    )


def _optional(row: Row, columns: dict[str, str], role: str, path: Path) -> float | None:
    if role not in columns:
        return None
    value = number(row.values.get(columns[role]), columns[role], f"{path}: {row.name}")
    if value is not None and value < 0:
        raise KinfolkError(
            f"{value:g} is negative", where=f"{path}: {row.name}, column {columns[role]!r}", fix="mend the row"
        )
    return value


def _needed(row: Row, columns: dict[str, str], role: str, path: Path) -> float:
    value = _optional(row, columns, role, path)
    if value is None:
        raise KinfolkError(
            "the value is missing", where=f"{path}: {row.name}, column {columns[role]!r}", fix="complete the row"
        )
    return value


def _check_losses(runs: Sequence[Run], rows: Sequence[Row], column: str, path: Path) -> None:
    losses = np.array([math.nan if run.loss is None else run.loss for run in runs])
    for wrong, problem, fix in (
        (losses <= 0, "is not a loss", "give losses above 0, in nats per token"),
        (
            np.full(len(losses), bool(np.nanmedian(losses) > HIGHEST_LOSS))
            if np.isfinite(losses).any()
            else losses < 0,
            "is too large for a loss per token: it looks like a perplexity (other units)",
            "give its natural logarithm",
        ),
    ):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise KinfolkError(
                f"{losses[first]:g} {problem}", where=f"{path}: {rows[first].name}, column {column!r}", fix=fix
            )


def _curve_beside(path: Path, schedule: NamedSchedule) -> tuple[Curve, list[Flag]]:
    """The curve that a row names, which needs no column of rates: the row has the schedule."""
    curve, findings = curve_of(table_rows(path), path, rates(schedule))
    if curve.reached > schedule.steps:
        raise KinfolkError(
            f"the curve has step {curve.reached}, its schedule {schedule.steps} steps",
            where=str(path),
            fix="give the curve of this run",
        )
    return curve, findings
