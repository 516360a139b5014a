"""Scaling laws: objectives reached, speed, what intervals hold, and the `chinchilla` package on its own example.

    python benchmarks/laws.py [--data ../shared/data/laws] [--peer PYTHON] [--peer-grid 5]

Reads the public ladders under --data; what is not there is skipped with a word. The peer is the `chinchilla` package,
installed for the interpreter --peer (by default this one); where it is not installed, its row is skipped. Its fit runs
on one core, like ours. Times are processor seconds.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from kinfolk.laws.backtest import backtest
from kinfolk.laws.borrowed import ASSUMED, borrow
from kinfolk.laws.compute import fit_compute_law, fit_saturating
from kinfolk.laws.fitting import Parameters, fit, random_starts
from kinfolk.laws.intervals import bootstrap, calibrate
from kinfolk.laws.objectives import Objective, objective_value
from kinfolk.laws.published import LAWS, published_law

Runs = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

PEER = """
import json, sys, tempfile, time, os, shutil
import numpy as np
os.cpu_count = lambda: 1
from chinchilla import Chinchilla
points, steps = sys.argv[1], int(sys.argv[2])
folder = tempfile.mkdtemp()
shutil.copy(points, os.path.join(folder, "df.csv"))
law = Chinchilla(folder, param_grid=dict(E=np.linspace(1, 2, steps), a=np.linspace(1, 10, steps),
    b=np.linspace(1, 10, steps), alpha=np.linspace(.1, .7, steps), beta=np.linspace(.1, .7, steps)), log_level=40)
