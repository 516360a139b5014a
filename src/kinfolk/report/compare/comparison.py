"""Families side by side, as data: what they are, whether they can be compared, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinfolk.errors import KinfolkError
from kinfolk.report.answer import answer
from kinfolk.report.cautions import Caution, cautions
from kinfolk.report.compare.common import held_in_common
from kinfolk.report.compare.corpus import Agreement
from kinfolk.report.compare.differences import Difference
from kinfolk.report.compare.members import Row, rows_of
from kinfolk.report.compare.pairing import Unpaired, differences_of
from kinfolk.report.compare.sides import Build, Side, read_builds, sides_of
from kinfolk.report.compare.specs import FieldDifference, spec_differences
from kinfolk.report.page import named_folders

if TYPE_CHECKING:
    from kinfolk.evaluate.measure import Progress


@dataclass(frozen=True)
class Comparison:
    """Families, the first of which is the reference that the others are held against."""

    sides: tuple[Side, ...]
    rows: tuple[Row, ...]
    agreement: Agreement
    differences: tuple[tuple[Difference | None, ...], ...]
    """By row and family; None for the reference, for what is not there, and for what cannot be compared."""
    not_paired: str
    """Why no member was held against another document by document; empty where one was, or there is none."""
    unpaired: tuple[Unpaired, ...]
    """The members for which that was tried, and could not be done."""
    specs: tuple[FieldDifference, ...]
    cautions: tuple[Caution, ...]
    known: int
    """Members that had been measured before."""

    @property
    def runs(self) -> list[Build]:
        return [build for side in self.sides for build in side.builds]

    @property
    def per_token(self) -> bool:
        """Whether losses per token may be held against each other."""
        return self.agreement.comparable and self.agreement.tokenizer is not False


def compare(folders: Sequence[Path], pairs: bool, progress: "Progress") -> Comparison:
    """Read runs and hold them against the first; with `pairs` their members are measured document by document.

    KinfolkError for fewer than two runs, and for what is no run.
    """
    named = named_folders(folders)
    if len(named) < 2:
        raise KinfolkError(
            f"{len(named)} run to compare", where="RUN", fix="give two runs or more; `kinfolk report` is about one"
        )
    builds = read_builds(named)
    sides = sides_of(builds)
    rows = rows_of(sides)
    common = held_in_common(builds, wanted=bool(rows))
    found = differences_of(sides, rows, common, pairs, progress)
    return Comparison(
        sides=tuple(sides),
        rows=tuple(rows),
        agreement=common.agreement,
        differences=found.table,
        not_paired=found.not_paired,
        unpaired=found.unpaired,
        specs=tuple(spec_differences([_shared_spec(side) for side in sides])),
        cautions=tuple(_cautions(sides, rows, found.deviations)),
        known=found.known,
    )


def _shared_spec(side: Side) -> dict[str, object]:
    """What was asked for, with all seeds."""
    spec = dict(side.builds[0].spec)
    if len(side.builds) > 1 and isinstance(spec.get("recipe"), dict):
        spec["recipe"] = {**spec["recipe"], "seed": ", ".join(str(seed) for seed in side.seeds)}
    return spec


def _cautions(sides: Sequence[Side], rows: Sequence[Row], deviations: Sequence[str]) -> list[Caution]:
    own: list[Caution] = [Caution("", "fault", text) for text in deviations]
    contexts = dict.fromkeys(run.plan.context_length for side in sides for run in side.runs)
    if len(contexts) > 1:
        lengths = " and ".join(f"{length:,}" for length in contexts)
        text = f"Contexts differ ({lengths} tokens), and each family is measured in windows of its own."
        own.append(Caution("", "warning", text))
    own += [
        Caution("", "warning", f"{row.name} does not have the same number of parameters in all families.")
        for row in rows
        if not row.same_size
    ]
    counted = dict.fromkeys(run.plan.counted_parameters for side in sides for run in side.runs)
    if len(counted) > 1:
        own.append(Caution("", "warning", "The N of 6ND counts other parameters in some families; compare matmul."))
    if any(len(side.builds) == 1 for side in sides):
        text = "The intervals over documents do not cover what another seed would have given."
        own.append(Caution("", "note", f"{text} Where a decision hangs on a small difference, build several seeds."))
    of_runs = [caution for side in sides for run in side.runs for caution in cautions([answer(run, [run])])]
    levels = ("fault", "warning", "note")
    return sorted([*own, *of_runs], key=lambda caution: levels.index(caution.level))
