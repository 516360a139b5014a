"""Loss curves: columns step, lr, loss. What is wrong with one is refused or flagged by name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.laws.checks import lines
from kinfolk.laws.columns import number
from kinfolk.laws.tables import Row
from kinfolk.schedule.columns import curve_columns
from kinfolk.schedule.labels import curve_diverged
from kinfolk.schedule.shapes import Array, Steps, warmup_of
from kinfolk.schedule.sources import from_array

HIGHEST_LOSS = 15.0
"""In nats per token: ln of a vocabulary of three million."""
MOST_STEPS = 10**8
FEWEST_POINTS = 8
LATEST_START = 0.2
"""Share of the steps that may be missing at the beginning; what is missing is taken to be a warm-up."""
GAP = 5.0
"""Times the median spacing, from which on a spacing is a gap."""
SMOOTH = -0.16
"""Correlation of neighbouring differences from which on a curve is called smoothed: independent measurements have
-0.5 (-0.5 to -0.17 on the public curves), moving averages over ten points -0.14 to 0.5."""
FEWEST_TO_JUDGE = 60
"""Points from which on smoothing can be told."""


@dataclass(frozen=True)
class Flag:
    """A fault of a curve by its name, and what is done about it."""

    where: str
    name: str
    what: str


@dataclass(frozen=True)
class Curve:
    """Losses (point,) after so many `steps` (point,), sorted, from the end of the warm-up on."""

    steps: Steps
    loss: Array
    rates: Array | None
    """The rate of every step (steps,), rebuilt from the points; None if the file has none."""
    diverged: bool
    reached: int
    """Step of the last point, of whatever loss."""


def curve_of(rows: Sequence[Row], path: Path, rates: Array | None = None) -> tuple[Curve, list[Flag]]:
    """The curve in the rows of a table, and what is odd about it.

    `rates` (steps,) is its schedule, where that is known from elsewhere. KinfolkError for units that cannot be, too few
    points, and a schedule of which the beginning is missing.
    """
    where = str(path)
    if not rows:
        raise KinfolkError("too short: there are no points", where=where, fix="give a whole curve")
    columns = curve_columns(rows, ("step", "loss"), where)
    steps = [_step(row, columns["step"], where) for row in rows]
    losses = [number(row.values.get(columns["loss"]), columns["loss"], f"{where}: {row.name}") for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (steps[index], index))
    findings = [] if order == list(range(len(rows))) else [Flag(where, "unsorted", "put in order of its steps")]
    kept = [one for one, following in zip(order, [*order[1:], None], strict=True) if _last(steps, one, following)]
    if len(kept) < len(order):
        findings.append(
            Flag(where, "doubled", f"{len(order) - len(kept)} steps are there twice; the later line counts")
        )
    step = np.array([steps[index] for index in kept], dtype=np.int64)
    loss = np.array([math.nan if losses[index] is None else losses[index] for index in kept], dtype=np.float64)
    if rates is None and "lr" in columns:
        rate = [
            number(rows[index].values.get(columns["lr"]), columns["lr"], f"{where}: {rows[index].name}")
            for index in kept
        ]
        rates = _rebuilt(step, np.array([math.nan if value is None else value for value in rate]), where, findings)
    _check_units(loss, where)
    warmup, reached = warmup_of(rates) if rates is not None else 0, int(step[-1])
    diverged = curve_diverged(step, loss, warmup)
    usable = np.isfinite(loss) & (step > warmup)
    step, loss = step[usable], loss[usable]
    if len(loss) < FEWEST_POINTS and not diverged:
        raise KinfolkError(
            f"too short: {len(loss)} points after the warm-up", where=where, fix=f"give at least {FEWEST_POINTS} points"
        )
    if len(loss) >= FEWEST_POINTS:
        findings += _gaps(step, where) + _smoothed(loss, columns["loss"], where)
    return Curve(step, loss, rates, diverged, reached), findings


def curve_schedule(rows: Sequence[Row], path: Path) -> tuple[Array, Steps, list[Flag]]:
    """The rate of every step (steps,) and the steps done at each row (row,), without looking at losses."""
    columns = curve_columns(rows, ("step", "lr"), str(path))
    steps = np.array([_step(row, columns["step"], str(path)) for row in rows], dtype=np.int64)
    rate = [number(row.values.get(columns["lr"]), columns["lr"], f"{path}: {row.name}") for row in rows]
    order = np.argsort(steps, kind="stable")
    findings: list[Flag] = []
    rates = _rebuilt(
        steps[order], np.array([math.nan if value is None else value for value in rate])[order], str(path), findings
    )
    return rates, steps, findings


def _step(row: Row, column: str, where: str) -> int:
    value = number(row.values.get(column), column, f"{where}: {row.name}")
    if value is None or value < 0 or value != int(value) or value > MOST_STEPS:
        raise KinfolkError(
            f"{row.values.get(column)!r} is not a step: other units?",
            where=f"{where}: {row.name}, column {column!r}",
            fix="give optimizer steps as whole numbers, not thousands or tokens",
        )
    return int(value)


def _last(steps: Sequence[int], one: int, following: int | None) -> bool:
    return following is None or steps[one] != steps[following]


def sentences(flags: Sequence[Flag]) -> list[str]:
    """Flags as sentences, those of several files in one where they say the same."""
    files: dict[tuple[str, str], list[str]] = {}
    for flag in flags:
        files.setdefault((flag.name, flag.what), []).append(flag.where)
    return [f"{name}: {lines(found)}: {what}" for (name, what), found in files.items()]


def _rebuilt(step: Steps, rate: Array, where: str, findings: list[Flag]) -> Array:
    """The rate of every step, linear between the points; before the first of them, a linear warm-up from 0."""
    known = np.isfinite(rate)
    if not known.any():
        raise KinfolkError("no point has a learning rate", where=where, fix="fill the column `lr`")
    first, last = int(step[0]), int(step[-1])
    if last == 0 or first > LATEST_START * last:
        raise KinfolkError(
            f"steps 0 to {first} of {last} are missing: their rates cannot be guessed",
            where=where,
            fix="give the curve from its beginning, or name it in the column `curve` of a table of runs",
        )
    found = np.interp(np.arange(last), step[known], rate[known])
    if first > 1:
        found[:first] = rate[known][0] * np.arange(first) / first
        findings.append(
            Flag(where, "begins late", f"a linear warm-up from 0 is assumed up to its first point, step {first}")
        )
    return from_array(found, where)


def _check_units(loss: Array, where: str) -> None:
    finite = loss[np.isfinite(loss)]
    if len(finite) and finite.min() <= 0:
        raise KinfolkError(f"a loss of {finite.min():g}", where=where, fix="give losses above 0, in nats per token")
    if len(finite) and np.median(finite) > HIGHEST_LOSS:
        raise KinfolkError(
            f"losses around {np.median(finite):.3g} look like perplexities (other units)",
            where=where,
            fix="give their natural logarithms",
        )


def _gaps(step: Steps, where: str) -> list[Flag]:
    spacing = np.diff(step)
    wide = np.nonzero((spacing > GAP * np.median(spacing)) & (spacing > 0.02 * step[-1]))[0]
    if not len(wide):
        return []
    first = wide[0]
    more = f", and {len(wide) - 1} more" if len(wide) > 1 else ""
    return [Flag(where, "gap", f"there is nothing from step {step[first]} to {step[first + 1]}{more}")]


def _smoothed(loss: Array, column: str, where: str) -> list[Flag]:
    named = any(word in column.lower() for word in ("smooth", "ema", "avg", "average"))
    if not named and (len(loss) < FEWEST_TO_JUDGE or _correlation(loss) < SMOOTH):
        return []
    return [
        Flag(
            where,
            "smoothed",
            "neighbouring points are more alike than separate measurements are; if they are averages over past steps, "
            "they lag behind when the rate changes: give the raw losses",
        )
    ]


def _correlation(loss: Array) -> float:
    """Of neighbouring differences without their local mean; the middle of three parts, so that one jump is no trend."""
    found = []
    for part in np.array_split(loss[len(loss) // 4 :], 3):
        difference = np.diff(part)
        difference = difference - np.convolve(np.pad(difference, 4, mode="edge"), np.ones(9) / 9, "valid")
        square = float(difference @ difference)
        found.append(float(difference[1:] @ difference[:-1]) / square if square > 0 else 1.0)
    return float(np.median(found))
