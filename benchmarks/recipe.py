"""Options of the recipe against plain AdamW: two members of benchmarks/progressive.yaml, each trained alone.

    python benchmarks/recipe.py run     every arm and seed; goes on where it was stopped
    python benchmarks/recipe.py show    the table, from whatever has finished

The arms have the same data, tokens and schedule. The peak is that of the ladder, which was tuned for AdamW; both
optimizers have arms at other peaks, so that neither is compared at the other's. Reads ../shared/data/classics and says
so where it is absent. Every arm is an ordinary `kinfolk build`, one single-thread process each.
"""

import argparse
import itertools
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from progressive import CLASSICS, build_all, events, finished_members, prepare, processor_seconds, spread

PEAK = 0.011
PEAKS = (0.0056, 0.011, 0.016, 0.022)
MUON = "recipe.optimizer.matrices=muon"
CAUTIOUS = "recipe.optimizer.weight_decay_rule=cautious"
ARMS: dict[str, list[str]] = {
    **{f"adamw, peak {peak:g}": [f"recipe.peak_learning_rate={peak}"] for peak in PEAKS},
    **{f"muon, peak {peak:g}": [MUON, f"recipe.peak_learning_rate={peak}"] for peak in PEAKS},
    "adamw, cautious decay": [CAUTIOUS],
    "muon, cautious decay": [MUON, CAUTIOUS],
    "adamw, z-loss": ["recipe.z_loss=1.0e-5"],
    "adamw, batch warm-up": ["recipe.batch_warmup={start: 512, share: 0.25}"],
    "adamw, twice the batch": ["recipe.tokens_per_step=4096"],
    "adamw, twice the batch, warm-up": ["recipe.tokens_per_step=4096", "recipe.batch_warmup={start: 1024, share: 0.5}"],
    "adamw, no clip": ["recipe.gradient_clip=none"],
}
BASELINE = f"adamw, peak {PEAK:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-recipe"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=2, help="use only the smallest so many members")
    parser.add_argument("--tokens", type=float, default=10.0, help="per parameter")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    if arguments.what == "run":
        runs = {
            run_name(arm, arguments, seed): [
                "strategy=independent",
                f"tokens_per_parameter={arguments.tokens}",
                f"recipe.seed={seed}",
                *ARMS[arm],
            ]
            for seed, arm in itertools.product(range(arguments.seeds), arguments.arms)
        }
        build_all(prepare(arguments.work, arguments.members), arguments.work, runs, arguments.jobs)
    show(arguments)


def run_name(arm: str, arguments: argparse.Namespace, seed: int) -> str:
    words = arm.replace(",", "").replace(" ", "-")
    return f"{words}-members{arguments.members}-tokens{arguments.tokens:g}-seed{seed}"


def show(arguments: argparse.Namespace) -> None:
    """Held-out bits per byte of each member, the difference to the baseline's of the same seed, steps and time."""
    print(f"\n{arguments.tokens:g} tokens per parameter; held-out bits per byte, mean ± standard deviation\n")
    print("| member | arm | seeds | bits per byte | minus baseline, per seed | steps | processor seconds of the run |")
    print("|---|---|---|---|---|---|---|")
    finished: dict[str, dict[int, Path]] = {}
    for arm in ARMS:
        runs = {seed: arguments.work / run_name(arm, arguments, seed) for seed in range(arguments.seeds)}
        finished[arm] = {
            seed: run for seed, run in runs.items() if any(e["event"] == "build_finished" for e in events(run))
        }
    for index in range(arguments.members):
        baseline = {seed: score(run, index) for seed, run in finished[BASELINE].items()}
        for arm, runs in finished.items():
            if runs:
                print(row(arm, runs, index, baseline))


def row(arm: str, runs: dict[int, Path], index: int, baseline: dict[int, float]) -> str:
    """One line of the table: a member in one arm, over the seeds that have finished."""
    scores = {seed: score(run, index) for seed, run in runs.items()}
    differences = [f"{found - baseline[seed]:+.4f}" for seed, found in scores.items() if seed in baseline]
    run = next(iter(runs.values()))
    seconds = statistics.mean(processor_seconds(each) for each in runs.values())
    stage = [event for event in events(run) if event["event"] == "stage_finished"][index]
    cells = [member_of(run, index)["member"], arm, str(len(runs)), spread(list(scores.values()))]
    cells += ["" if arm == BASELINE else ", ".join(differences), f"{stage['steps']:,}", f"{seconds:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def member_of(run: Path, index: int) -> dict[str, Any]:
    return list(finished_members(run).values())[index]


def score(run: Path, index: int) -> float:
    bits: float = member_of(run, index)["held_out"]["bits_per_byte"]
    return bits


if __name__ == "__main__":
    main()
