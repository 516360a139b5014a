"""Schedule laws and the divergence predictor on the sweep of benchmarks/schedule_sweep.py, which nobody has tuned to.

    python benchmarks/own_schedules.py

Reads the tables of benchmarks/schedule_sweep; two minutes. Splits, scores and what counts as a hit were fixed before
the first run of the sweep was made.
"""

import csv
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import spearmanr

from kinfolk.laws.tables import matching, table_rows
from kinfolk.schedule.divergence_scores import left_out_scores
from kinfolk.schedule.features import Units
from kinfolk.schedule.fitted import fit_runs
from kinfolk.schedule.labels import with_high_losses
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.run import Run
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.settings import settings_runs
from kinfolk.schedule.shapes import Array, NamedSchedule

TABLE = Path(__file__).parent / "schedule_sweep" / "runs.csv"
HIGHER_PEAKS = TABLE.with_name("higher_peaks.csv")
SHORTEST, SHORT, LONG = 100, 500, 1000


def sweep() -> list[Run]:
    """The runs of the grid `schedules`; a setting that was repeated counts as the first of its runs."""
    rows = matching(table_rows(TABLE), {"grid": "schedules", "seed": "0"}, str(TABLE))
    return settings_runs(rows, TABLE)[0]


def high_peaks() -> list[Run]:
    """The runs of the grid `stability`, with peaks of 1 and more, which tables of users may not have."""
    rows: list[dict[str, str]] = []
    for table in (TABLE, HIGHER_PEAKS):
        with open(table, newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["grid"] == "stability"]
    runs = []
    for row in rows:
        schedule = NamedSchedule(
            steps=int(row["steps"]),
            peak=float(row["peak_lr"]),
            shape="linear",
            warmup_steps=int(row["warmup_steps"]),
            warmup_from=float(row["warmup_from"]),
            decay_fraction=float(row["decay_fraction"]),
        )
        stopped = int(row["stopped_at"]) if row["stopped_at"] else None
        loss = float(row["loss"]) if row["loss"] else None
        runs.append(Run(row["name"], schedule, loss, size=float(row["size"]), stopped_at=stopped))
    return with_high_losses(runs)


def setting(run: Run) -> tuple[float, str, float, float]:
    """Peak, shape, share and end: what can be copied to another horizon."""
    assert isinstance(run.schedule, NamedSchedule)
    return run.peak, run.schedule.shape, round(run.schedule.decay_fraction, 2), run.schedule.end_ratio


def splits(runs: Sequence[Run]) -> dict[str, tuple[list[Run], list[Run]]]:
    """What is fitted and what is tested, by name; curves belong to the runs that are fitted.

    horizon: all short runs to all long ones. nine: the three lower peaks with a linear decay, short, to all long ones.
    families: linear 0.2 and 0.95 and the cosine to zero, to the three other shapes. peak: the three lower ones to the
    highest. halves: by a hash of the run's name.
    """

    def split(fits: Sequence[bool], tests: Sequence[bool] | None = None) -> tuple[list[Run], list[Run]]:
        tests = tests or [not fit for fit in fits]
        return (
            [run for run, fit in zip(runs, fits, strict=True) if fit],
            [run for run, test in zip(runs, tests, strict=True) if test],
        )

    short, long = [run.steps == SHORT for run in runs], [run.steps == LONG for run in runs]
    top = max(run.peak for run in runs)
    known = (("linear", 0.2, 0.0), ("linear", 0.95, 0.0), ("cosine", 0.95, 0.0))
    lower_linear = [run.steps == SHORT and run.peak < top and setting(run)[1] == "linear" for run in runs]
    even = [hashlib.sha256(run.name.encode()).digest()[0] % 2 == 0 for run in runs]
    return {
        "horizon": split(short),
        "nine": split(lower_linear, long),
        "families": split([setting(run)[1:] in known for run in runs]),
        "peak": split([run.peak < top for run in runs]),
        "halves": split(even),
    }


