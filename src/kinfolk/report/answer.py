"""The answer a reader came for: what a run cost, what it saved, and whether its members are as good as twins alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kinfolk.report.events import MemberFinished
from kinfolk.report.records import Flops
from kinfolk.report.run import Run, StageRun

Verdict = Literal["better", "equal", "worse"]


@dataclass(frozen=True)
class Cost:
    """What a run costs against training each of its members alone."""

    spent: Flops
    total: Flops
    """Of the whole plan; the ledger's own sum once every stage is finished."""
    alone: Flops
    seconds: float
    alone_seconds: float | None
    """Measured by the baseline; None where there is none to compare with."""
    no_seconds: str
    """Why the seconds were not compared, or empty."""

    @property
    def saving(self) -> Flops:
        return Flops(six_nd=1 - self.total.six_nd / self.alone.six_nd, matmul=1 - self.total.matmul / self.alone.matmul)

    @property
    def seconds_saving(self) -> float | None:
        return 1 - self.seconds / self.alone_seconds if self.alone_seconds else None


@dataclass(frozen=True)
class Twin:
    """One member beside the same member trained alone in another run."""

    member: str
    ours: MemberFinished
    theirs: MemberFinished
    baseline: str
    comparable: bool
    """False where the two were not measured on the same held-out text."""
    same_budget: bool
    """Whether the twin was trained on the tokens that our plan counts for this member alone."""

    @property
    def difference(self) -> float:
        """Relative difference in bits per byte; negative is better than the twin."""
        return self.ours.held_out.bits_per_byte / self.theirs.held_out.bits_per_byte - 1

    @property
    def apart(self) -> bool:
        """Whether the two intervals leave a gap between them."""
        ours, theirs = self.ours.held_out, self.theirs.held_out
        if None in (ours.bits_per_byte_low, ours.bits_per_byte_high, theirs.bits_per_byte_low):
            return False
        assert ours.bits_per_byte_low is not None and ours.bits_per_byte_high is not None
        assert theirs.bits_per_byte_low is not None
        if theirs.bits_per_byte_high is None:
            return False
        return ours.bits_per_byte_high < theirs.bits_per_byte_low or ours.bits_per_byte_low > theirs.bits_per_byte_high

    @property
    def verdict(self) -> Verdict:
        """`worse` only where the intervals are apart; a smaller shortfall is `equal` as far as was measured."""
        if self.difference <= 0:
            return "better"
        return "worse" if self.apart else "equal"


@dataclass(frozen=True)
class Answer:
    """The first section of the page, for one run."""

    run: Run
    cost: Cost
    baselines: tuple[Run, ...]
    twins: tuple[Twin, ...]
    quality: Literal["baseline", "not measured", "waiting", "yes", "undecided", "no", "not comparable"]
    unmatched: tuple[str, ...]
    """Finished members of this run without a finished twin in a baseline that was given."""


def answer(run: Run, runs: Sequence[Run]) -> Answer:
    """What `run` achieved, seen beside the independent runs of the same family among `runs`."""
    baselines = tuple(
        other for other in runs if other is not run and other.is_baseline and other.plan.family == run.plan.family
    )
    twins: tuple[Twin, ...] = ()
    if not run.is_baseline:
        pairs = [_twin(stage, baseline) for stage in run.member_stages for baseline in baselines]
        twins = tuple(twin for twin in pairs if twin)
    matched = {twin.member for twin in twins}
    unmatched = tuple(member.member for member in run.members if member.member not in matched)
    return Answer(run, _cost(run, baselines), baselines, twins, _quality(run, baselines, twins, unmatched), unmatched)


def _quality(
    run: Run, baselines: tuple[Run, ...], twins: tuple[Twin, ...], unmatched: tuple[str, ...]
) -> Literal["baseline", "not measured", "waiting", "yes", "undecided", "no", "not comparable"]:
    if run.is_baseline:
        return "baseline"
    if not baselines:
        return "not measured"
    if any(not twin.comparable for twin in twins):
        return "not comparable"
    if any(twin.verdict == "worse" for twin in twins):
        return "no"
    if unmatched or len(run.members) < len(run.member_stages):
        return "waiting"
    return "yes" if all(twin.verdict == "better" for twin in twins) else "undecided"


def _twin(stage: StageRun, baseline: Run) -> Twin | None:
    if stage.member is None:
        return None
    for other in baseline.member_stages:
        same_size = other.plan.parameters.total == stage.plan.parameters.total
        if other.plan.member == stage.plan.member and same_size and other.member:
            ours, theirs = stage.member.held_out, other.member.held_out
            return Twin(
                member=stage.member.member,
                ours=stage.member,
                theirs=other.member,
                baseline=baseline.name,
                comparable=ours.bytes == theirs.bytes,
                same_budget=stage.plan.alone is None or stage.plan.alone.tokens == other.plan.tokens,
            )
    return None


def _cost(run: Run, baselines: tuple[Run, ...]) -> Cost:
    trained = all(stage.finished for stage in run.stages)
    alone_seconds, reason = _alone_seconds(run, baselines)
    return Cost(
        spent=run.spent,
        total=run.spent if trained else run.plan.total,
        alone=run.plan.independent,
        seconds=run.training_seconds + run.growing_seconds,
        alone_seconds=alone_seconds,
        no_seconds=reason,
    )


def _alone_seconds(run: Run, baselines: tuple[Run, ...]) -> tuple[float | None, str]:
    if not baselines:
        return None, "no run of each member alone was given"
    if not all(stage.finished for stage in run.stages):
        return None, "this run is not finished"
    for baseline in baselines:
        if not all(stage.finished for stage in baseline.stages):
            reason = f"{baseline.name} is not finished"
        elif machines(run) != machines(baseline):
            reason = f"{baseline.name} ran on another machine, or with other processes or threads"
        elif {stage.plan.member for stage in run.member_stages} != {stage.plan.member for stage in baseline.stages}:
            reason = f"{baseline.name} has other members"
        else:
            return baseline.training_seconds, ""
    return None, reason


def machines(run: Run) -> list[str]:
    """Descriptions of the machines that a run was built on, each once."""
    found: list[str] = []
    for build in run.builds:
        text = ", ".join(f"{key} {value}" for key, value in build.machine.items())
        if text and text not in found:
            found.append(text)
    return found
