"""Schedule laws on public runs: errors, choices, intervals and speed.

    python benchmarks/schedules.py [--data ../shared/data/schedules]

Reads the 124M grid of arXiv 2501.18965 (`fsp`) and the 25M and 100M curves of arXiv 2503.12811 (`mpl`) under --data;
what is not there is skipped with a word. One core, processor seconds; a few minutes.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from live_schedules import forecasts_during_a_run
from public_schedules import FITTED, TESTED, curve, grid, named
from scipy.stats import spearmanr

from kinfolk.schedule import convergence, multipower
from kinfolk.schedule.candidates import Grid, candidates
from kinfolk.schedule.features import Units
from kinfolk.schedule.fitted import fit_runs
from kinfolk.schedule.holdout import fit_kind
from kinfolk.schedule.kinds import KINDS, SIXTEEN, Kind
from kinfolk.schedule.law import ScheduleLaw
from kinfolk.schedule.points import curve_points, sparse_target
from kinfolk.schedule.rank import rank
from kinfolk.schedule.run import Run
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.shapes import Array, NamedSchedule, Steps
from kinfolk.schedule.targets import target

UNITS = Units()
TIE = 0.0024
"""Nats from the best within which a pick is a hit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "schedules")
    data = parser.parse_args().data
    if (data / "mpl").is_dir():
        curves(data / "mpl")
    else:
        print(f"skipped: {data / 'mpl'} is not here")
    if (data / "fsp").is_dir():
        runs = grid(data / "fsp")
        families(runs)
        horizons(runs)
        intervals(runs)
        speed(runs)
    else:
        print(f"skipped: {data / 'fsp'} is not here")
    forecasts_during_a_run(data)


# Curves at one peak


def curves(folder: Path) -> None:
    print("## Three curves fitted, six tested (mean over the six: R2 / MAE / worst relative error)")
    print("| law | 25M | 100M | seconds |\n|---|---|---|---|")
    sizes = ("25", "100")
    loaded = {size: {name: curve(folder, size, name) for name in (*FITTED, *TESTED)} for size in sizes}
    cells = []
    for size in sizes:
        numbers = multipower.PUBLISHED[f"multipower-{size}m"]
        cells.append(cell(loaded[size], lambda name, at, numbers=numbers: multipower.predict(numbers, named(name), at)))
    print(f"| multipower, published parameters | {' | '.join(cells)} | - |")
    for kind in KINDS.values():
        if kind is SIXTEEN:
            continue
        cells, seconds = [], []
        for size in sizes:
            targets = [target(named(name), *loaded[size][name]) for name in FITTED]
            began = time.process_time()
            numbers = kind.fit(targets, UNITS, None)
            seconds.append(time.process_time() - began)
            cells.append(cell(loaded[size], lambda name, at, kind=kind, n=numbers: kind.predict(n, named(name), at)))
        print(f"| {kind.name} | {' | '.join(cells)} | {seconds[0]:.1f}, {seconds[1]:.1f} |")
    for size in sizes:
        runs = [curve_run(name, *loaded[size][name]) for name in FITTED]
        fitted = fit_runs(Runs(tuple(runs), "curves", ()))
        held = ", ".join(
            f"{trial.kind.name} {trial.held_out_error:.4f}"
            for trial in fitted.trials
            if trial.held_out_error is not None
        )
        print(f"\n{size}M: chosen {fitted.law.kind} ({fitted.why}); error on curves left out: {held}")
        inside, ends = [], []
        for name in TESTED:
            at, loss = loaded[size][name]
            miss = np.abs(np.log(loss / fitted.law.predict(named(name), at)))
            half = fitted.law.half_width(named(name), at)
            inside.append(float((miss <= half).mean()))
            ends.append(bool(miss[-1] <= half[-1]))
        print(
            f"{size}M: 90 % interval ±{fitted.law.calibration.half_width:.2%} holds {np.mean(inside):.0%} of the "
            f"points of new curves (by curve: {', '.join(f'{value:.0%}' for value in inside)}); ends {sum(ends)} of 6"
        )


def cell(curves_: dict[str, tuple[Steps, Array]], predict: Callable[[str, Steps], Array]) -> str:
    found = []
    for name in TESTED:
        at, loss = curves_[name]
        said = predict(name, at)
        r2 = 1 - np.sum((said - loss) ** 2) / np.sum((loss - loss.mean()) ** 2)
        found.append((r2, np.abs(said - loss).mean(), np.abs(said / loss - 1).max()))
    r2, error, worst = np.mean(found, axis=0)
    return f"{r2:.4f} / {error:.5f} / {worst:.4f}"


