"""From runs to everything that is said about them: the law to trust, the others beside it, and what the runs lack."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.schedule import ensemble
from kinfolk.schedule.features import Units
from kinfolk.schedule.holdout import Errors, Fold, errors, fit_kind, folds
from kinfolk.schedule.kinds import ENSEMBLE, KINDS, SIXTEEN, Kind
from kinfolk.schedule.law import Calibration, FittedRange, HeldOut, KindName, Measured, ScheduleLaw, Settings
from kinfolk.schedule.points import aligned, curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.shapes import NamedSchedule, rates, warmup_of
from kinfolk.schedule.stability import stability
from kinfolk.schedule.targets import Numbers

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many parts are done."""

FEWEST_FOR_SIXTEEN = 4
DEFAULT_NOISE = 0.001
ASSUMED_HALF_WIDTH = 0.02
"""Of ln loss, for one curve: on the curves of arXiv 2503.12811 a law of one decaying curve missed other schedules by up
to 0.017, that of a constant one by 0.03."""
ASSUMED_DIFFERENCE = 0.0033
FEWEST_COMPARISONS = 30
"""A comparison of two schedules is never held for surer than on the 56 public runs, unless so many say so: nine runs
promised 0.13 % and were off by 0.4 %."""
FEWEST_TO_COMPARE = 5
"""Schedules at one peak from which on held-out error chooses: with fewer, a part of them is a different problem."""
SHORT = 5_000
"""Horizons below this many steps have the features' memories scaled to them: a 25th of the longest is their unit."""
PREFERRED = 1.1
"""The ensemble is taken if its error is within this factor of the best: it has the best worst case."""


@dataclass(frozen=True)
class Trial:
    """One kind of law on the runs."""

    kind: Kind
    eligible: bool
    reason: str
    """Why it may be trusted, or why not."""
    numbers: Numbers | None
    """None if the runs were too few for it."""
    seconds: float
    """Processor seconds of the fit."""
    errors: Errors | None
    in_sample: float | None
    """Mean absolute error of final losses that were fitted, in nats."""

    @property
    def held_out_error(self) -> float | None:
        return None if self.errors is None else float(self.errors.absolute.mean())


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
    units = units or _units(finished, findings)
    if abs(offset) > 1e-9:
        findings.append(f"curves are raised by {offset:+.4f}, what final losses differ from their ends")
    _refuse_too_few(finished, runs.source)
    parts = folds(finished, units)
    trials: list[Trial] = []
    for index, each in enumerate(KINDS.values()):
        if progress:
            progress(each.name, index, len(KINDS))
        trials.append(_trial(each, finished, parts, units, {trial.kind.name: trial for trial in trials}))
    chosen, why = _choose(trials, kind, len({run.family for run in finished}))
    assert chosen.numbers is not None
    findings += _lacks(finished, units)
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
        stability=stability(runs.runs),
        cautions=tuple(_lacks(finished, units)),
    )
    if law.calibration.basis == "assumed":
        findings.append("no other schedule could be left out to calibrate an interval: its width is an assumption")
    residuals = tuple((run.name, _loss(run), float(law.predict(run.schedule)[0])) for run in finished)
    return ScheduleFit(runs, law, tuple(trials), why, residuals, offset, tuple(findings))


def _units(runs: Sequence[Run], findings: list[str]) -> Units:
    longest = max(run.steps for run in runs)
    if longest >= SHORT:
        return Units()
    findings.append(
        f"runs are short: the memories of the 16-feature law are scaled to the longest, {longest} steps (not tested "
        "on public runs, which are longer)"
    )
    return Units(steps=longest / 25)


def _refuse_too_few(runs: Sequence[Run], where: str) -> None:
    if len(runs) < FEWEST_FOR_SIXTEEN and not any(len(run.curve_steps) for run in runs):
        raise KinfolkError(
            f"too short: {len(runs)} runs without curves hold no law",
            where=where,
            fix=f"give at least {FEWEST_FOR_SIXTEEN} runs, or a whole curve",
        )


def _trial(kind: Kind, runs: Sequence[Run], parts: Sequence[Fold], units: Units, before: dict[str, Trial]) -> Trial:
    eligible, reason = _eligible(kind, runs)
    if len(runs) == 1 and not eligible:
        return Trial(kind, False, reason, None, 0.0, None, None)
    began = time.process_time()
    try:
        numbers = _members(before) if kind is ENSEMBLE else fit_kind(kind, runs, units)
    except KinfolkError as error:
        return Trial(kind, False, error.problem, None, 0.0, None, None)
    seconds = time.process_time() - began
    # Fits to parts of the runs start where the whole fit ended. A law that is not trusted anyway is not tested.
    found = errors(kind, parts if eligible else (), lambda some: fit_kind(kind, some, units, numbers))
    said = [float(kind.predict(numbers, run.schedule, np.array([run.steps]))[0]) for run in runs]
    in_sample = float(np.mean([abs(value - _loss(run)) for value, run in zip(said, runs, strict=True)]))
    return Trial(kind, eligible, reason, numbers, seconds, found, in_sample)


