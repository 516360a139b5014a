"""Progressive against independent training: the same ladder, data, tokenizer, recipe and schedule; several seeds.

    python benchmarks/progressive.py tune      peaks of the smallest two members, trained alone
    python benchmarks/progressive.py run       all arms; goes on where it was stopped
    python benchmarks/progressive.py show      the tables of docs/results.md, from whatever has finished

Reads ../shared/data/classics and says so where it is absent. Every arm is an ordinary `kinfolk build`, one
single-thread process each, as many side by side as there are cores.
"""

import argparse
import bz2
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CLASSICS = HERE.parent.parent / "shared" / "data" / "classics"
HELD_OUT_CHARACTERS = 10_000
"""Taken from the middle of each held-out book: 54 books by authors that the training part does not have."""

PEAKS = (0.0056, 0.008, 0.011, 0.016)
EXPONENTS = (0.0, 0.25)
STRATEGIES = ("independent", "progressive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-progressive"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    family = prepare(arguments.work)
    if arguments.what == "tune":
        tune(family, arguments.work, arguments.jobs)
    elif arguments.what == "run":
        arms = [
            (arm_name(strategy, exponent, seed), strategy, [f"recipe.peak_exponent={exponent}", f"recipe.seed={seed}"])
            for exponent, seed, strategy in itertools.product(EXPONENTS, range(arguments.seeds), STRATEGIES)
        ]
        build_all(family, arguments.work, arms, arguments.jobs)
    if arguments.what != "tune":
        show(arguments.work, arguments.seeds)


def arm_name(strategy: str, exponent: float, seed: int) -> str:
    return f"{strategy}-exponent{exponent:g}-seed{seed}"


def prepare(work: Path) -> Path:
    """Write the family file with its data, once; returns its path."""
    work.mkdir(parents=True, exist_ok=True)
    held_out = work / "held_out.jsonl"
    if not held_out.exists():
        with bz2.open(CLASSICS / "valid.jsonl.bz2", "rt", encoding="utf-8") as books, open(held_out, "w") as out:
            for line in books:
                text = json.loads(line)["text"]
                start = max(0, (len(text) - HELD_OUT_CHARACTERS) // 2)
                out.write(json.dumps({"text": text[start : start + HELD_OUT_CHARACTERS]}) + "\n")
    document = yaml.safe_load((HERE / "progressive.yaml").read_text())
    document["data"] = {
        "train": [{"path": str(CLASSICS / "train-00.jsonl.bz2")}],
        "held_out": {"sources": [{"path": str(held_out.resolve())}]},
    }
    family = work / "family.yaml"
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    return family


def tune(family: Path, work: Path, jobs: int) -> None:
    """Held-out loss of the smallest two members, trained alone, at each peak."""
    short = yaml.safe_load(family.read_text())
    short["members"] = short["members"][:2]
    tuned = work / "tune.yaml"
    tuned.write_text(yaml.safe_dump(short, sort_keys=False))
    arms = [(f"tune-{peak:g}", "independent", [f"recipe.peak_learning_rate={peak}"]) for peak in PEAKS]
    build_all(tuned, work, arms, jobs)
    for name, _, _ in arms:
        losses = {member: event["held_out"]["loss"] for member, event in finished_members(work / name).items()}
        print(name, {member: round(loss, 4) for member, loss in losses.items()})


def build_all(family: Path, work: Path, arms: list[tuple[str, str, list[str]]], jobs: int) -> None:
    """Build every arm, `jobs` at a time; the first one's tokens are copied to the others."""
    store = work / "data"
    if not store.exists():
        from kinfolk.data.tokens import prepare as tokenise
        from kinfolk.family.load import load_family, with_absolute_paths

        loaded = load_family(str(family))
        tokenise(with_absolute_paths(loaded), loaded.folder, store, where=loaded.origin)

    def build(arm: tuple[str, str, list[str]]) -> None:
        name, strategy, overrides = arm
        run = work / name
        if not (run / "data").exists():
            shutil.copytree(store, run / "data")
        command = [sys.executable, "-m", "kinfolk", "build", str(family), "--run", str(run), "--strategy", strategy]
        command += [word for override in overrides for word in ("--set", override)]
        with open(work / f"{name}.log", "a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            code = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        print(f"{name}: {'done' if code == 0 else f'FAILED, see {log.name}'}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(build, arms))


def events(run: Path) -> Iterator[dict[str, Any]]:
    if (run / "ledger.jsonl").exists():
        for line in (run / "ledger.jsonl").read_text().splitlines():
            yield json.loads(line)


def finished_members(run: Path) -> dict[str, dict[str, Any]]:
    return {event["member"]: event for event in events(run) if event["event"] == "member_finished"}


def show(work: Path, seeds: int) -> None:
    """Bits per byte per member with the spread over seeds, costs, and KL between neighbours."""
    for exponent in EXPONENTS:
        runs = {
            strategy: [work / arm_name(strategy, exponent, seed) for seed in range(seeds)] for strategy in STRATEGIES
        }
        complete = [
            seed
            for seed in range(seeds)
            if all(any(e["event"] == "build_finished" for e in events(runs[s][seed])) for s in STRATEGIES)
        ]
        print(f"\n## peak exponent {exponent:g}: seeds {complete}")
        if complete:
            table({strategy: [paths[seed] for seed in complete] for strategy, paths in runs.items()})


def table(runs: dict[str, list[Path]]) -> None:
    members = list(finished_members(runs["independent"][0]))
    scores = {
        (strategy, member): [finished_members(run)[member] for run in paths]
        for strategy, paths in runs.items()
        for member in members
    }
    print("| member | independent, bits per byte | progressive | difference per seed | KL from the smaller, ind. | prog. |")
    print("|---|---|---|---|---|---|")
    for member in members:
        figures = {s: [e["held_out"]["bits_per_byte"] for e in scores[s, member]] for s in STRATEGIES}
        differences = [p - i for i, p in zip(figures["independent"], figures["progressive"], strict=True)]
        kls = [
            [e["kl_from_previous"]["kl_small_to_large"] for e in scores[s, member] if e["kl_from_previous"]]
            for s in STRATEGIES
        ]
        cells = [
            member,
            *(spread(figures[s]) for s in STRATEGIES),
            ", ".join(f"{d:+.4f}" for d in differences),
            *(spread(kl) if kl else "" for kl in kls),
        ]
        print("| " + " | ".join(cells) + " |")
    for strategy, paths in runs.items():
        stages = [[e for e in events(run) if e["event"] == "stage_finished"] for run in paths]
        six_nd, matmul, seconds = (
            statistics.mean(sum(value(e) for e in run) for run in stages)
            for value in (lambda e: e["flops"]["six_nd"], lambda e: e["flops"]["matmul"], lambda e: e["seconds"])
        )
        print(f"{strategy}: {six_nd:.4g} FLOPs (6ND), {matmul:.4g} FLOPs (matmul), {seconds:.0f} core seconds")


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
