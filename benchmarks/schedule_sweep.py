"""A sweep of learning-rate schedules of our own, for schedule laws and the divergence predictor to be tested on.

    python benchmarks/schedule_sweep.py run      every run that is missing; goes on where it was stopped
    python benchmarks/schedule_sweep.py table    benchmarks/schedule_sweep: tables and curves of what has finished

Two grids of tiny members, trained on ../shared/data/classics by ordinary builds, one after the other in one process.
`schedules`: the smallest member of benchmarks/progressive.yaml at four peaks, six shapes and two horizons, with five
repeats of one setting by other seeds. `stability`: its three smallest members for 100 steps, from peaks that train to
peaks that cannot, with three warm-ups; what diverges is stopped at once. How benchmarks/own_schedules.py splits them
was written down before the first run. Only where peaks begin to diverge (0.25 to 1) was looked up, by four runs.
"""

import argparse
import csv
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from progressive import CLASSICS, events, prepare, prepare_data
from rich.console import Console

from kinfolk.build.build import build
from kinfolk.build.view import LiveView
from kinfolk.family.load import load_family
from kinfolk.schedule.own_runs import own_runs
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import NamedSchedule
from kinfolk.train.divergence import DivergedError

TABLE = Path(__file__).with_suffix("")
PEAKS = (0.004, 0.008, 0.016, 0.032)
SHAPES = (
    ("linear", 0.2, 0.0),
    ("linear", 0.5, 0.0),
    ("linear", 0.95, 0.0),
    ("1-sqrt", 0.2, 0.0),
    ("cosine", 0.95, 0.0),
    ("cosine", 0.95, 0.1),
)
"""Decay shape, its share of the steps, last rate over peak."""
HORIZONS = (500, 1000)
WARMUP = 12
REPEATED = (0.008, SHAPES[1], 500)
SEEDS = range(1, 6)
"""Of the repeats; every other run has seed 0."""
HIGH_PEAKS = (0.12, 0.25, 0.35, 0.5, 0.7, 0.95)
HIGHER_PEAKS = (1.5, 2.5, 4.0, 8.0)
"""Added after the first sweep, in which 5 runs of 107 had diverged: too few to predict anything from."""
WARMUPS = (1, 10, 40)
SHORT = 100
FIELDS = (
    "grid",
    "name",
    "member",
    "size",
    "seed",
    "tokens_per_step",
    "steps",
    "warmup_steps",
    "warmup_from",
    "peak_lr",
)
FIELDS += ("shape", "decay_fraction", "end_ratio", "loss", "curve", "stopped_at")


@dataclass(frozen=True)
class Setting:
    """One run of the sweep."""

    grid: str
    member: int
    peak: float
    shape: tuple[str, float, float]
    steps: int
    warmup: int
    seed: int = 0

    @property
    def name(self) -> str:
        shape, share, end = self.shape
        words = [self.grid, f"member{self.member}", f"peak{self.peak:g}", f"{shape}{share:g}", f"end{end:g}"]
        return "-".join([*words, f"steps{self.steps}", f"warmup{self.warmup}", f"seed{self.seed}"])


