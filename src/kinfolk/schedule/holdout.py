"""Leaving out: every family, every peak, the longest horizon; of a single curve, its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.schedule.features import Units
from kinfolk.schedule.kinds import SIXTEEN, Kind
from kinfolk.schedule.points import cut, end_target, judged, sparse_target, whole_target
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array
from kinfolk.schedule.targets import Numbers, Target

What = Literal["family", "peak", "horizon", "end of the curve"]
KEPT_SHARE = 0.7
"""Of a single curve that is fitted when its end is held out."""
FINAL_ONLY = 8
"""From so many runs on, laws are judged by final losses alone, below also by points of curves."""
MOST_FAMILIES = 16
"""Families beyond this are left out several at a time."""


@dataclass(frozen=True)
class Fold:
    """Runs to fit, and points of hidden runs."""

    what: What
    fitted: tuple[Run, ...]
    hidden: tuple[Target, ...]


def folds(runs: Sequence[Run], units: Units) -> list[Fold]:
    """Every way in which these runs (which did not diverge) can be parted; none if nothing would be left to fit."""
    if len(runs) == 1:
        if len(runs[0].curve_steps) < 2:
            return []
        kept, rest = cut(runs[0], KEPT_SHARE)
        return [Fold("end of the curve", (kept,), (rest,))]
    with_curve = len(runs) < FINAL_ONLY
    found = []
    families = list(dict.fromkeys(run.family for run in runs))
    groups = [set(families[start::MOST_FAMILIES]) for start in range(min(len(families), MOST_FAMILIES))]
    peaks = sorted({run.peak for run in runs})
    horizons = sorted({run.steps for run in runs})
    parted: list[tuple[What, list[bool]]] = []
    if len(families) > 1:
        parted += [("family", [run.family in group for run in runs]) for group in groups]
    if len(peaks) > 1:
        parted += [("peak", [run.peak == peak for run in runs]) for peak in peaks]
    if len(horizons) > 1 and len(runs) >= FINAL_ONLY:
        parted.append(("horizon", [run.steps == horizons[-1] for run in runs]))
    for what, hidden in parted:
        fitted = tuple(run for run, out in zip(runs, hidden, strict=True) if not out)
        unseen = tuple(judged(run, units, with_curve) for run, out in zip(runs, hidden, strict=True) if out)
        if fitted and unseen:
            found.append(Fold(what, fitted, unseen))
    return found


@dataclass(frozen=True)
class Errors:
    """What a kind of law was worth on hidden points."""

    residuals: dict[What, Array]
    """ln(loss / prediction), by what was hidden."""
    differences: Array
    """Of hidden ends: |residual - that of the run that the law holds for best| in the same fold and
    horizon, where families and peaks were hidden."""
    absolute: Array
    """|loss - prediction| in nats, mean of each hidden run (run,)."""


def fit_kind(kind: Kind, runs: Sequence[Run], units: Units, near: Numbers | None = None) -> Numbers:
    """Fit one kind of law to runs; KinfolkError if there are fewer losses than it has parameters."""
    if kind is SIXTEEN:
        return kind.fit([sparse_target(run, units) for run in runs], units, near)
    # Curves of several peaks are many and far from these laws: their ends are enough to say so.
    single = len({run.peak for run in runs}) == 1
    targets = [whole_target(run) if single and len(run.curve_steps) else end_target(run) for run in runs]
    losses = sum(len(target.loss) for target in targets)
    if losses <= kind.parameters and kind.name != "ensemble":
        raise KinfolkError(f"{losses} losses are too few for {kind.parameters} parameters", fix="give more runs")
    return kind.fit(targets, units, near)


def errors(kind: Kind, parts: Sequence[Fold], fit: Callable[[Sequence[Run]], Numbers]) -> Errors | None:
    """Fit each fold and predict what it hides; None if a fold leaves too little to fit."""
    residuals: dict[What, list[Array]] = {}
    absolute: list[float] = []
    differences: list[float] = []
    for fold in parts:
        try:
            numbers = fit(fold.fitted)
        except KinfolkError:
            return None
        ends: dict[int, list[tuple[float, float]]] = {}
        for target in fold.hidden:
            said = kind.predict(numbers, target.schedule, target.steps)
            missed = np.log(target.loss / np.maximum(said, 1e-6))
            residuals.setdefault(fold.what, []).append(missed)
            ends.setdefault(int(target.steps[-1]), []).append((float(said[-1]), float(missed[-1])))
            absolute.append(float(np.abs(target.loss - said).mean()))
        for same in ends.values():
            best, missed_best = min(same)
            if fold.what != "horizon":
                differences += [abs(each - missed_best) for loss, each in same if loss > best]
    if not absolute:
        return None
    joined = {what: np.concatenate(values) for what, values in residuals.items()}
    return Errors(joined, np.array(differences), np.array(absolute))
