"""Progressive against independent training: the same ladder, data, tokenizer, recipe and schedule; several seeds.

    python benchmarks/progressive.py tune      peaks of the smallest two members, trained alone
    python benchmarks/progressive.py run       all arms, with the peak lowered by size; goes on where it was stopped
    python benchmarks/progressive.py run --exponent 0      the same with one peak for all sizes
    python benchmarks/progressive.py show      the tables of docs/results.md, from whatever has finished

Reads ../shared/data/classics and says so where it is absent. Every arm is an ordinary `kinfolk build`, one
single-thread process each, as many side by side as there are cores.
"""

import argparse
import bz2
import itertools
import json
import math
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
"""Taken from the middle of each held-out book: 54 books by authors that the training part does not have. Peaks, noise
and operators were chosen on these."""
TEST_GAP = 1_000
"""Characters between those and as many more of the same book, the test part: nothing is ever chosen on it."""

PEAKS = (0.0056, 0.008, 0.011, 0.016)
LATE = "recipe.schedule.decay_share=0.3"
ARMS = {
    "independent": ["strategy=independent"],
    "progressive": ["strategy=progressive"],
    "independent, late decay": ["strategy=independent", LATE],
    "progressive, late decay": ["strategy=progressive", LATE],
    "undecayed, late decay": ["strategy=progressive", LATE, "growth.start=undecayed"],
    "optimizer reset": ["strategy=progressive", "growth.optimizer=reset"],
    "stacked": ["strategy=progressive", "growth.depth=stack"],
    "less noise": ["strategy=progressive", "growth.noise=0.3"],
}
"""The baseline and the chain; both with a schedule that holds its peak until 70 % of each stage, the latter grown from
either state of the parent; and the chain with one choice of growth changed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-progressive"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exponent", type=float, default=0.25, help="recipe.peak_exponent; 0 is one peak for all")
    parser.add_argument("--members", type=int, default=4, help="use only the smallest so many members")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["independent", "progressive"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    family = prepare(arguments.work, arguments.members)
    if arguments.what == "tune":
        tune(prepare(arguments.work, 2), arguments.work, arguments.jobs)
    elif arguments.what == "run":
        runs = {
            run_name(arm, arguments, seed): [
                *ARMS[arm],
                f"recipe.peak_exponent={arguments.exponent}",
                f"recipe.seed={seed}",
            ]
            for seed, arm in itertools.product(range(arguments.seeds), arguments.arms)
        }
        build_all(family, arguments.work, runs, arguments.jobs)
    if arguments.what != "tune":
        show(arguments)


def run_name(arm: str, arguments: argparse.Namespace, seed: int) -> str:
    words = arm.replace(",", "").replace(" ", "-")
    return f"{words}-exponent{arguments.exponent:g}-members{arguments.members}-seed{seed}"


def prepare(work: Path, members: int) -> Path:
    """Write the family file with its data; returns its path."""
    held_out = write_held_out(work)
    document = yaml.safe_load((HERE / "progressive.yaml").read_text())
    document["members"] = document["members"][:members]
    document["data"] = {
        "train": [{"path": str(CLASSICS / "train-00.jsonl.bz2")}],
        "held_out": {"sources": [{"path": str(held_out.resolve())}]},
    }
    family = work / f"family{members}.yaml"
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    return family


def write_held_out(work: Path) -> Path:
    """The held-out excerpts as a file of documents; beside it the test part as test.txt."""
    work.mkdir(parents=True, exist_ok=True)
    held_out, test = work / "held_out.jsonl", work / "test.txt"
    if not (held_out.exists() and test.exists()):
        with bz2.open(CLASSICS / "valid.jsonl.bz2", "rt", encoding="utf-8") as lines:
            books = [json.loads(line)["text"] for line in lines]
        starts = [(len(book) - HELD_OUT_CHARACTERS) // 2 for book in books]
        chosen = [book[start : start + HELD_OUT_CHARACTERS] for book, start in zip(books, starts, strict=True)]
        starts = [start + HELD_OUT_CHARACTERS + TEST_GAP for start in starts]
        kept = [book[start : start + HELD_OUT_CHARACTERS] for book, start in zip(books, starts, strict=True)]
        held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
        test.write_text("\n\n".join(kept))
    return held_out


def test_score(work: Path, run: Path, member: str) -> float:
    """Bits per byte of a finished member on the test part, measured once and kept."""
    kept = run / "test.json"
    scores: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    if member not in scores:
        import torch

        from kinfolk.evaluate.measure import measure

        torch.set_num_threads(1)
        scores[member] = measure(str(run / "members" / member), text=work / "test.txt", run=None).bits_per_byte
        kept.write_text(json.dumps(scores))
    return scores[member]


def prepare_data(work: Path, family: Path) -> Path:
    """Tokenise a family's data once, for runs to copy."""
    store = work / "data"
    if not store.exists():
        from kinfolk.data.tokens import prepare as tokenise
        from kinfolk.family.load import load_family, with_absolute_paths

        write_held_out(work)
        loaded = load_family(str(family))
        tokenise(with_absolute_paths(loaded), loaded.folder, store, where=loaded.origin)
    return store


def tune(family: Path, work: Path, jobs: int) -> None:
    """Held-out loss of the smallest two members, trained alone, at each peak."""
    runs = {f"tune-{peak:g}": [*ARMS["independent"], f"recipe.peak_learning_rate={peak}"] for peak in PEAKS}
    build_all(family, work, runs, jobs)
    for name in runs:
        losses = {member: event["held_out"]["loss"] for member, event in finished_members(work / name).items()}
        print(name, {member: round(loss, 4) for member, loss in losses.items()})