def curve_run(name: str, steps: Steps, loss: Array) -> Run:
    return Run(name, named(name), float(loss[-1]), steps, loss)


# The grid


def loss_of(runs: Sequence[Run]) -> Array:
    return np.array([run.loss for run in runs], dtype=np.float64)


def ends_only(runs: Sequence[Run]) -> list[Run]:
    return [Run(run.name, run.schedule, run.loss) for run in runs]


def shape_of(run: Run) -> tuple[str, float]:
    assert isinstance(run.schedule, NamedSchedule)
    return run.schedule.shape, run.schedule.decay_fraction


def said(kind: Kind, fitted: Sequence[Run], tested: Sequence[Run]) -> Array:
    numbers = fit_kind(kind, fitted, UNITS)
    return np.concatenate([kind.predict(numbers, run.schedule, np.array([run.steps])) for run in tested])


def choice(forecast: Array, runs: Sequence[Run]) -> tuple[str, float, float]:
    """Top-2 hits, mean regret and mean rank correlation over horizons."""
    hits, regrets, orders = [], [], []
    for steps in sorted({run.steps for run in runs}):
        some = np.array([run.steps == steps for run in runs])
        loss, by = loss_of(runs)[some], np.argsort(forecast[some])
        hits.append(bool(loss[by[:2]].min() <= loss.min() + TIE))
        regrets.append(float(loss[by[0]] - loss.min()))
        orders.append(float(spearmanr(forecast[some], loss).statistic))
    return f"{sum(hits)}/{len(hits)}", float(np.mean(regrets)), float(np.mean(orders))


def families(runs: Sequence[Run]) -> None:
    bare = ends_only(runs)
    kept = [run for run in bare if shape_of(run) in (("linear", 0.1), ("linear", 0.2), ("linear", 0.4))]
    rest = [run for run in bare if run not in kept]
    low, high = ([run for run in bare if (run.peak < 2e-3) is wanted] for wanted in (True, False))
    generator = np.random.default_rng(0)
    draws = [generator.permutation(len(bare)) for _ in range(8)]
    print(f"\n## {len(bare)} final losses of the 124M grid, no curves: mean absolute error")
    print(
        f"ALL in sample; B {len(kept)} linear to {len(rest)} others; C {len(low)} to {len(high)} of the highest peak;"
    )
    print("R mean over 8 draws of 24 to the other 32\n\n| law | ALL | B | C | R |\n|---|---|---|---|---|")
    for kind in KINDS.values():
        errors = [
            float(np.abs(said(kind, fitted, tested) - loss_of(tested)).mean())
            for fitted, tested in ((bare, bare), (kept, rest), (low, high))
        ]
        random = [
            float(
                np.abs(
                    said(kind, [bare[i] for i in draw[:24]], [bare[i] for i in draw[24:]])
                    - loss_of([bare[i] for i in draw[24:]])
                ).mean()
            )
            for draw in draws
        ]
        print(f"| {kind.name} | {' | '.join(f'{error:.4f}' for error in (*errors, float(np.mean(random))))} |")
    print("\n| split | law | top-2 hits of horizons | regret | rank correlation |\n|---|---|---|---|---|")
    for name, fitted, tested in (("ALL", bare, bare), ("B", kept, rest), ("C", low, high)):
        for kind in (SIXTEEN, KINDS["ensemble"]):
            hits, regret, order = choice(said(kind, fitted, tested), tested)
            print(f"| {name} | {kind.name} | {hits} | {regret:.4f} | {order:.2f} |")


def horizons(runs: Sequence[Run]) -> None:
    short = [run for run in runs if run.steps == 15_000]
    long = [run for run in runs if run.steps == 25_000 and run.peak >= 5e-4]
    best = float(loss_of(long).min())
    print("\n## Longer horizon and few runs: fit at 15,000 steps, test 27 runs of 25,000 (peaks >= 5e-4)")
    print("MAE / regret without curve points, and with them at weight 0.02\n")
    print("| fit | runs, points | without | with | rank correlation, with |\n|---|---|---|---|---|")
    three = (5e-4, 1e-3, 2e-3)
    for name, peaks, shares in (
        ("H: all", None, None),
        ("D9: 3 peaks x 3 shares", three, (0.2, 0.6, 0.9)),
        ("D6: 3 peaks x 2 shares", three, (0.2, 0.6)),
        ("D4: 2 peaks x 2 shares", (5e-4, 2e-3), (0.2, 0.8)),
    ):
        fitted = short
        if peaks is not None and shares is not None:
            fitted = [
                run
                for run in short
                if run.peak in peaks and shape_of(run)[0] == "linear" and shape_of(run)[1] in shares
            ]
        row(name, fitted, long)
    cosines = [run for run in runs if shape_of(run)[0] == "cosine"]
    row("B2: cosines alone, to all others", cosines, [run for run in runs if run not in cosines])
    copied = min(short, key=lambda run: run.loss or np.inf)
    print("\nbaselines, regret at 25,000 steps:")
    for name, wanted in (
        ("copy the best of 15,000 steps", (copied.peak, *shape_of(copied), copied.end_ratio)),
        ("linear 0.2 at 1e-3", (1e-3, "linear", 0.2, 0.0)),
        ("cosine to 10 % at 1e-3", (1e-3, "cosine", 1.0, 0.1)),
    ):
        found = next(run for run in long if (run.peak, *shape_of(run), run.end_ratio) == wanted)
        print(f"  {name}: {(found.loss or np.nan) - best:.4f}")