def settings() -> Iterator[Setting]:
    """Every run, in an order in which a sweep that is stopped early is of most use."""
    for steps, peak, shape in itertools.product(HORIZONS, PEAKS, SHAPES):
        yield Setting("schedules", 0, peak, shape, steps, WARMUP)
    for seed in SEEDS:
        peak, shape, steps = REPEATED
        yield Setting("schedules", 0, peak, shape, steps, WARMUP, seed)
    for member, peak, warmup in itertools.product(range(3), HIGH_PEAKS + HIGHER_PEAKS, WARMUPS):
        yield Setting("stability", member, peak, ("linear", 0.5, 0.0), SHORT, warmup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-schedule-sweep"))
    arguments = parser.parse_args()
    if arguments.what == "table":
        write_table(arguments.work)
        return
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    family = prepare(arguments.work, 3)
    store = prepare_data(arguments.work, family)
    every = list(settings())
    for number, setting in enumerate(every, 1):
        if not is_done(arguments.work / setting.name):
            print(f"{number} of {len(every)}: {setting.name}", flush=True)
            run(setting, family, store, arguments.work / setting.name)


def run(setting: Setting, family: Path, store: Path, folder: Path) -> None:
    """Build one member by one schedule; that it diverges is a result."""
    if not (folder / "data").exists():
        shutil.copytree(store, folder / "data")
    shape, share, end = setting.shape
    recipe = {
        "seed": setting.seed,
        "peak_learning_rate": setting.peak,
        "held_out_every_steps": setting.steps // 20,
        "schedule.warmup_share": setting.warmup / setting.steps,
        "schedule.decay_share": share,
        "schedule.decay_shape": shape,
        "schedule.end_ratio": end,
    }
    loaded = load_family(
        str(family), ["strategy=independent", *(f"recipe.{key}={value}" for key, value in recipe.items())]
    )
    tokens = float(setting.steps * loaded.family.recipe.tokens_per_step)
    member = loaded.family.members[setting.member].model_copy(update={"tokens": tokens})
    loaded = replace(loaded, family=loaded.family.model_copy(update={"members": [member]}))
    try:
        with open(folder.with_suffix(".log"), "a") as log, LiveView(Console(file=log)) as view:
            build(loaded, folder, view)
    except DivergedError as diverged:
        print(diverged, flush=True)


def is_done(folder: Path) -> bool:
    return any(event["event"] in ("build_finished", "stage_diverged") for event in events(folder))


def write_table(work: Path) -> None:
    """A row for each run that has ended, and its curve in a file of its own.

    Peaks of 1 and more have a table of their own: `kinfolk schedule` takes them for percentages and refuses them.
    """
    shutil.rmtree(TABLE, ignore_errors=True)
    (TABLE / "curves").mkdir(parents=True)
    with open(TABLE / "runs.csv", "w", newline="") as low, open(TABLE / "higher_peaks.csv", "w", newline="") as high:
        tables = [csv.DictWriter(file, FIELDS, lineterminator="\n") for file in (low, high)]
        for table in tables:
            table.writeheader()
        for setting in settings():
            folder = work / setting.name
            if is_done(folder):
                (found,), _ = own_runs(folder, {})
                tables[found.peak >= 1].writerow(row(setting, folder, found))


def row(setting: Setting, folder: Path, found: Run) -> dict[str, Any]:
    """A run's line in the table. Its loss is that of the whole held-out part, in nats per token, with six digits."""
    said = list(events(folder))
    finished = [event for event in said if event["event"] == "member_finished"]
    stopped = [event["step"] for event in said if event["event"] == "stage_diverged"]
    schedule = found.schedule
    assert isinstance(schedule, NamedSchedule)
    curve = ""
    if finished and len(found.curve_steps):
        curve = f"curves/{setting.name}.csv"
        lines = zip(found.curve_steps.tolist(), found.curve_loss.tolist(), strict=True)
        (TABLE / curve).write_text("step,loss\n" + "".join(f"{step},{loss:.6f}\n" for step, loss in lines))
    return {
        "grid": setting.grid,
        "name": setting.name,
        "member": finished[0]["member"] if finished else found.name.split("/")[-1],
        "size": found.size,
        "seed": setting.seed,
        "tokens_per_step": found.tokens_per_step,
        "steps": schedule.steps,
        "warmup_steps": schedule.warmup_steps,
        "warmup_from": schedule.warmup_from,
        "peak_lr": schedule.peak,
        "shape": schedule.shape,
        "decay_fraction": schedule.decay_fraction,
        "end_ratio": schedule.end_ratio,
        "loss": f"{finished[0]['held_out']['loss']:.6f}" if finished else "",
        "curve": curve,
        "stopped_at": stopped[-1] if stopped and not finished else "",
    }


if __name__ == "__main__":
    main()