def build_all(family: Path, work: Path, runs: dict[str, list[str]], jobs: int) -> None:
    """Build every run, `jobs` at a time; the data are tokenised once and copied to each."""
    store = prepare_data(work, family)

    def build(name: str) -> None:
        run = work / name
        if not (run / "data").exists():
            shutil.copytree(store, run / "data")
        command = [sys.executable, "-m", "kinfolk", "build", str(family), "--run", str(run)]
        command += [word for override in runs[name] for word in ("--set", override)]
        with open(work / f"{name}.log", "a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            _, status, used = os.wait4(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        with open(run / "processor_seconds.jsonl", "a") as seconds:
            seconds.write(json.dumps({"seconds": used.ru_utime + used.ru_stime}) + "\n")
        print(f"{name}: {'done' if code == 0 else f'FAILED, see {log.name}'}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(build, runs))


def events(run: Path) -> Iterator[dict[str, Any]]:
    if (run / "ledger.jsonl").exists():
        for line in (run / "ledger.jsonl").read_text().splitlines():
            yield json.loads(line)


def finished_members(run: Path) -> dict[str, dict[str, Any]]:
    return {event["member"]: event for event in events(run) if event["event"] == "member_finished"}


def show(arguments: argparse.Namespace) -> None:
    """Bits per byte on the test part with the spread over seeds, costs, and KL between neighbours."""
    write_held_out(arguments.work)
    runs = {
        arm: {seed: arguments.work / run_name(arm, arguments, seed) for seed in range(arguments.seeds)} for arm in ARMS
    }
    finished = {
        arm: {seed: run for seed, run in seeds.items() if any(e["event"] == "build_finished" for e in events(run))}
        for arm, seeds in runs.items()
    }
    print(
        f"\npeak exponent {arguments.exponent:g}; bits per byte on the test part, "
        "mean ± standard deviation over the seeds\n"
    )
    print("| member | arm | seeds | bits per byte | minus independent, per seed | KL(smaller, this), nats |")
    print("|---|---|---|---|---|---|")
    baseline: dict[int, float] = {}
    for index in range(arguments.members):
        for arm, seeds in finished.items():
            rows = {seed: list(finished_members(run).values())[index] for seed, run in seeds.items()}
            scores = {seed: test_score(arguments.work, seeds[seed], event["member"]) for seed, event in rows.items()}
            if arm == "independent":
                baseline = scores
            if rows:
                print(row(arm, rows, scores, baseline))
    for arm, seeds in finished.items():
        costs = [[e for e in events(run) if e["event"] == "stage_finished"] for run in seeds.values()]
        if costs:
            six_nd, matmul, seconds = (
                statistics.mean(sum(part(e) for e in run) for run in costs)
                for part in (lambda e: e["flops"]["six_nd"], lambda e: e["flops"]["matmul"], lambda e: e["seconds"])
            )
            processor = statistics.mean(processor_seconds(run) for run in seeds.values())
            print(
                f"{arm}: {six_nd:.4g} FLOPs (6ND), {matmul:.4g} FLOPs (matmul), {seconds:,.0f} s of training, "
                f"{processor:,.0f} processor seconds in all"
            )
    show_lead(finished["independent"], finished["progressive"])


def show_lead(independent: dict[int, Path], progressive: dict[int, Path]) -> None:
    """By how many steps of its twin the chain's member is ahead, where both have the same quick held-out loss."""
    print("\n| stage | seed | steps alone | taken away | ahead at step 200 | least | at the end |")
    print("|---|---|---|---|---|---|---|")
    for seed in sorted(independent.keys() & progressive.keys()):
        for stage in list(finished_members(progressive[seed]))[1:]:
            alone, grown = (held_out_curve(run, stage) for run in (independent[seed], progressive[seed]))
            leads = [(steps_until(alone, loss), step) for step, loss in grown]
            ahead = [(math.inf if reached is None else reached - step) for reached, step in leads]
            last = alone[-1][0] - grown[-1][0]
            cells = [stage, str(seed), str(alone[-1][0]), str(last)]
            cells += [
                f"more than {last}" if lead == math.inf else f"{lead:.0f}" for lead in (ahead[0], min(ahead), ahead[-1])
            ]
            print("| " + " | ".join(cells) + " |")


def held_out_curve(run: Path, stage: str) -> list[tuple[int, float]]:
    """Steps and quick held-out losses of a stage."""
    lines = (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["held_out_loss"]) for record in records if "held_out_loss" in record]


def steps_until(curve: list[tuple[int, float]], loss: float) -> float | None:
    """Where a curve falls below `loss` for good, between its points on a straight line; None if it never does."""
    above = max((index for index, (_, there) in enumerate(curve) if there > loss), default=None)
    if above is None:
        return float(curve[0][0])
    if above == len(curve) - 1:
        return None
    (left, high), (right, low) = curve[above : above + 2]
    return left + (right - left) * (high - loss) / (high - low)


def processor_seconds(run: Path) -> float:
    """What a build has used of the processor, which other work on the machine lengthens less than the clock."""
    lines = (run / "processor_seconds.jsonl").read_text().splitlines()
    return float(sum(json.loads(line)["seconds"] for line in lines))


def row(arm: str, rows: dict[int, dict[str, Any]], scores: dict[int, float], baseline: dict[int, float]) -> str:
    """One line of the table: a member in one arm, over the seeds that have finished."""
    differences = [score - baseline[seed] for seed, score in scores.items() if seed in baseline]
    per_seed = ", ".join(f"{difference:+.4f}" for difference in differences) if arm != "independent" else ""
    kls = [event["kl_from_previous"]["kl_small_to_large"] for event in rows.values() if event["kl_from_previous"]]
    member = next(iter(rows.values()))["member"]
    cells = [member, arm, str(len(rows)), spread(list(scores.values())), per_seed, spread(kls) if kls else ""]
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
