"""Which held-out documents several runs have in common, and what their members make of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.document_bits import document_bits, document_digests
from kinfolk.report.compare.corpus import Agreement, common_documents
from kinfolk.report.compare.differences import Difference, paired, seed_interval
from kinfolk.report.compare.members import Entry
from kinfolk.report.compare.sides import Build

Progress = Callable[[str, int, int], None]

TOLERANCE = 0.002
"""Share by which a member may differ from its ledger when it is measured again, in another precision or elsewhere."""


@dataclass(frozen=True)
class Common:
    """The held-out documents that all runs have, as places among the documents of each run."""

    agreement: Agreement
    places: dict[str, list[int] | None]
    """By name of the run; None for all documents in their order. Empty where there is none in common."""


def common_text(builds: Sequence[Build], found: Agreement) -> Common:
    """What the runs hold out in common; texts are read only where digests of the tokens do not settle it.

    KinfolkError where the data of a run cannot be read.
    """
    if found.text == "same":
        return Common(found, {build.run.name: None for build in builds})
    digests = [document_digests(build.folder) for build in builds]
    places = common_documents(digests)
    count = len(places[0])
    if all(count == len(each) for each in digests):
        agreement = replace(found, text="same text")
    else:
        agreement = replace(found, text="in part" if count else "different", documents=count)
    named: dict[str, list[int] | None] = {
        build.run.name: place for build, place in zip(builds, places, strict=True) if count
    }
    return Common(agreement, named)


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
        """The difference of two members; KinfolkError for what keeps one of them from being measured."""
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
            member = build.folder / path
            if not member.is_dir():
                raise KinfolkError(f"{build.run.name}/{path} is not on disk")
            found, known = document_bits(member, build.folder, self._progress)
            self.known += known
            if abs(found.bits_per_byte / in_ledger - 1) > TOLERANCE:
                self.deviations.append(
                    f"{build.run.name}/{path} has {found.bits_per_byte:.4f} bits per byte when measured again, and "
                    f"{in_ledger:.4f} in the ledger: its weights or data are not those that were measured then."
                )
            places = self._common.places[build.run.name]
            places = list(range(max(found.sizes) + 1)) if places is None else places
            self._bits[key] = (
                np.array([found.bits.get(place, 0.0) for place in places]),
                np.array([found.sizes.get(place, 0) for place in places], dtype=np.int64),
            )
        return self._bits[key]