law.visualizer.optim = lambda *arguments, **more: None
began = os.times()
law.fit()
ended = os.times()
seconds = sum(ended[:4]) - sum(began[:4])
numbers = {name: float(getattr(law, name)) for name in ("E", "A", "B", "alpha", "beta")}
print(json.dumps({"seconds": seconds, **numbers}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "laws")
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument(
        "--peer-grid", type=int, default=5, help="starting values a parameter; the package's example: 5"
    )
    arguments = parser.parse_args()
    for part in (objectives, speed, coverage, borrowed, compute_only):
        part(arguments.data)
    peer(arguments.data, arguments.peer, arguments.peer_grid)


def objectives(data: Path) -> None:
    print("\n## Objectives\n| data | objective | reference | reached | difference | best of 20 random starts |")
    print("|---|---|---|---|---|---|")
    for name, load, objective, reference in (
        ("chinchilla, 240", chinchilla_240, "huber_log", 0.00101827402),
        ("chinchilla, 240", chinchilla_240, "absolute_log", 1.1294829),
        ("chinchilla, 240", chinchilla_240, "squared", 0.0832038),
        ("chinchilla, 245", chinchilla_245, "huber_log", 0.00182601),
        ("chinchilla, 245", chinchilla_245, "absolute_log", 1.939903),
        ("kyo, 234", kyo, "asymmetric", 0.0227819),
    ):
        runs = loaded(load, data)
        if runs is None:
            continue
        reached = fit(*runs, _objective(objective)).objective
        starts = random_starts(*runs, _objective(objective))
        print(f"| {name} | {objective} | {reference} | {reached:.9g} | {reached / reference - 1:+.1e} | {starts:.9g} |")


def speed(data: Path) -> None:
    runs = loaded(chinchilla_240, data)
    if runs is None:
        return
    fit(*runs)
    seconds = []
    for _ in range(20):
        began = time.process_time()
        result = fit(*runs)
        seconds.append(time.process_time() - began)
    began = time.process_time()
    drawn = bootstrap(*runs, result.parameters, resamples=1000)
    print("\n## Speed, 240 points, one core")
    print(f"a fit: median {1e3 * np.median(seconds):.0f} ms, slowest of 20 {1e3 * max(seconds):.0f} ms")
    print(f"1,000 bootstrap resamples: {time.process_time() - began:.1f} s")
    errors = ", ".join(
        f"{name} {np.std(drawn.samples[:, i]):.3g}" for i, name in enumerate(("E", "A", "B", "alpha", "beta"))
    )
    print(f"standard errors: {errors}")


def coverage(data: Path) -> None:
    print("\n## Hidden larger runs inside the 90 % interval")
    print("| split | fitted/hidden | reach | mean error | bootstrap holds | intervals hold | mean width | relative |")
    print("|---|---|---|---|---|---|---|---|")
    covered = hidden = 0
    widths = []
    for name, load, cut in (
        ("chinchilla C < 1e21", chinchilla_240, 1e21),
        ("chinchilla C < 3e20", chinchilla_240, 3e20),
        ("chinchilla C < 1e20", chinchilla_240, 1e20),
        ("gadre c4, below .7 quantile", lambda root: gadre(root, "c4_original"), None),
        ("gadre rpj, below .7 quantile", lambda root: gadre(root, "rpj"), None),
        ("gadre rw, below .7 quantile", lambda root: gadre(root, "rw_original"), None),
    ):
        runs = loaded(load, data)
        if runs is None:
            continue
        at = float(np.quantile(6 * runs[0] * runs[1], 0.7)) if cut is None else cut
        (split,) = backtest(*runs, [at], resamples=300)
        assert split.bootstrap_covered is not None
        print(
            f"| {name} | {split.fitted}/{split.hidden} | {split.reach:.0f}x | {split.mean_error:.2%} | "
            f"{split.bootstrap_covered / split.hidden:.2f} | {split.coverage:.2f} | {split.mean_width:.3f} | "
            f"{split.mean_relative_width:.3f} |"
        )
        covered, hidden = covered + split.covered, hidden + split.hidden
        widths.append((split.mean_width * split.hidden, split.mean_relative_width * split.hidden))
    if hidden:
        absolute, relative = np.sum(widths, axis=0) / hidden
        print(
            f"together: {covered} of {hidden} hidden runs ({covered / hidden:.1%}), "
            f"mean width {absolute:.3f} nats, {relative:.1%} of the forecast"
        )
    runs = loaded(chinchilla_240, data)
    if runs is not None:
        print(f"calibration of all 240 points: {calibrate(*runs)}")


def borrowed(data: Path) -> None:
    """Two to four runs at random among the cheaper ones, all dearer runs forecast; which law to borrow from."""
    print(
        "\n## Borrowed exponents: two to four random runs, mean error of all dearer runs (assumed 90 % interval holds)"
    )
    print("| ladder | " + " | ".join(LAWS) + " |")
    print("|---|" + "---|" * len(LAWS))
    for name, load in (
        ("chinchilla 240", chinchilla_240),
        ("gadre c4", lambda root: gadre(root, "c4_original")),
        ("gadre rpj", lambda root: gadre(root, "rpj")),
        ("gadre rw", lambda root: gadre(root, "rw_original")),
        ("steplaw, best of each cell", steplaw),
    ):
        runs = loaded(load, data)
        if runs is not None:
            cells = [f"{error:.1%} ({share:.2f})" for error, share in (few(runs, law) for law in LAWS)]
            print(f"| {name} | " + " | ".join(cells) + " |")


def few(runs: Runs, law: str) -> tuple[float, float]:
    size, tokens, loss = runs
    compute = 6 * size * tokens
    cheap = np.argsort(compute)[: int(0.7 * len(loss))]
    generator = np.random.default_rng(0)
    errors, held = [], []
    for _ in range(200):
        chosen = generator.choice(cheap, generator.integers(2, 5), replace=False)
        found = borrow(published_law(law), size[chosen], tokens[chosen], loss[chosen])
        above = compute > compute[chosen].max() * 1.001
        miss = np.log(loss[above] / found.predict(size[above], tokens[above]))
        errors.append(np.abs(np.expm1(-miss)))
        held.append(np.abs(miss) <= ASSUMED.half_width_at(np.log(compute[above] / compute[chosen].max())))
    return float(np.concatenate(errors).mean()), float(np.concatenate(held).mean())


def compute_only(data: Path) -> None:
    print("\n## The compute-only law")
    path = data / "hkust" / "bpc_leaderboard.csv"
    if path.is_file():
        rows = [row for row in table(path) if row["in_fit18"] == "1"]
        size, tokens, bits = (column(rows, name) for name in ("params_B", "train_tokens_T", "bpc_avg"))
        law = fit_compute_law(size * 1e9, tokens * 1e12, bits)
        assert law.slope_interval and law.intercept_intervals
        low, high = law.intercept_intervals["all"]
        print(
            f"18 models: {law.slope:.4f} ({law.slope_interval[0]:.4f} to {law.slope_interval[1]:.4f}) ln(N D) + "
            f"{law.intercept:.4f} ({low:.3f} to {high:.3f}), rmse {law.rmse:.4f} bits per character"
        )
    print("| runs | E + k C^-g, rmse | law in N and D, rmse |\n|---|---|---|")
    runs = loaded(chinchilla_240, data)
    if runs is not None:
        ratios = runs[1] / runs[0]
        for name, kept in (("10 to 60 tokens per parameter", (ratios > 10) & (ratios < 60)), ("all", ratios > 0)):
            both(f"chinchilla, {name}", (runs[0][kept], runs[1][kept], runs[2][kept]))
    cells = loaded(steplaw, data)
    if cells is not None:
        both("steplaw, best of each cell", cells)


def both(name: str, runs: Runs) -> None:
    own = np.sqrt(fit(*runs, "squared").objective / len(runs[2]))
    print(f"| {name} | {fit_saturating(6 * runs[0] * runs[1], runs[2]).rmse:.4f} | {own:.4f} |")


def peer(data: Path, python: str, steps: int) -> None:
    print("\n## Beside the chinchilla package, its own example (234 points, asymmetric error), one core")
    points = data / "kyo" / "df.csv"
    runs = loaded(kyo, data)
    if runs is None:
        return
    began = time.process_time()
    ours = fit(*runs, "asymmetric")
    seconds = time.process_time() - began
    if subprocess.run([python, "-c", "import chinchilla"], capture_output=True, check=False).returncode:
        print(f"skipped: the chinchilla package is not installed for {python} (pip install chinchilla; see --peer)")
        return
    done = subprocess.run([python, "-c", PEER, str(points), str(steps)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"skipped: the chinchilla package failed: {done.stderr.strip().splitlines()[-1]}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    theirs = Parameters(**{name: found[name] for name in ("E", "A", "B", "alpha", "beta")})
    objective = objective_value("asymmetric", theirs.predict(runs[0], runs[1]) - runs[2])
    print("| | starts | objective | seconds |\n|---|---|---|---|")
    print(f"| chinchilla | {steps**5} | {objective:.9g} | {found['seconds']:.1f} |")
    print(f"| kinfolk | 1 | {ours.objective:.9g} | {seconds:.3f} |")
    print(f"ratio: {found['seconds'] / seconds:.0f} times as fast; objective {ours.objective / objective - 1:+.1e}")


def _objective(name: str) -> Objective:
    assert name in ("huber_log", "absolute_log", "squared", "huber", "asymmetric")
    return name  # type: ignore[return-value]


def loaded(load: Callable[[Path], Runs], data: Path) -> Runs | None:
    try:
        return load(data)
    except FileNotFoundError as error:
        print(f"skipped: {error.filename} is not here")
        return None


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in rows])


def chinchilla_245(data: Path) -> Runs:
    rows = table(data / "epoch" / "svg_extracted_data.csv")
    size = column(rows, "Model Size")
    return size, column(rows, "Training FLOP") / (6 * size), column(rows, "loss")


def chinchilla_240(data: Path) -> Runs:
    size, tokens, loss = chinchilla_245(data)
    kept = loss < np.sort(loss)[-5]
    return size[kept], tokens[kept], loss[kept]


def kyo(data: Path) -> Runs:
    rows = table(data / "kyo" / "df.csv")
    return column(rows, "N"), column(rows, "D"), column(rows, "loss")


def gadre(data: Path, dataset: str) -> Runs:
    rows = [row for row in table(data / "gadre" / "gadre_104_models.csv") if row["dataset"] == dataset]
    return column(rows, "N"), column(rows, "D"), column(rows, "loss_c4_val")


def steplaw(data: Path) -> Runs:
    best: dict[tuple[float, float], float] = {}
    for row in table(data / "steplaw" / "dense_lr_bs_loss.csv"):
        cell = float(row["N"]), float(row["D"])
        best[cell] = min(float(row["smooth loss"]), best.get(cell, np.inf))
    size, tokens = np.array(list(best)).T
    return size, tokens, np.array(list(best.values()))


if __name__ == "__main__":
    main()