def main() -> None:
    runs = sweep()
    tie = show_noise()
    print(f"\n{len(runs)} runs; a hit is within {tie:.4f} nats of the best\n")
    print("| split | fitted, tested | law | error | top-2 hits | regret | rank correlation | interval holds | width |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (fitted, tested) in splits(runs).items():
        law = fit_runs(Runs(tuple(fitted), name, ())).law
        print(f"| {name} | {len(fitted)}, {len(tested)} | {law.kind} | {scores(law, tested, tie)} |")
    print(f"\ncopying the best setting of {SHORT} steps to {LONG}: regret {copied(runs):.4f}")
    middling = [run for run in runs if setting(run)[1:] == ("linear", 0.2, 0.0) and run.steps == LONG]
    best = float(loss_of(runs_of(runs, LONG)).min())
    print(
        "linear 0.2 at each peak: regret "
        + ", ".join(f"{run.peak:g} {(run.loss or np.nan) - best:.4f}" for run in middling)
    )

    show_reference_rates(runs)
    show_divergence(high_peaks())


def show_reference_rates(runs: Sequence[Run]) -> None:
    """Print the errors of every split with rates measured in a reference rate of the size; tried after the fact."""
    # The laws' unit of 0.001 was chosen on a model of 124 million parameters; best peaks fall with the cube root.
    reference = 0.001 * (124e6 / (runs[0].size or np.nan)) ** (1 / 3)
    for rate in (reference, 2 * reference):
        errors = []
        for fitted, tested in splits(runs).values():
            units = Units(rate, max(run.steps for run in fitted) / 25)
            law = fit_runs(Runs(tuple(fitted), "reference rate", ()), units=units).law
            forecast = np.array([float(law.predict(run.schedule)[0]) for run in tested])
            errors.append(f"{np.abs(forecast - loss_of(tested)).mean():.3f}")
        print(f"rates in units of {rate:.4f}, in the order of the splits above: errors of {', '.join(errors)} nats")


def scores(law: ScheduleLaw, tested: Sequence[Run], tie: float) -> str:
    """Error in nats, then hits, regret and rank correlation by horizon, coverage of the 90 % interval and its width."""
    forecast = np.array([float(law.predict(run.schedule)[0]) for run in tested])
    half = np.array([float(law.half_width(run.schedule)[0]) for run in tested])
    loss = loss_of(tested)
    hits, regrets, orders = [], [], []
    for steps in sorted({run.steps for run in tested}):
        some = np.array([run.steps == steps for run in tested])
        by, true = np.argsort(forecast[some]), loss[some]
        hits.append(bool(true[by[:2]].min() <= true.min() + tie))
        regrets.append(float(true[by[0]] - true.min()))
        orders.append(float(spearmanr(forecast[some], true).statistic))
    inside = np.abs(np.log(loss / forecast)) <= half
    cells = [f"{np.abs(forecast - loss).mean():.4f}", f"{sum(hits)}/{len(hits)}"]
    cells += [", ".join(f"{value:.4f}" for value in regrets), ", ".join(f"{value:.2f}" for value in orders)]
    return " | ".join([*cells, f"{inside.mean():.0%}", f"±{half.mean():.2%}"])


def copied(runs: Sequence[Run]) -> float:
    """Regret at the long horizon of the setting that is best at the short one."""
    best = min(runs_of(runs, SHORT), key=lambda run: run.loss or np.inf)
    again = next(run for run in runs_of(runs, LONG) if setting(run) == setting(best))
    return float((again.loss or np.nan) - loss_of(runs_of(runs, LONG)).min())


def runs_of(runs: Sequence[Run], steps: int) -> list[Run]:
    return [run for run in runs if run.steps == steps]


def show_noise() -> float:
    """Print the spread of the repeats; returns what cannot be told apart: twice that, at least 0.0024."""
    rows = matching(table_rows(TABLE), {"grid": "schedules"}, str(TABLE))
    repeated = {row.values["seed"]: row for row in rows if row.values["seed"] != "0"}
    losses = [float(row.values["loss"]) for row in repeated.values()]
    spread = float(np.std(losses, ddof=1))
    print(f"{len(losses)} repeats of one setting by other seeds: standard deviation {spread:.4f} nats")
    return max(2 * spread, 0.0024)


def show_divergence(runs: Sequence[Run]) -> None:
    """Precision, recall and F1 of the divergence predictor, with peaks and sizes left out."""
    lost = [run for run in runs if run.diverged]
    stopped = [run.stopped_at for run in lost if run.stopped_at is not None]
    print(f"\n{len(lost)} of {len(runs)} short runs diverged, stopped after {np.median(stopped):g} of {SHORTEST} steps")
    print("(median)\n\n| left out | predictor | runs judged | precision | recall | F1 |\n|---|---|---|---|---|---|")
    for part in left_out_scores(runs):
        for score in part.scores:
            cells = ["-" if value is None else f"{value:.2f}" for value in (score.precision, score.recall, score.f1)]
            print(f"| each {part.by} of {part.groups} | {score.predictor} | {part.judged} | {' | '.join(cells)} |")


def loss_of(runs: Sequence[Run]) -> Array:
    return np.array([run.loss for run in runs], dtype=np.float64)


if __name__ == "__main__":
    main()
