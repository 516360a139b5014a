"""What the prediction of divergence is worth on peaks and sizes left out, beside a single threshold on the peak."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from kinfolk.schedule.divergence import FEWEST, fit_regression
from kinfolk.schedule.run import Run
from kinfolk.schedule.stability import stability

Says = Callable[[Run], bool]
"""Whether a run will diverge."""
Predictor = Callable[[Sequence[Run]], Says]
"""Learns from runs of both outcomes, three of each at least."""


@dataclass(frozen=True)
class Score:
    """How often a predictor was right about runs that it had not seen; positive is a run that diverged."""

    predictor: str
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float | None:
        """Share of alarms that were right; None without alarms."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of diverged runs that were foretold; None if none diverged."""
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None with neither alarms nor diverged runs."""
        right = 2 * self.true_positives
        return _share(right, right + self.false_positives + self.false_negatives)


@dataclass(frozen=True)
class LeftOut:
    """Scores on runs that were left out in groups of one peak, or one size."""

    by: Literal["peak", "size"]
    groups: int
    judged: int
    """Runs that were predicted."""
    skipped: int
    """Runs without which too few of one outcome were left to learn from."""
    scores: tuple[Score, ...]


def left_out_scores(runs: Sequence[Run]) -> tuple[LeftOut, ...]:
    """Every predictor's scores with each peak left out and, of several sizes, each size.

    Empty where there is too little of one outcome to learn from without the group.
    """
    found = []
    parted: tuple[tuple[Literal["peak", "size"], list[Hashable]], ...] = (
        ("peak", [run.peak for run in runs]),
        ("size", [run.size for run in runs]),
    )
    for by, groups in parted:
        if len(set(groups)) < 2:
            continue
        said = {name: predictions(runs, groups, learn) for name, learn in PREDICTORS.items()}
        judged = [index for index, one in enumerate(next(iter(said.values()))) if one is not None]
        if not judged:
            continue
        actual = [runs[index].diverged for index in judged]
        scores = tuple(_score(name, [bool(said[name][index]) for index in judged], actual) for name in said)
        found.append(LeftOut(by, len(set(groups)), len(judged), len(runs) - len(judged), scores))
    return tuple(found)


def predictions(runs: Sequence[Run], groups: Sequence[Hashable], learn: Predictor) -> list[bool | None]:
    """Whether each run is said to diverge by what was learnt from all runs of other groups.

    None where fewer than three of these diverged, or did not.
    """
    said: list[bool | None] = [None] * len(runs)
    for group in dict.fromkeys(groups):
        seen = [run for run, of in zip(runs, groups, strict=True) if of != group]
        if min(sum(run.diverged for run in seen), sum(not run.diverged for run in seen)) < FEWEST:
            continue
        says = learn(seen)
        for index, of in enumerate(groups):
            if of == group:
                said[index] = says(runs[index])
    return said


def by_regression(runs: Sequence[Run]) -> Says:
    """Divergence at a probability of a half or more."""
    regression = fit_regression(runs)
    assert regression is not None
    return lambda run: regression.probability(run.schedule, run.size) >= 0.5


def by_gate(runs: Sequence[Run]) -> Says:
    """What candidates must pass: the regression, and the cap above the largest stable peak."""
    gate = stability(runs)
    return lambda run: gate.risk(run.schedule, run.size)[0] in ("high", "refused")


def by_threshold(runs: Sequence[Run]) -> Says:
    """Divergence from one peak on, whatever warm-up and size: the peak with the fewest errors.

    It lies in the middle between two peaks of the runs; of several equally good ones the middle one is taken.
    """
    peaks = sorted({run.peak for run in runs})
    cuts = [0.0, *(float(np.sqrt(low * high)) for low, high in pairwise(peaks)), np.inf]
    errors = [sum(run.diverged != (run.peak >= cut) for run in runs) for cut in cuts]
    best = [cut for cut, wrong in zip(cuts, errors, strict=True) if wrong == min(errors)]
    threshold = best[len(best) // 2]
    return lambda run: run.peak >= threshold


PREDICTORS: dict[str, Predictor] = {
    "regression": by_regression,
    "regression and cap": by_gate,
    "threshold on the peak": by_threshold,
}


def _score(name: str, said: Sequence[bool], actual: Sequence[bool]) -> Score:
    pairs = list(zip(said, actual, strict=True))
    return Score(
        name,
        true_positives=pairs.count((True, True)),
        false_positives=pairs.count((True, False)),
        false_negatives=pairs.count((False, True)),
        true_negatives=pairs.count((False, False)),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def scores_document(parts: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """Scores as JSON."""
    return [
        {
            "left_out": part.by,
            "groups": part.groups,
            "judged": part.judged,
            "skipped": part.skipped,
            "scores": [
                {
                    "predictor": score.predictor,
                    "precision": score.precision,
                    "recall": score.recall,
                    "f1": score.f1,
                    "true_positives": score.true_positives,
                    "false_positives": score.false_positives,
                    "false_negatives": score.false_negatives,
                    "true_negatives": score.true_negatives,
                }
                for score in part.scores
            ],
        }
        for part in parts
    ]