def _members(before: dict[str, Trial]) -> Numbers:
    """The ensemble of the laws that are fitted already."""
    parts = {name: before[name].numbers for name in ensemble.MEMBERS}
    present = {name: numbers for name, numbers in parts.items() if numbers is not None}
    if len(present) < len(parts):
        raise KinfolkError("a member of it could not be fitted")
    return ensemble.joined(present)


def _eligible(kind: Kind, runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether there is enough to trust a kind of law with, whatever its error."""
    peaks = {run.peak for run in runs}
    families = {run.family for run in runs}
    if len(peaks) > 1 and not kind.tells_peaks:
        return False, f"has no term for the peak, and there are {len(peaks)}"
    if kind is SIXTEEN:
        if len(runs) < FEWEST_FOR_SIXTEEN:
            return False, f"needs at least {FEWEST_FOR_SIXTEEN} runs"
        return True, f"{len(runs)} runs, {len(peaks)} peak{'s' if len(peaks) > 1 else ''}"
    if kind.name == "annealing":
        return True, "four parameters: enough with one curve"
    if len(families) < 2:
        return False, "one shape cannot tell its kernel"
    return True, f"one peak, {len(families)} schedules"


def _choose(trials: Sequence[Trial], kind: KindName | Literal["auto"], families: int) -> tuple[Trial, str]:
    """By the amount of data first, then by the error on runs left out."""
    by_name = {trial.kind.name: trial for trial in trials}
    if kind != "auto":
        asked = by_name[kind]
        if asked.numbers is None:
            raise KinfolkError(f"{kind} cannot be fitted: {asked.reason}", where="--kind", fix="use auto")
        return asked, "asked for"
    able = [trial for trial in trials if trial.eligible and trial.numbers is not None]
    if not able:
        raise KinfolkError("no law can be trusted with these runs", fix="give more runs, or whole curves")
    tested = [trial for trial in able if trial.held_out_error is not None]
    if not tested:
        return able[0], f"{able[0].reason}; nothing could be left out to test it"
    best = min(tested, key=lambda trial: trial.held_out_error or 0.0)
    together = by_name["ensemble"]
    if families < FEWEST_TO_COMPARE and together in tested:
        return (
            together,
            f"{families} schedules at one peak are too few to compare laws by leaving one out, and it has the best "
            "worst case",
        )
    if together in tested and (together.held_out_error or 0.0) <= PREFERRED * (best.held_out_error or 0.0):
        return together, f"error on runs left out within {PREFERRED - 1:.0%} of the best, and the best worst case"
    return best, f"lowest error on runs left out, of {len(tested)} that have enough data ({best.reason})"


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
            groups.setdefault(run.schedule, []).append(_loss(run))
    repeated = [np.array(losses) for losses in groups.values() if len(losses) > 1]
    freedom = sum(len(losses) - 1 for losses in repeated)
    if not freedom:
        return DEFAULT_NOISE, False
    return float(np.sqrt(sum(((losses - losses.mean()) ** 2).sum() for losses in repeated) / freedom)), True


def _lacks(runs: Sequence[Run], units: Units) -> list[str]:
    """What the runs do not have and a ranking would need."""
    found = []
    shapes = {
        run.schedule.shape for run in runs if isinstance(run.schedule, NamedSchedule) and run.schedule.decay_steps
    }
    named = all(isinstance(run.schedule, NamedSchedule) for run in runs)
    families = {run.family for run in runs}
    has_points = any(len(curve_points(run, units)[0]) for run in runs)
    if named and shapes == {"cosine"}:
        found.append(
            "only cosine schedules were fitted: on public runs a law from cosines alone ranks other shapes badly "
            "(rank correlation 0.6 to 0.8); add two decay shares of another shape"
        )
    elif named and len(families) == 1:
        found.append(f"only one schedule shape was fitted ({next(iter(families))}): others are an extrapolation")
    if all(np.all(np.diff(rates(run.schedule)[warmup_of(run.schedule) :]) >= 0) for run in runs):
        found.append("no fitted rate ever falls: nothing can be said of decays")
    if len({run.peak for run in runs}) == 1:
        found.append("only one peak was fitted: nothing can be said of other peaks")
    if len({run.steps for run in runs}) == 1 and not has_points:
        found.append("only one horizon was fitted, without curves: nothing can be said of other horizons")
    if all(run.end_ratio < 0.01 for run in runs) and not has_points:
        found.append("every run ends at a rate of 0: nothing can be said of other ends")
    return found


def _loss(run: Run) -> float:
    assert run.loss is not None
    return run.loss


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
        "curve_offset": fitted.offset,
        "residuals": [
            {"run": name, "loss": loss, "predicted": said, "difference": said - loss}
            for name, loss, said in fitted.residuals
        ],
        "findings": list(fitted.findings),
        "law": law.model_dump(mode="json"),
    }
