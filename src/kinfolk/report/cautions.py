"""What a reader should know before believing a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kinfolk.report import numbers
from kinfolk.report.answer import Answer, machines
from kinfolk.report.consistency import alike
from kinfolk.report.events import ForecastChecked, StageResumed
from kinfolk.report.metrics import finite
from kinfolk.report.outlooks import StageOutlooks, outlooks_of
from kinfolk.report.run import Run, StageRun
from kinfolk.report.spikes import spikes

MANY_EPOCHS = 4.0
"""Up to here repeated data is nearly as good as new (Muennighoff et al., arXiv 2305.16264, section 6)."""


@dataclass(frozen=True)
class Caution:
    run: str
    level: Literal["fault", "warning", "note"]
    text: str


def cautions(answers: Sequence[Answer]) -> list[Caution]:
    """Every caution about the runs, the gravest first."""
    found: list[Caution] = []
    for given in answers:
        found += _of_run(given.run)
        for twin in given.twins:
            if not twin.comparable:
                text = f"{twin.member} and its twin in {twin.baseline} were measured on different held-out text; their"
                found.append(Caution(given.run.name, "fault", f"{text} figures cannot be compared."))
            if not twin.same_budget:
                text = (
                    f"The twin of {twin.member} in {twin.baseline} was not trained on the tokens that this run counts"
                )
                found.append(Caution(given.run.name, "warning", f"{text} for the member alone."))
    return sorted(found, key=lambda caution: ("fault", "warning", "note").index(caution.level))


def _of_run(run: Run) -> list[Caution]:
    found: list[Caution] = []
    row_of = {row.stage.plan.name: row for row in outlooks_of(run)}

    def add(level: Literal["fault", "warning", "note"], text: str) -> None:
        found.append(Caution(run.name, level, text))

    for stage in run.stages:
        name = stage.plan.name
        if stage.diverged:
            add("fault", f"Stage {name} diverged at step {stage.diverged.step:,}: {stage.diverged.fault.rstrip(',')}.")
        if stage.metrics.not_finite:
            figures = _count(stage.metrics.not_finite, "figure")
            add("fault", f"Not a finite number in the metrics of stage {name}: {figures}.")
        if leaps := spikes(finite(stage.metrics.train or stage.metrics.patch)):
            add("warning", _leaps(name, leaps))
        if stage.state == "unfinished":
            add(
                "warning", f"Stage {name} is not finished: {stage.steps_done:,} of {stage.plan.steps:,} steps are done."
            )
        elif stage.state == "not started":
            add("warning", f"Stage {name} has not been started.")
        elif stage.plan.member and not stage.member:
            add("warning", f"Stage {name} is trained, but member {stage.plan.member} has not been evaluated and saved.")
        check = stage.growth.verification if stage.growth else None
        if check and check.passed is False:
            difference = numbers.small(check.float64.max_abs_logit_difference)
            add(
                "fault",
                f"The growth into {name} claims to keep the function and did not: logits differ by up to {difference} "
                "in float64.",
            )
        elif check and check.claims_preservation and check.passed is None:
            add("warning", f"The growth into {name} claims to keep the function; the ledger has no verdict on it.")
        elif stage.plan.source.kind == "grow" and stage.state != "not started" and not check:
            add("warning", f"The growth into {name} was not checked.")
        if stage.forecast and stage.forecast.inside is False:
            add("warning", _missed(stage.forecast))
        if stage.forecast is None and (outside := _outside_own_curve(row_of.get(name))):
            add("note", outside)
        if stage.interruptions:
            add("note", _interruptions(stage))
        epochs = _epochs(run, stage)
        if epochs > MANY_EPOCHS:
            add(
                "warning",
                f"{name} has read its training data {epochs:.1f} times over, ancestors included. Beyond about "
                f"{MANY_EPOCHS:.0f} times, repeated data teaches less than new data.",
            )
        if stage.metrics.damaged:
            add("note", f"{stage.metrics.damaged} damaged lines in the metrics of stage {name} were left out.")
    for warning in run.plan.warnings:
        add("note", f"Said of the plan before the build: {warning}.")
    known = alike(run)
    if known and known.stale:
        add("warning", "What kinfolk consistency has kept is about other weights than the run's; it is left out.")
    if run.damaged_lines:
        which = ", ".join(str(number) for number in run.damaged_lines)
        add("note", f"The ledger could not be read in line {which}, which a killed process can leave behind.")
    if len(machines(run)) > 1:
        add(
            "warning",
            "The build used several machines, or numbers of processes or threads; its seconds add up unlike things.",
        )
    versions = {tuple(sorted((key, str(value)) for key, value in build.versions.items())) for build in run.builds}
    if len(versions) > 1:
        add("warning", "The build went on with other software versions than it was begun with; see the environment.")
    if not run.complete and all(stage.finished for stage in run.stages):
        add("note", "Every stage is trained, but the ledger does not record the end of the build.")
    return found


def _missed(check: ForecastChecked) -> str:
    expected = check.forecast
    between = f"{expected.low:.3f} to {expected.high:.3f}" if expected and expected.low and expected.high else "unknown"
    better = expected is not None and expected.low is not None and check.measured < expected.low
    meaning = "held-out text may be in the training data" if better else "something in its training may be wrong"
    return (
        f"{check.stage} ended at {check.measured:.3f} {check.unit}, outside the {between} that law {check.law} had "
        f"forecast: {meaning}, or the law does not hold here."
    )


def _leaps(name: str, steps: list[int]) -> str:
    where = ", ".join(f"{step:,}" for step in steps[:5]) + (", and later" if len(steps) > 5 else "")
    often = "once" if len(steps) == 1 else f"{len(steps)} times"
    return (
        f"The training loss of stage {name} leapt {often}, seven standard deviations above what came before: "
        f"step{'s' if len(steps) > 1 else ''} {where}. See whether it came down again."
    )


def _outside_own_curve(row: StageOutlooks | None) -> str | None:
    """Of a stage that ended outside the interval that its own curve gave half-way."""
    said = row.middle if row else None
    if row is None or said is None or row.came is None or said.forecast_low <= row.came <= said.forecast_high:
        return None
    return (
        f"{row.stage.plan.name} ended at a quick held-out loss of {row.came:.3f}, outside the "
        f"{said.forecast_low:.3f} to {said.forecast_high:.3f} that its own curve had forecast at "
        f"{100 * row.share(said):.0f} % of its steps."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _interruptions(stage: StageRun) -> str:
    resumes = [event.step for event in stage.interruptions if isinstance(event, StageResumed)]
    stops = len(stage.interruptions) - len(resumes)
    parts = []
    if stops:
        parts.append(f"was interrupted {_times(stops)}")
    if resumes:
        steps = ", ".join(f"{step:,}" for step in resumes)
        parts.append(f"was resumed {_times(len(resumes))}, at step {steps}")
    return f"Stage {stage.plan.name} {' and '.join(parts)}."


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _epochs(run: Run, stage: StageRun) -> float:
    """How often the training data was read up to here: the data's order goes on through the ancestors."""
    own = stage.finished.epochs if stage.finished else 0.0
    if run.data is None or run.data.train_tokens <= 0:
        return own
    tokens = sum(part.plan.share_after(part.steps_done) * part.plan.tokens for part in (*run.ancestors(stage), stage))
    return max(own, tokens / run.data.train_tokens) if stage.state != "not started" else 0.0
