"""From runs to everything that is said about them: the law to trust, the others beside it, and what the runs lack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.schedule.divergence_scores import LeftOut, left_out_scores, scores_document
from kinfolk.schedule.features import Units
from kinfolk.schedule.holdout import Errors, folds
from kinfolk.schedule.kinds import KINDS, Kind
from kinfolk.schedule.lacks import lacks
from kinfolk.schedule.law import Calibration, FittedRange, HeldOut, KindName, Measured, ScheduleLaw, Settings
from kinfolk.schedule.points import aligned, curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.shapes import NamedSchedule, rates, warmup_of
from kinfolk.schedule.stability import stability
from kinfolk.schedule.trials import FEWEST_FOR_SIXTEEN, Trial, choose, final_loss, trial_of

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many parts are done."""

DEFAULT_NOISE = 0.001
ASSUMED_HALF_WIDTH = 0.02
"""Of ln loss, for one curve: on the curves of arXiv 2503.12811 a law of one decaying curve missed other schedules by up
to 0.017, that of a constant one by 0.03."""
ASSUMED_DIFFERENCE = 0.0033
FEWEST_COMPARISONS = 30
"""A comparison of two schedules is never held for surer than on the 56 public runs, unless so many say so: nine runs
promised 0.13 % and were off by 0.4 %."""
SHORT = 5_000
"""Horizons below this many steps have the features' memories scaled to them: a 25th of the longest is their unit."""


@dataclass(frozen=True)
class ScheduleFit:
    """A law that can predict, and what the runs say of it."""

    runs: Runs
    law: ScheduleLaw
    trials: tuple[Trial, ...]
    why: str
    residuals: tuple[tuple[str, float, float], ...]
    """Name, measured and predicted final loss of every fitted run."""
    offset: float
    """What curves were raised by to meet the final losses, in nats."""
    divergence: tuple[LeftOut, ...]
    """What the prediction of divergence is worth on runs left out; empty where too few of one outcome are there."""
    findings: tuple[str, ...]


def fit_runs(
    runs: Runs,
    kind: KindName | Literal["auto"] = "auto",
    *,
    units: Units | None = None,
    size: float | None = None,
    tokens_per_step: float | None = None,
    progress: Progress | None = None,
) -> ScheduleFit:
    """Fit every kind of law that the runs allow, test each on runs left out, and keep the one to trust, or `kind`.

    `size` and `tokens_per_step` are recorded where the runs do not say them. KinfolkError for too few runs.
    """
    findings = list(runs.findings)
    finished, offset = aligned(runs.finished)
    if units is None:
        units = units_for(finished)
        if units != Units():
            findings.append(
                f"runs are short: the memories of the 16-feature law are scaled to the longest, "
                f"{max(run.steps for run in finished)} steps (not tested on public runs, which are longer)"
            )
    if abs(offset) > 1e-9:
        findings.append(f"curves are raised by {offset:+.4f}, what final losses differ from their ends")
    _refuse_too_few(finished, runs.source)
    parts = folds(finished, units)
    trials: list[Trial] = []
    for index, each in enumerate(KINDS.values()):
        if progress:
            progress(each.name, index, len(KINDS))
        trials.append(trial_of(each, finished, parts, units, {trial.kind.name: trial for trial in trials}))
    chosen, why = choose(trials, kind, len({run.family for run in finished}))
    assert chosen.numbers is not None
    missing = lacks(finished, units)
    findings += missing
    noise, repeats = _noise(finished)
    law = ScheduleLaw(
        kind=_name(chosen.kind),
        numbers=chosen.numbers,
        source=runs.source,
        fitted=_range(finished, units, size or runs.size, tokens_per_step or runs.tokens_per_step),
        calibration=_calibration(chosen.errors),
        noise=noise,
        noise_basis="repeats" if repeats else "assumed",
        held_out=tuple(
            HeldOut(
                kind=_name(trial.kind),
                mean_absolute_error=trial.held_out_error,
                eligible=trial.eligible,
                reason=trial.reason,
            )
            for trial in trials
        ),
        measured=tuple(
            Measured(settings=Settings.of(run.schedule), loss=run.loss)
            for run in finished
            if isinstance(run.schedule, NamedSchedule) and run.loss is not None
        ),
        stability=stability([replace(run, size=run.size or size) for run in runs.runs]),
        cautions=tuple(missing),
    )
    if law.calibration.basis == "assumed":
        findings.append("no other schedule could be left out to calibrate an interval: its width is an assumption")
    residuals = tuple((run.name, final_loss(run), float(law.predict(run.schedule)[0])) for run in finished)
    scores = left_out_scores(runs.runs)
    return ScheduleFit(runs, law, tuple(trials), why, residuals, offset, scores, tuple(findings))


def units_for(runs: Sequence[Run]) -> Units:
    """The units of the features, by the longest of the runs."""
    longest = max(run.steps for run in runs)
    return Units() if longest >= SHORT else Units(steps=longest / 25)


