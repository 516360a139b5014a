"""What a kind of law said of each run while that run was left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinfolk.schedule.features import Units
from kinfolk.schedule.holdout import What, fit_kind, folds
from kinfolk.schedule.kinds import Kind
from kinfolk.schedule.run import Run
from kinfolk.schedule.targets import Numbers


@dataclass(frozen=True)
class LeftOut:
    """One hidden end."""

    name: str
    what: What
    """What was left out with it."""
    measured: float
    predicted: float


def left_out(kind: Kind, runs: Sequence[Run], units: Units, near: Numbers) -> tuple[LeftOut, ...]:
    """The end of every run, by fits that had not seen it; runs must not have diverged. `near` is the whole fit."""
    names = {(id(run.schedule), run.steps, run.loss): run.name for run in runs}
    found = []
    for fold in folds(runs, units):
        numbers = fit_kind(kind, fold.fitted, units, near)
        for target in fold.hidden:
            end, loss = int(target.steps[-1]), float(target.loss[-1])
            said = float(kind.predict(numbers, target.schedule, np.array([end]))[0])
            name = names.get((id(target.schedule), end, loss), fold.what)
            found.append(LeftOut(name, fold.what, loss, said))
    return tuple(found)