def row(name: str, fitted: Sequence[Run], tested: Sequence[Run]) -> None:
    cells, order = [], 0.0
    for some in (ends_only(fitted), list(fitted)):
        forecast = said(SIXTEEN, some, tested)
        _, regret, order = choice(forecast, tested)
        cells.append(f"{np.abs(forecast - loss_of(tested)).mean():.4f} / {regret:.4f}")
    points = sum(len(curve_points(run, UNITS)[0]) for run in fitted)
    print(f"| {name} | {len(fitted)}, {points} | {' | '.join(cells)} | {order:.2f} |")


def intervals(runs: Sequence[Run]) -> None:
    print("\n## Intervals")
    law = fit_runs(Runs(tuple(runs), "grid", ()), "sixteen").law
    print(f"all 56 runs with curves: half-width ±{law.calibration.half_width:.2%} of the loss")
    for what, share in law.calibration.coverage.items():
        print(f"  left out by {what}: inside {share:.0%}, median error {law.calibration.medians[what]:.2%}")
    print(f"  two schedules compared: ±{law.calibration.difference:.2%}")
    print("\ncalibrated at 15,000 steps, tested on the 27 runs of 25,000, which played no part:")
    print("| fit | interval holds | comparison with its best pick holds | widths |\n|---|---|---|---|")
    long = [run for run in runs if run.steps == 25_000 and run.peak >= 5e-4]
    short = [run for run in runs if run.steps == 15_000]
    nine = [
        run for run in short if shape_of(run)[0] == "linear" and shape_of(run)[1] in (0.2, 0.6, 0.9) and run.peak > 1e-4
    ]
    for name, fitted in (("H", short), ("D9", nine)):
        law = fit_runs(Runs(tuple(fitted), name, ()), "sixteen").law
        print(f"| {name} | {held(law, long)} |")


def held(law: ScheduleLaw, runs: Sequence[Run]) -> str:
    forecast = np.array([float(law.predict(run.schedule)[0]) for run in runs])
    half = np.array([float(law.half_width(run.schedule)[0]) for run in runs])
    miss = np.log(loss_of(runs) / forecast)
    beyond = 1 + max(0.0, np.log(runs[0].steps / law.fitted.steps[1]))
    width = max(law.calibration.difference * beyond, law.tie / forecast.min())
    best = int(forecast.argmin())
    apart = np.abs(np.delete(miss, best) - miss[best])
    return f"{np.mean(np.abs(miss) <= half):.0%} | {np.mean(apart <= width):.0%} | ±{half[0]:.2%} and ±{width:.2%}"


def speed(runs: Sequence[Run]) -> None:
    print("\n## Speed, one core, processor seconds")
    many = [sparse_target(run, UNITS) for run in (ends_only(runs) * 3)[:150]]
    seconds = []
    for _ in range(10):
        began = time.process_time()
        convergence.fit(many)
        seconds.append(time.process_time() - began)
    print(
        f"16-feature law, 150 runs: median {1e3 * np.median(seconds):.0f} ms, slowest of 10 {1e3 * max(seconds):.0f} ms"
    )
    law = fit_runs(Runs(tuple(ends_only(runs)), "grid", ()), "sixteen").law
    for steps in (25_000, 1_000_000):
        shares = tuple(float(value) for value in np.linspace(0.05, 0.95, 28))
        began = time.process_time()
        some = candidates(law, steps, Grid(decay_fractions=shares, shapes=("linear", "1-sqrt")))[:500]
        rank(law, some)
        print(f"{len(some)} candidates of {steps:,} steps ranked: {time.process_time() - began:.2f} s")


if __name__ == "__main__":
    main()
