"""What growth draws at random: entries of units that are copied from nothing, and noise that readers do not see.

Every draw is a function of a seed and the tensor's name alone, so that growth gives the same bytes tensor by tensor, in
any order, and in blocks of rows of any size. Draws are normal: one of 65,536 equally likely quantiles each, which two
bytes of a random stream choose.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.growth.rows import LONG_ENOUGH, runs

LEVELS = 1 << 16


class Draws:
    """A stream of standard normal draws, told apart by seed and name; rows are drawn one after the other."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self._stream = np.random.SFC64(np.frombuffer(digest, dtype="<u4"))

    def rows(self, rows: int, columns: int) -> Tensor:
        """The next rows, (rows, columns) in float32; a row takes whole words of 64 bits, so blocks make no odds."""
        words = -(-columns // 4)
        numbers = self._stream.random_raw(rows * words).astype("<u8", copy=False).view("<u2")
        # 32-bit places are found faster than those of 64 bits that numpy's own take makes of them.
        places = torch.from_numpy(numbers.astype(np.int32))
        return _quantiles().index_select(0, places).view(rows, 4 * words)[:, :columns]


@dataclass(frozen=True)
class Copies:
    """The copies along an axis, by their number among the copies of their unit."""

    first: "Columns"
    """Units of the child that are the first of several copies."""
    further: tuple[tuple["Columns", "Columns"], ...]
    """Of the second copies, the third, ...: units of the child, and where their first copy stands in `first`."""
    partners: "Columns"
    """The first copies of the units of the second copies, in the order of those."""
    number: Tensor
    """How many copies each of `first` has in all, float64."""

    @classmethod
    def of(cls, index: Tensor, counts: Tensor, occurrence: Tensor) -> "Copies":
        """From an axis's index map, copies of each unit, and the number of each among its unit's copies (from 1)."""
        first = ((occurrence == 1) & (counts > 1)).nonzero().flatten()
        place = torch.full((int(index.max()) + 1,), -1)
        place[index[first]] = torch.arange(len(first))
        further = []
        for number in range(2, int(occurrence.max()) + 1):
            units = ((occurrence == number) & (counts > 1)).nonzero().flatten()
            further.append((Columns(units), Columns(place[index[units]])))
        partners = first[further[0][1].index] if further else first
        return cls(Columns(first), tuple(further), Columns(partners), counts[first])


class ZeroSumNoise:
    """Noise on the columns of a matrix that sums to zero over the copies of every unit, row by row.

    It is distributed as independent draws of standard deviation `scale` less their mean over the c copies. The copies
    k > 1 have a draw z_k each, with the sum S: copy k gets z_k - S (1 - 1/sqrt(c)) / (c - 1), and the first -S/sqrt(c).
    """

    def __init__(self, copies: Copies, scale: float, seed: int, name: str, *, power_kept: bool = False) -> None:
        """With `power_kept` the noise has the standard deviation `scale` after the mean is taken away."""
        self._copies = copies
        count = copies.number
        factor = scale * (count / (count - 1)).sqrt() if power_kept else torch.full_like(count, scale)
        self._own = factor
        self._first = -factor / count.sqrt()
        self._only = self._first[copies.further[0][1].index] if copies.further else self._first
        self._shared = -factor * (1 - 1 / count.sqrt()) / (count - 1)
        self._draws = [Draws(seed, f"{name}: copy {number}") for number in range(2, 2 + len(copies.further))]

    def add_to(self, grown: Tensor) -> None:
        """Change the next rows of the child's matrix, (rows, units), in place."""
        copies, rows = self._copies, len(grown)
        if len(copies.further) == 1:
            # Two copies of each at most: z / sqrt(2) and -z / sqrt(2).
            second, _ = copies.further[0]
            noise = self._next(0, rows, grown).mul_(self._only.to(grown))
            copies.partners.add(grown, noise)
            second.add(grown, noise.neg_())
            return
        total = grown.new_zeros(rows, len(copies.first))
        drawn = []
        for number, (_, place) in enumerate(copies.further):
            drawn.append(self._next(number, rows, grown))
            place.add(total, drawn[-1])
        copies.first.add(grown, total * self._first.to(grown))
        total.mul_(self._shared.to(grown))
        for (units, place), noise in zip(copies.further, drawn, strict=True):
            noise.mul_(self._own[place.index].to(grown))
            units.add(grown, noise.add_(total.index_select(1, place.index.to(grown.device))))

    def _next(self, number: int, rows: int, like: Tensor) -> Tensor:
        return self._draws[number].rows(rows, len(self._copies.further[number][0])).to(like)


class ExpertNoise:
    """Noise on one copy of an expert's last product, which sums to zero over the copies, as in `ZeroSumNoise`."""

    def __init__(self, copy: int, copies: int, scale: float, seed: int, name: str, *, power_kept: bool = False) -> None:
        """Of the copy number `copy` (from 0)."""
        self._copy, self._copies = copy, copies
        self._scale = scale * (copies / (copies - 1)) ** 0.5 if power_kept else scale
        self._draws = [Draws(seed, f"{name}: expert copy {number}") for number in range(1, copies)]

    def add_to(self, grown: Tensor) -> None:
        """Change the next rows of the child's matrix in place."""
        total, own = torch.zeros_like(grown), None
        for number, draws in enumerate(self._draws, 1):
            drawn = draws.rows(*grown.shape).to(grown)
            total += drawn
            own = drawn if number == self._copy else own
        root = self._copies**0.5
        if own is None:
            grown.sub_(total, alpha=self._scale / root)
        else:
            grown.add_(own, alpha=self._scale).sub_(total, alpha=self._scale * (1 - 1 / root) / (self._copies - 1))


def deviation(mean: float, mean_square: float, name: str) -> float:
    """Standard deviation, rounded so that it does not depend on the order in which its parts were added up."""
    if not math.isfinite(mean) or not math.isfinite(mean_square):
        raise KinfolkError(f"{name} holds values that are not finite", fix="grow from an earlier checkpoint")
    return float(f"{math.sqrt(max(0.0, mean_square - mean**2)):.6g}")


class Columns:
    """Some columns of a matrix, each of them once."""

    def __init__(self, index: Tensor) -> None:
        self.index = index
        pieces = runs(index)
        self._pieces = pieces if LONG_ENOUGH * len(pieces) <= len(index) else None

    def __len__(self) -> int:
        return len(self.index)

    def add(self, matrix: Tensor, values: Tensor) -> None:
        """Add values, one column for each, in place."""
        if self._pieces is None:
            matrix.index_add_(1, self.index.to(matrix.device), values)
            return
        for start, column, length in self._pieces:
            matrix[:, column : column + length].add_(values[:, start : start + length])


@cache
def _quantiles() -> Tensor:
    """The normal quantiles at the middles of equally likely intervals, scaled to a variance of one."""
    levels = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    quantiles = torch.special.ndtri(levels)
    table: Tensor = (quantiles / quantiles.square().mean().sqrt()).float()
    return table
