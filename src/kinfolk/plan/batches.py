"""Batch-size warm-up: the first batches of a stage are taken in parts, an optimizer step each.

Small batches are as good as large ones, token for token, up to a critical size, which is near 0 at initialisation and
grows with the tokens read (Merrill et al., arXiv 2505.23971; about as their square root, Zhang et al., arXiv
2410.21676). So training may begin with small steps, which double as the critical size does.

A warm-up only divides batches: which tokens a stage reads, in which order, and when, stays as it is without one. The
learning rate is a function of the tokens read, counted in whole batches. In a step of 1/p of a batch it is 1/sqrt(p) of
that, which keeps the noise of Adam's steps the same (so do arXiv 2505.23971 and Falcon Mamba, arXiv 2410.05355).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Some batches in a row, each taken in equal parts."""

    batches: int
    parts: int

    @property
    def steps(self) -> int:
        return self.batches * self.parts


@dataclass(frozen=True)
class Part:
    """What one optimizer step reads: part `index` (from 0) of `parts` of a whole batch (from 0)."""

    batch: int
    index: int
    parts: int

    @property
    def begin(self) -> float:
        """Whole batches read before it."""
        return self.batch + self.index / self.parts

    def before(self, of_batch: int) -> int:
        """So many rows or tokens of every batch: how many were read before it."""
        return (self.batch * self.parts + self.index) * of_batch // self.parts


def part_at(warmup: Sequence[Stretch], step: int) -> Part:
    """What optimizer step `step` (from 0) of a stage reads.

    >>> [part_at([Stretch(batches=2, parts=2)], step).begin for step in range(6)]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
    """
    batch = 0
    for stretch in warmup:
        if step < stretch.steps:
            return Part(batch + step // stretch.parts, step % stretch.parts, stretch.parts)
        step -= stretch.steps
        batch += stretch.batches
    return Part(batch + step, 0, 1)


def doubling(batches: float, parts: int) -> tuple[Stretch, ...]:
    """A warm-up over so many batches, from steps of 1 / `parts` of a batch (a power of two).

    The step's size doubles whenever four times the tokens are read, as the square root does.

    >>> doubling(32, parts=4)
    (Stretch(batches=8, parts=4), Stretch(batches=24, parts=2))
    """
    stretches: list[Stretch] = []
    done = 0
    while parts > 1:
        end = round(batches / (parts // 2) ** 2)
        if end > done:
            stretches.append(Stretch(end - done, parts))
        done = max(done, end)
        parts //= 2
    return tuple(stretches)
