"""Every kind of law tried on the runs, tested on runs left out, and the one to trust."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.schedule import ensemble
from kinfolk.schedule.features import Units
from kinfolk.schedule.holdout import Errors, Fold, errors, fit_kind
from kinfolk.schedule.kinds import ENSEMBLE, SIXTEEN, Kind
from kinfolk.schedule.law import KindName
from kinfolk.schedule.run import Run
from kinfolk.schedule.targets import Numbers

FEWEST_FOR_SIXTEEN = 4
FEWEST_TO_COMPARE = 5
"""Schedules at one peak from which on held-out error chooses: with fewer, a part of them is a different problem."""
PREFERRED = 1.1
"""The ensemble is taken if its error is within this factor of the best: it has the best worst case."""


@dataclass(frozen=True)
class Trial:
    """One kind of law on the runs."""

    kind: Kind
    eligible: bool
    reason: str
    """Why it may be trusted, or why not."""
    numbers: Numbers | None
    """None if the runs were too few for it."""
    seconds: float
    """Processor seconds of the fit."""
    errors: Errors | None
    in_sample: float | None
    """Mean absolute error of final losses that were fitted, in nats."""

    @property
    def held_out_error(self) -> float | None:
        return None if self.errors is None else float(self.errors.absolute.mean())


def trial_of(kind: Kind, runs: Sequence[Run], parts: Sequence[Fold], units: Units, before: dict[str, Trial]) -> Trial:
    eligible, reason = _eligible(kind, runs)
    if len(runs) == 1 and not eligible:
        return Trial(kind, False, reason, None, 0.0, None, None)
    began = time.process_time()
    try:
        numbers = _members(before) if kind is ENSEMBLE else fit_kind(kind, runs, units)
    except KinfolkError as error:
        return Trial(kind, False, error.problem, None, 0.0, None, None)
    seconds = time.process_time() - began
    # Fits to parts of the runs start where the whole fit ended. A law that is not trusted anyway is not tested.
    found = errors(kind, parts if eligible else (), lambda some: fit_kind(kind, some, units, numbers))
    said = [float(kind.predict(numbers, run.schedule, np.array([run.steps]))[0]) for run in runs]
    in_sample = float(np.mean([abs(value - final_loss(run)) for value, run in zip(said, runs, strict=True)]))
    return Trial(kind, eligible, reason, numbers, seconds, found, in_sample)


def _members(before: dict[str, Trial]) -> Numbers:
    """The ensemble of the laws that are fitted already."""
    parts = {name: before[name].numbers for name in ensemble.MEMBERS}
    present = {name: numbers for name, numbers in parts.items() if numbers is not None}
    if len(present) < len(parts):
        raise KinfolkError("a member of it could not be fitted")
    return ensemble.joined(present)


def _eligible(kind: Kind, runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether there is enough to trust a kind of law with, whatever its error."""
    peaks = {run.peak for run in runs}
    families = {run.family for run in runs}
    if len(peaks) > 1 and not kind.tells_peaks:
        return False, f"has no term for the peak, and there are {len(peaks)}"
    if kind is SIXTEEN:
        if len(runs) < FEWEST_FOR_SIXTEEN:
            return False, f"needs at least {FEWEST_FOR_SIXTEEN} runs"
        return True, f"{len(runs)} runs, {len(peaks)} peak{'s' if len(peaks) > 1 else ''}"
    if kind.name == "annealing":
        return True, "four parameters: enough with one curve"
    if len(families) < 2:
        return False, "one shape cannot tell its kernel"
    return True, f"one peak, {len(families)} schedules"


def choose(trials: Sequence[Trial], kind: KindName | Literal["auto"], families: int) -> tuple[Trial, str]:
    """By the amount of data first, then by the error on runs left out."""
    by_name = {trial.kind.name: trial for trial in trials}
    if kind != "auto":
        asked = by_name[kind]
        if asked.numbers is None:
            raise KinfolkError(f"{kind} cannot be fitted: {asked.reason}", where="--kind", fix="use auto")
        return asked, "asked for"
    able = [trial for trial in trials if trial.eligible and trial.numbers is not None]
    if not able:
        raise KinfolkError("no law can be trusted with these runs", fix="give more runs, or whole curves")
    tested = [trial for trial in able if trial.held_out_error is not None]
    if not tested:
        return able[0], f"{able[0].reason}; nothing could be left out to test it"
    best = min(tested, key=lambda trial: trial.held_out_error or 0.0)
    together = by_name["ensemble"]
    if families < FEWEST_TO_COMPARE and together in tested:
        return (
            together,
            f"{families} schedules at one peak are too few to compare laws by leaving one out, and it has the best "
            "worst case",
        )
    if together in tested and (together.held_out_error or 0.0) <= PREFERRED * (best.held_out_error or 0.0):
        return together, f"error on runs left out within {PREFERRED - 1:.0%} of the best, and the best worst case"
    return best, f"lowest error on runs left out, of {len(tested)} that have enough data ({best.reason})"


def final_loss(run: Run) -> float:
    """Loss at the end of a finished run, in nats."""
    assert run.loss is not None
    return run.loss
