"""Members of several families matched with each other, and what each reached and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kinfolk.report.compare.sides import Build, Side
from kinfolk.report.events import HeldOut
from kinfolk.report.records import Flops
from kinfolk.report.run import StageRun


@dataclass(frozen=True)
class Entry:
    """One member in one family: its finished stages, one for each run of the family that has it."""

    stages: tuple[tuple[Build, StageRun], ...]

    @property
    def scores(self) -> list[HeldOut]:
        return [stage.member.held_out for _, stage in self.stages if stage.member]

    @property
    def by_seed(self) -> dict[int | str | None, float]:
        """Bits per byte of every seed."""
        return {build.seed: stage.member.held_out.bits_per_byte for build, stage in self.stages if stage.member}

    @property
    def weights(self) -> list[str]:
        """SHA-256 of the weights."""
        return [stage.member.sha256 for _, stage in self.stages if stage.member]

    @property
    def loss(self) -> float:
        return fmean(score.loss for score in self.scores)

    @property
    def bits_per_byte(self) -> float:
        return fmean(score.bits_per_byte for score in self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Over documents, of one run; None for several, and where the ledger has none."""
        score = self.scores[0]
        if len(self.scores) > 1 or score.bits_per_byte_low is None or score.bits_per_byte_high is None:
            return None
        return score.bits_per_byte_low, score.bits_per_byte_high

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return stdev(score.bits_per_byte for score in self.scores) if len(self.scores) > 1 else None

    @property
    def flops(self) -> Flops:
        """Of the stage and all that it was trained as before."""
        lineages = [_lineage(build, stage) for build, stage in self.stages]
        return Flops(
            six_nd=fmean(sum(part.flops.six_nd for part in lineage) for lineage in lineages),
            matmul=fmean(sum(part.flops.matmul for part in lineage) for lineage in lineages),
        )

    @property
    def tokens(self) -> float:
        return fmean(
            sum(part.finished.tokens for part in _lineage(build, stage) if part.finished)
            for build, stage in self.stages
        )

    @property
    def seconds(self) -> float:
        return fmean(
            sum(part.finished.seconds for part in _lineage(build, stage) if part.finished)
            + sum(part.growth.seconds for part in _lineage(build, stage) if part.growth)
            for build, stage in self.stages
        )

    @property
    def parameters(self) -> float:
        return self.stages[0][1].plan.parameters.total


@dataclass(frozen=True)
class Row:
    """A member and what the families made of it."""

    name: str
    entries: tuple[Entry | None, ...]
    """In the order of the families; None where a family does not have it, or not yet."""

    @property
    def found(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry)

    @property
    def same_size(self) -> bool:
        return len({entry.parameters for entry in self.found}) <= 1


def rows_of(sides: Sequence[Side]) -> list[Row]:
    """Finished members by name, small to large; a name that no other family has joins a member of the same size."""
    columns = [_finished(side) for side in sides]
    names = dict.fromkeys(name for column in columns for name in column)
    alone = [name for name in names if sum(name in column for column in columns) == 1]
    rows: list[tuple[str, list[Entry | None]]] = []
    for name in [*(name for name in names if name not in alone), *alone]:
        entries = [column.get(name) for column in columns]
        twin = next((row for _, row in rows if name in alone and _fits(row, entries)), None)
        if twin is None:
            rows.append((name, entries))
        else:
            twin[:] = [old or new for old, new in zip(twin, entries, strict=True)]
    found = [Row(name, tuple(entries)) for name, entries in rows]
    return sorted(found, key=lambda row: min(entry.parameters for entry in row.found))


def _finished(side: Side) -> dict[str, Entry]:
    found: dict[str, list[tuple[Build, StageRun]]] = {}
    for build in side.builds:
        for stage in build.run.stages:
            if stage.member:
                found.setdefault(stage.member.member, []).append((build, stage))
    return {name: Entry(tuple(stages)) for name, stages in found.items()}


def _fits(row: Sequence[Entry | None], entries: Sequence[Entry | None]) -> bool:
    """Whether entries of another name are of the row's size, in families that the row has nothing of."""
    sizes = {entry.parameters for entry in (*row, *entries) if entry}
    return len(sizes) == 1 and not any(old and new for old, new in zip(row, entries, strict=True))


def _lineage(build: Build, stage: StageRun) -> list[StageRun]:
    return [*build.run.ancestors(stage), stage]
