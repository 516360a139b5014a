"""Forecasts during a run: made at 30 to 90 % of finished curves and held against what came.

    python benchmarks/live_schedules.py [--data ../shared/data/schedules] [--runs FOLDER...]

Reads the public curves under --data (`mpl`, arXiv 2503.12811; `fsp`, arXiv 2501.18965) and finished run directories of
`kinfolk build` under --runs, every stage of them. What is not there is skipped with a word. Seconds.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from public_schedules import FITTED, TESTED, curve, grid, named

from kinfolk.build.line_curves import read_points
from kinfolk.build.outlook import Prospect, prospect
from kinfolk.schedule.advice import SHARES, advise
from kinfolk.schedule.live import Forecast, NotYet, forecast
from kinfolk.schedule.live_law import Gain
from kinfolk.schedule.own_runs import plan_of
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, Schedule, Steps, length, rates

MADE_AT = (0.3, 0.5, 0.7, 0.9)
HELD = (0.3, 0.4, 0.5, 0.75)
"""Shares of the steps at which a trunk is asked when to begin its decay."""


@dataclass(frozen=True)
class Finished:
    """A finished curve."""

    schedule: Schedule
    steps: Steps
    losses: Array
    gain: Gain = Gain()  # noqa: RUF009 (frozen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "schedules")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="run directories")
    given = parser.parse_args()
    forecasts_during_a_run(given.data, given.runs)


def forecasts_during_a_run(data: Path, folders: Sequence[Path] = ()) -> None:
    print("\n## Forecasts during a run")
    print("mean error and bias in % of the loss, beside those of 'the last loss stays'\n")
    print("| curves | made at | shown | error, bias | last loss stays | interval holds | its half-width |")
    print("|---|---|---|---|---|---|---|")
    if (data / "mpl").is_dir():
        for size in ("25", "100"):
            show(f"{size}M", [ended(named(name), *curve(data / "mpl", size, name)) for name in (*FITTED, *TESTED)])
    else:
        print(f"skipped: {data / 'mpl'} is not here")
    if (data / "fsp").is_dir():
        runs = grid(data / "fsp")
        for steps in (15_000, 25_000):
            show(f"124M, {steps:,} steps", [whole_curve(run, runs) for run in runs if run.steps == steps])
    else:
        print(f"skipped: {data / 'fsp'} is not here")
    own = [found for folder in folders for found in finished_stages(folder)]
    for grown in (False, True):
        some = [seen for seen, _ in own if seen.line.grown is grown]
        curves = [points for seen, points in own if seen.line.grown is grown]
        name = "grown" if grown else "from scratch"
        show(
            f"own, {name}, without earlier stages",
            [own_curve(seen, points, Gain()) for seen, points in zip(some, curves, strict=True)],
        )
        both = [(seen, points) for seen, points in zip(some, curves, strict=True) if seen.gain_from]
        show(f"own, {name}, those with an earlier stage", [own_curve(seen, points, Gain()) for seen, points in both])
        show(f"own, {name}, the same with its gain", [own_curve(seen, points, seen.gain) for seen, points in both])
    if (data / "fsp").is_dir():
        decays(grid(data / "fsp"))


def ended(schedule: NamedSchedule, steps: Steps, losses: Array) -> Finished:
    """A curve whose schedule ends at its last point."""
    return Finished(rates(schedule)[: steps[-1]], steps, losses)


def whole_curve(run: Run, runs: Sequence[Run]) -> Finished:
    """A run's curve with that of the trunk which it left."""
    points = {**trunk(run, runs), **dict(zip(run.curve_steps.tolist(), run.curve_loss.tolist(), strict=True))}
    steps = np.array(sorted(points), dtype=np.int64)
    return ended(run.schedule, steps, np.array([points[step] for step in steps.tolist()]))  # type: ignore[arg-type]


def trunk(run: Run, runs: Sequence[Run]) -> dict[int, float]:
    """Losses at the constant rate of a run's peak up to its decay, from every run that passed there."""
    assert isinstance(run.schedule, NamedSchedule)
    if run.schedule.shape == "cosine":
        return {}
    found = {}
    for other in runs:
        assert isinstance(other.schedule, NamedSchedule)
        if other.schedule.shape != "cosine" and other.peak == run.peak:
            until = min(each.steps - each.schedule.decay_steps for each in (run, other))  # type: ignore[union-attr]
            found |= {
                step: loss
                for step, loss in zip(other.curve_steps.tolist(), other.curve_loss.tolist(), strict=True)
                if step <= until
            }
    return found


