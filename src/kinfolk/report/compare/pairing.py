"""Every member held against the first family's: document by document where that can be done, by the ledgers if not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinfolk.errors import KinfolkError
from kinfolk.report.compare.common import Common
from kinfolk.report.compare.differences import Difference, of_ledgers
from kinfolk.report.compare.members import Entry, Row
from kinfolk.report.compare.sides import Side

if TYPE_CHECKING:
    from kinfolk.evaluate.measure import Progress
    from kinfolk.report.compare.measure import Measurements


@dataclass(frozen=True)
class Unpaired:
    """A member that was to be held against the first family's document by document, and could not be."""

    member: str
    family: str
    reason: str


@dataclass(frozen=True)
class Differences:
    """How far the members of all families are from those of the first."""

    table: tuple[tuple[Difference | None, ...], ...]
    """By row and family; None for the reference, for what is not there, and for what cannot be compared."""
    not_paired: str
    """Why no member was held against another document by document; empty where one was, or there is none."""
    unpaired: tuple[Unpaired, ...]
    """The members for which that was tried, and could not be done."""
    deviations: tuple[str, ...]
    """What of the ledgers did not come out again, in words."""
    known: int
    """Members that had been measured before."""


def differences_of(
    sides: Sequence[Side], rows: Sequence[Row], common: Common, pairs: bool, progress: "Progress"
) -> Differences:
    """Paired where that is wanted and possible, of the ledgers where not. What keeps one pair keeps no other one."""
    reason = common.problem if pairs else "--no-pairs was given"
    measured = None
    if rows and len(sides) > 1 and not reason:
        from kinfolk.report.compare.measure import Measurements

        measured = Measurements(common, progress)
    table: list[tuple[Difference | None, ...]] = []
    unpaired: list[Unpaired] = []
    for row in rows:
        line: list[Difference | None] = [None]
        for side, other in zip(sides[1:], row.entries[1:], strict=True):
            reference, difference = row.entries[0], None
            if reference and other:
                difference, problem = _difference(reference, other, measured, common.agreement.comparable)
                unpaired += [Unpaired(row.name, side.name, problem)] if problem else []
            line.append(difference)
        table.append(tuple(line))
    if unpaired and not any(difference and difference.documents for line in table for difference in line):
        reason = "; ".join(dict.fromkeys(each.reason for each in unpaired))
    return Differences(
        table=tuple(table),
        not_paired=reason if rows and len(sides) > 1 else "",
        unpaired=tuple(unpaired),
        deviations=tuple(measured.deviations) if measured else (),
        known=measured.known if measured else 0,
    )


def _difference(
    reference: Entry, other: Entry, measured: "Measurements | None", comparable: bool
) -> tuple[Difference | None, str]:
    """How far two members are apart, and what kept them from being measured, if it was tried."""
    problem = ""
    if measured:
        try:
            return measured.difference(reference, other), ""
        except KinfolkError as error:
            problem = error.problem
    return (of_ledgers(reference, other) if comparable else None), problem