def _refuse_too_few(runs: Sequence[Run], where: str) -> None:
    if len(runs) < FEWEST_FOR_SIXTEEN and not any(len(run.curve_steps) for run in runs):
        raise KinfolkError(
            f"too short: {len(runs)} runs without curves hold no law",
            where=where,
            fix=f"give at least {FEWEST_FOR_SIXTEEN} runs, or a whole curve",
        )


def _calibration(found: Errors | None) -> Calibration:
    if found is None:
        return Calibration(half_width=ASSUMED_HALF_WIDTH, difference=ASSUMED_DIFFERENCE, basis="assumed", errors=0)
    sizes = {what: np.abs(values) for what, values in found.residuals.items()}
    half = float(np.quantile(np.concatenate(list(sizes.values())), 0.9))
    # The end of a curve is easier than another schedule.
    single = "end of the curve" in sizes
    half = max(half, ASSUMED_HALF_WIDTH if single else 1e-6)
    return Calibration(
        half_width=half,
        difference=_difference(found),
        basis="assumed" if single else "left-out runs",
        errors=sum(len(values) for values in sizes.values()),
        medians={what: float(np.median(values)) for what, values in sizes.items()},
        coverage={what: float((values <= half).mean()) for what, values in sizes.items()},
    )


def _difference(found: Errors) -> float:
    """Half-width of a comparison of two schedules, of ln loss."""
    measured = float(np.quantile(found.differences, 0.9)) if len(found.differences) else 0.0
    return measured if len(found.differences) >= FEWEST_COMPARISONS else max(measured, ASSUMED_DIFFERENCE)


def _range(runs: Sequence[Run], units: Units, size: float | None, tokens_per_step: float | None) -> FittedRange:
    named = [run.schedule for run in runs if isinstance(run.schedule, NamedSchedule)]
    fractions = [schedule.decay_fraction for schedule in named if schedule.decay_steps]
    ends, horizons = [run.end_ratio for run in runs], [run.steps for run in runs]
    for run in runs:
        steps, _ = curve_points(run, units)
        if len(steps):
            ends += (rates(run.schedule)[steps - 1] / run.peak).tolist()
            horizons += steps.tolist()
    peaks, warmups = [run.peak for run in runs], [warmup_of(run.schedule) for run in runs]
    return FittedRange(
        runs=len(runs),
        peak_lr=(min(peaks), max(peaks)),
        steps=(min(horizons), max(horizons)),
        warmup_steps=(min(warmups), max(warmups)),
        decay_fraction=(min(fractions), max(fractions)) if fractions else None,
        end_ratio=(min(ends), max(ends)),
        shapes=tuple(dict.fromkeys(schedule.shape for schedule in named if schedule.decay_steps)),
        size=size,
        tokens_per_step=tokens_per_step,
    )


def _noise(runs: Sequence[Run]) -> tuple[float, bool]:
    """Standard deviation of the loss of repeats, pooled; an assumption without repeats."""
    groups: dict[NamedSchedule, list[float]] = {}
    for run in runs:
        if isinstance(run.schedule, NamedSchedule):
            groups.setdefault(run.schedule, []).append(final_loss(run))
    repeated = [np.array(losses) for losses in groups.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in repeated)
    if not freedom:
        return DEFAULT_NOISE, False
    return float(np.sqrt(sum(((losses - losses.mean()) ** 2).sum() for losses in repeated) / freedom)), True


def _name(kind: Kind) -> KindName:
    return kind.name  # type: ignore[return-value]


def fit_document(fitted: ScheduleFit) -> dict[str, Any]:
    """A fit as JSON."""
    law = fitted.law
    return {
        "kind": law.kind,
        "why": fitted.why,
        "rows": len(fitted.residuals),
        "numbers": law.numbers,
        "laws": [
            {
                "kind": trial.kind.name,
                "formula": trial.kind.formula,
                "source": trial.kind.source,
                "parameters": trial.kind.parameters,
                "eligible": trial.eligible,
                "reason": trial.reason,
                "held_out_error": trial.held_out_error,
                "in_sample_error": trial.in_sample,
                "seconds": trial.seconds,
            }
            for trial in fitted.trials
        ],
        "mean_absolute_error": float(np.mean([abs(said - loss) for _, loss, said in fitted.residuals])),
        "calibration": law.calibration.model_dump(mode="json"),
        "noise": law.noise,
        "tie": law.tie,
        "fitted": law.fitted.model_dump(mode="json"),
        "stability": law.stability.model_dump(mode="json"),
        "divergence": scores_document(fitted.divergence),
        "curve_offset": fitted.offset,
        "residuals": [
            {"run": name, "loss": loss, "predicted": said, "difference": said - loss}
            for name, loss, said in fitted.residuals
        ],
        "findings": list(fitted.findings),
        "law": law.model_dump(mode="json"),
    }