def finished_stages(folder: Path) -> list[tuple[Prospect, list[tuple[int, float]]]]:
    stages = {stage["name"]: stage for stage in plan_of(folder)["stages"]}
    found = []
    for name, stage in stages.items():
        seen, points = prospect(folder, stages, name), read_points(folder, stage)
        if not isinstance(seen, NotYet) and points and points[-1][0] == stage["steps"]:
            found.append((seen, points))
    return found


def own_curve(seen: Prospect, points: list[tuple[int, float]], gain: Gain) -> Finished:
    return Finished(seen.line.schedule, *seen.curve(points), gain)


def show(name: str, curves: Sequence[Finished]) -> None:
    """One row for each share of the steps."""
    for share in MADE_AT:
        rows = []
        asked = [each for each in curves if (each.steps <= share * length(each.schedule)).any()]
        asked = [each for each in asked if each.steps[-1] > share * length(each.schedule)]
        for each in asked:
            known = each.steps <= share * length(each.schedule)
            said = forecast(each.schedule, each.steps[known], each.losses[known], each.gain)
            if isinstance(said, Forecast):
                truth = each.losses[-1]
                half = float(np.log(said.high / said.low)) / 2
                rows.append(
                    (
                        np.log(truth / said.loss),
                        np.log(truth / each.losses[known][-1]),
                        said.low <= truth <= said.high,
                        half,
                    )
                )
        if rows:
            error, stays, inside, half = np.array(rows, dtype=np.float64).T
            count = f"{len(rows)} of {len(asked)}"
            print(
                f"| {name} | {share:.0%} | {count} | {np.abs(error).mean():.2%}, {error.mean():+.2%} | "
                f"{np.abs(stays).mean():.2%} | {inside.mean():.0%} | ±{np.median(half):.2%} |"
            )


def decays(runs: Sequence[Run]) -> None:
    """When to begin the decay: what the trunks of the grid would have been told, and what came of it."""
    print("\n## When to begin the decay: trunks of the 124M grid, decays to zero that were measured")
    print(
        "| asked at | trunks | regret of the law's best | of linear 0.2 | of the advice | times changed | pairs held |"
    )
    print("|---|---|---|---|---|---|---|")
    for share in HELD:
        rows, held, began, count = [], [], time.process_time(), 0
        for steps in (15_000, 25_000):
            for peak in sorted({run.peak for run in runs}):
                some = [run for run in runs if fits(run, peak, steps, share)]
                usual = next((run for run in some if shape_of(run) == ("linear", 0.2)), None)
                if usual is None or len(some) < 2:
                    continue
                curve_ = whole_curve(usual, runs)
                known = curve_.steps <= share * steps
                assert isinstance(usual.schedule, NamedSchedule)
                constant = NamedSchedule(steps=steps, peak=peak, warmup_steps=300, warmup_from=0.01)
                advice = advise(constant, curve_.steps[known], curve_.losses[known], steps, usual.schedule)
                assert not isinstance(advice, NotYet)
                count += 1
                options = {(each.shape, round(each.share, 2)): each for each in advice.options}
                measured = {shape_of(run): run.loss or np.nan for run in some}
                best = min(measured, key=lambda key: options[key].loss)
                chosen = ("linear", 0.2) if advice.keep else best
                lowest = min(measured.values())
                rows.append([measured[key] - lowest for key in (best, ("linear", 0.2), chosen)] + [not advice.keep])
                tie = advice.tie
                held += [
                    abs((measured[key] - measured[best]) - (options[key].loss - options[best].loss)) <= tie
                    for key in measured
                    if key != best
                ]
        first, habit, told, changes = np.array(rows, dtype=np.float64).T
        print(
            f"| {share:.0%} | {len(rows)} | {first.mean():.4f} | {habit.mean():.4f} | {told.mean():.4f} | "
            f"{changes.sum():.0f} | {np.mean(held):.0%} of {len(held)} |"
        )
    print(f"one advice: {1e3 * (time.process_time() - began) / max(count, 1):.0f} ms")


def fits(run: Run, peak: float, steps: int, share: float) -> bool:
    """Whether a run is a decay that could still begin."""
    assert isinstance(run.schedule, NamedSchedule)
    kind, part = shape_of(run)
    return (run.peak, run.steps) == (peak, steps) and kind != "cosine" and part in SHARES and part <= 1 - share + 1e-9


def shape_of(run: Run) -> tuple[str, float]:
    assert isinstance(run.schedule, NamedSchedule)
    return run.schedule.shape, round(run.schedule.decay_fraction, 2)


if __name__ == "__main__":
    main()
