"""What `schedule: auto` is worth in a small build: the smallest two members of `tiny`, with and without it.

    python benchmarks/probed_schedule.py        builds what is missing, then prints the table

Held-out losses at the end of each member, of the schedule that the probe chose and of the recipe's own. The probe's
compute is not taken off the build's.
"""

import argparse
import os
from importlib.resources import files
from pathlib import Path

import yaml
from progressive import build_all, events, finished_members

RECIPE = "recipe's schedule"
ARMS = {RECIPE: [], "auto": ["recipe.schedule=auto"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-probed-schedule"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    family = arguments.work / "family.yaml"
    document = yaml.safe_load((files("kinfolk.family") / "presets" / "tiny.yaml").read_text())
    document["members"] = document["members"][:2]
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    runs = {
        run_name(arm, seed): [*settings, f"recipe.seed={seed}"]
        for seed in range(arguments.seeds)
        for arm, settings in ARMS.items()
    }
    build_all(family, arguments.work, runs, arguments.jobs)
    show(arguments.work, arguments.seeds)


def run_name(arm: str, seed: int) -> str:
    return f"{'recipe' if arm == RECIPE else arm}-seed{seed}"


def show(work: Path, seeds: int) -> None:
    """A row for each finished build: the schedule, the probe's cost, and each member's held-out loss in nats."""
    print(
        "\n| arm | seed | peak | decay | FLOPs of the probe | held-out loss of each member |\n|---|---|---|---|---|---|"
    )
    for seed in range(seeds):
        for arm in ARMS:
            run = work / run_name(arm, seed)
            members = finished_members(run).values()
            losses = ", ".join(f"{event['held_out']['loss']:.3f}" for event in members)
            recipe = yaml.safe_load((run / "family.yaml").read_text())["recipe"]
            decay = f"{recipe['schedule']['decay_shape']} {recipe['schedule']['decay_share']:g}"
            probe = [event["flops"]["matmul"] for event in events(run) if event["event"] == "schedule_chosen"]
            print(f"| {arm} | {seed} | {recipe['peak_learning_rate']:g} | {decay} | {sum(probe):.3g} | {losses} |")


if __name__ == "__main__":
    main()
