"""What members of several families make of each held-out document that the families have in common."""

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.document_bits import document_bits
from kinfolk.evaluate.measure import Progress
from kinfolk.report.compare.common import Common
from kinfolk.report.compare.differences import Difference, paired, seed_interval
from kinfolk.report.compare.members import Entry
from kinfolk.report.compare.sides import Build

TOLERANCE = 0.002
"""Share by which a member may differ from its ledger when it is measured again, in another precision or elsewhere."""


class Measurements:
    """Members measured document by document, each once."""

    def __init__(self, common: Common, progress: Progress) -> None:
        self._common = common
        self._progress = progress
        self._bits: dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        self.known = 0
        """Members that had been measured before."""
        self.deviations: list[str] = []
        """What of the ledgers did not come out again, in words."""

    def difference(self, reference: Entry, other: Entry) -> Difference:
        """The difference of two members; KinfolkError for what keeps one of them from being measured, named in it."""
        first, second = (
            [self._of(build, stage.member.path, stage.member.held_out.bits_per_byte) for build, stage in entry.stages
             if stage.member]
            for entry in (reference, other)
        )  # fmt: skip
        scored = np.all([sizes > 0 for _, sizes in (*first, *second)], axis=0)
        return paired(
            [bits[scored] for bits, _ in first],
            [bits[scored] for bits, _ in second],
            first[0][1][scored],
            seed_interval(reference, other),
        )

    def _of(self, build: Build, path: str, in_ledger: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Bits and bytes (documents,) of the common documents; 0 for those without a token."""
        key = build.run.name, path
        if key not in self._bits:
            member, name = build.folder / path, f"{build.run.name}/{path}"
            if not member.is_dir():
                raise KinfolkError(f"{name} is not on disk")
            try:
                found, known = document_bits(member, build.folder, self._progress)
            except KinfolkError as error:
                raise KinfolkError(f"{name}: {error.problem}", where=error.where, fix=error.fix) from error
            self.known += known
            if abs(found.bits_per_byte / in_ledger - 1) > TOLERANCE:
                self.deviations.append(
                    f"{name} has {found.bits_per_byte:.4f} bits per byte when measured again, and "
                    f"{in_ledger:.4f} in the ledger: its weights or data are not those that were measured then."
                )
            places = self._common.places[build.run.name]
            places = list(range(max(found.sizes) + 1)) if places is None else places
            self._bits[key] = (
                np.array([found.bits.get(place, 0.0) for place in places]),
                np.array([found.sizes.get(place, 0) for place in places], dtype=np.int64),
            )
        return self._bits[key]
