"""How far one family's member is from another's in bits per byte, and whether that can be told from chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kinfolk.evaluate.bootstrap import ratio_interval
from kinfolk.report.compare.members import Entry

Verdict = Literal["better", "worse", "same", "undecided"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """In bits per byte, the other family's minus the reference's: below zero, the other is better."""

    mean: float
    relative: float
    """The same as a share of the reference."""
    interval: Interval | None
    """Of 90 %, over documents that both were measured on; None where only the ledgers' sums are known."""
    documents: int | None
    """On how many documents the two were paired."""
    better_share: float | None
    """Share of the documents on which the other needs fewer bits."""
    seed_interval: Interval | None
    """Of 90 %, over seeds; None where one of the two has a single seed."""
    verdict: Verdict
    """`undecided` unless every interval that there is leaves out zero; `same` for the same weights or figures."""


def paired(
    reference: Sequence[NDArray[np.float64]],
    other: Sequence[NDArray[np.float64]],
    sizes: NDArray[np.int64],
    seeds: Interval | None,
) -> Difference:
    """From the bits of every document, (documents,) for each seed, and the documents' bytes (documents,)."""
    first, second = (np.mean(list(bits), axis=0) for bits in (reference, other))
    low, high = ratio_interval(second - first, sizes)
    interval = None if low is None or high is None else (low, high)
    return Difference(
        mean=float((second - first).sum() / sizes.sum()),
        relative=float(second.sum() / first.sum() - 1),
        interval=interval,
        documents=len(sizes),
        better_share=float((second < first).mean()),
        seed_interval=seeds,
        verdict="same" if np.array_equal(first, second) else _verdict([interval, seeds] if seeds else [interval]),
    )


def of_ledgers(reference: Entry, other: Entry) -> Difference:
    """From the ledgers' sums alone: told from chance only where the two intervals leave a gap, or by several seeds."""
    mean = other.bits_per_byte - reference.bits_per_byte
    seeds = seed_interval(reference, other)
    gap = None
    if reference.interval and other.interval:
        gap = other.interval[0] - reference.interval[1], other.interval[1] - reference.interval[0]
    return Difference(
        mean=mean,
        relative=mean / reference.bits_per_byte,
        interval=None,
        documents=None,
        better_share=None,
        seed_interval=seeds,
        verdict="same" if reference.weights == other.weights else _verdict([seeds or gap]),
    )


def seed_interval(reference: Entry, other: Entry) -> Interval | None:
    """Of 90 %, for the mean difference over seeds; None with fewer than two seeds of either.

    Families with the same seeds read the same data in the same order, and are paired by seed (Student's interval).
    Others get that of Welch, The generalization of "Student's" problem, Biometrika 34 (1947).
    """
    first, second = reference.by_seed, other.by_seed
    if len(first) < 2 or len(second) < 2:
        return None
    from scipy.stats import t as student

    if first.keys() == second.keys():
        differences = [second[seed] - first[seed] for seed in first]
        mean, parts = fmean(differences), [variance(differences) / len(differences)]
        freedom = len(differences) - 1.0
    else:
        samples = [list(first.values()), list(second.values())]
        mean = fmean(samples[1]) - fmean(samples[0])
        parts = [variance(sample) / len(sample) for sample in samples]
        terms = [part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True)]
        freedom = sum(parts) ** 2 / sum(terms) if any(terms) else 1.0
    reach = float(student.ppf(0.95, freedom)) * sum(parts) ** 0.5
    return mean - reach, mean + reach


def _verdict(intervals: Sequence[Interval | None]) -> Verdict:
    """What all intervals say.

    >>> _verdict([(-0.2, -0.1)]), _verdict([(0.1, 0.2), (-0.1, 0.3)]), _verdict([None])
    ('better', 'undecided', 'undecided')
    """
    if all(interval and interval[1] < 0 for interval in intervals):
        return "better"
    return "worse" if all(interval and interval[0] > 0 for interval in intervals) else "undecided"
