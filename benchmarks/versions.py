"""Ever newer data: every version from scratch, continued from the finished one, or as a branch of the trunk.

    python benchmarks/versions.py run          all arms, each an ordinary `kinfolk build`; goes on where it was stopped
    python benchmarks/versions.py show         the table of what has finished

Reads ../shared/data/classics and says so where it is absent. Its books in the order of their years are cut into
versions of equal length; every version holds about the tokens that it adds, so that nothing is read more than once, and
from scratch means the same text as the trunk has gone through. All arms have one family file but for the strategy and
the decay share; LR path switching (arXiv 2410.04103) has 0.6.
"""

import argparse
import bz2
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml
from progressive import CLASSICS, build_all, events, finished_members, prepare, spread, test_score

BYTES_PER_TOKEN = 2.7
"""Of the classics at 1,024 entries; a fifth more text than that is cut, so that no version is read twice."""

ARMS = {
    "from scratch": ("independent", 0.95),
    "from scratch, decay 0.2": ("independent", 0.2),
    "continued": ("progressive", 0.95),
    "continued, decay 0.2": ("progressive", 0.2),
    "branch, decay 0.2": ("trunk", 0.2),
    "branch, decay 0.6": ("trunk", 0.6),
}
"""Strategy and decay share."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-versions"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--versions", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--steps", type=int, default=1500, help="steps of 2,048 tokens that every version adds")
    parser.add_argument("--member", type=int, default=1, help="which member of progressive.yaml, from 1, the smallest")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    work = arguments.work / f"member{arguments.member}-versions{arguments.versions}-steps{arguments.steps}"
    if arguments.what == "run":
        family = prepare_versions(work, arguments.member, arguments.versions, arguments.steps)
        runs = {
            run_name(arm, seed): [f"strategy={ARMS[arm][0]}", *schedule(ARMS[arm][1]), f"recipe.seed={seed}"]
            for seed, arm in itertools.product(range(arguments.seeds), arguments.arms)
        }
        build_all(family, work, runs, arguments.jobs)
    show(work, arguments.seeds)


def schedule(decay_share: float) -> list[str]:
    return [f"recipe.schedule.decay_share={decay_share}"]


def run_name(arm: str, seed: int) -> str:
    return f"{arm.replace(',', '').replace(' ', '-')}-seed{seed}"


def prepare_versions(work: Path, member: int, count: int, steps: int) -> Path:
    """Write the family file and its data, tokenised once for all runs; returns its path."""
    family = prepare(work, member)
    document = yaml.safe_load(family.read_text())
    tokens = steps * document["recipe"]["tokens_per_step"]
    document["members"] = [{**document["members"][-1], "tokens": float(tokens)}]
    files = [(work / f"part{number}.jsonl").resolve() for number in range(1, count + 1)]
    if not files[-1].exists():
        for file, text in zip(files, parts(count, round(1.2 * BYTES_PER_TOKEN * tokens)), strict=True):
            file.write_text(text)
    first, *later = [[{"path": str(file)}] for file in files]
    versions = [{"name": f"part{n}", "train": train, "tokens": float(tokens)} for n, train in enumerate(later, start=2)]
    document["data"] |= {"train": first, "versions": versions}
    family.write_text(yaml.safe_dump(document, sort_keys=False))
    if not (work / "data").exists():
        from kinfolk.data.versions import prepare_versions as tokenise
        from kinfolk.family.load import load_family, with_absolute_paths

        loaded = load_family(str(family))
        tokenise(with_absolute_paths(loaded), loaded.folder, work / "data", where=loaded.origin)
    return family


def parts(count: int, characters: int) -> Iterator[str]:
    """The training books from the oldest on, as `count` texts of JSON lines; so many characters evenly of each part."""
    found: list[dict[str, Any]] = []
    for shard in sorted(CLASSICS.glob("train-*.jsonl.bz2")):
        with bz2.open(shard, "rt", encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines]
    found.sort(key=lambda book: (int(book["year"]), book["id"]))
    total = sum(len(book["text"]) for book in found)
    if characters > total / count:
        sys.exit(
            f"the classics hold {total / count:,.0f} characters for each version, and {characters:,} are asked for"
        )
    groups: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    done = 0
    for book in found:
        groups[min(count - 1, count * done // total)].append(book)
        done += len(book["text"])
    for group in groups:
        share = min(1.0, characters / sum(len(book["text"]) for book in group))
        print(f"version of {len(group)} books from {group[0]['year']} to {group[-1]['year']}", flush=True)
        excerpts = [book["text"][: round(share * len(book["text"]))] for book in group]
        yield "".join(json.dumps({"text": excerpt}) + "\n" for excerpt in excerpts)


def show(work: Path, seeds: int) -> None:
    """For every version and arm: bits per byte on the test part, steps and compute of it alone and up to it."""
    print(f"\n{work.name}; bits per byte on the test part, mean ± standard deviation over the seeds\n")
    print(
        "| version | arm | seeds | bits per byte | minus from scratch, per seed | steps | steps so far | FLOPs so far |"
    )
    print("|---|---|---|---|---|---|---|---|")
    runs = {arm: {seed: work / run_name(arm, seed) for seed in range(seeds)} for arm in ARMS}
    finished = {
        arm: {seed: run for seed, run in by_seed.items() if any(e["event"] == "build_finished" for e in events(run))}
        for arm, by_seed in runs.items()
    }
    members = next((list(finished_members(run)) for each in finished.values() for run in each.values()), [])
    for member in members:
        baseline: dict[int, float] = {}
        for arm, by_seed in finished.items():
            if not by_seed:
                continue
            scores = {seed: test_score(work, run, member) for seed, run in by_seed.items()}
            if arm == "from scratch":
                baseline = scores
            differences = [f"{score - baseline[seed]:+.4f}" for seed, score in scores.items() if seed in baseline]
            costs = [cost(run, member) for run in by_seed.values()]
            steps, so_far, flops = (statistics.mean(values) for values in zip(*costs, strict=True))
            per_seed = "" if arm == "from scratch" else ", ".join(differences)
            cells = [member, arm, str(len(scores)), spread(list(scores.values())), per_seed]
            print("| " + " | ".join([*cells, f"{steps:,.0f}", f"{so_far:,.0f}", f"{flops:.4g}"]) + " |")


def cost(run: Path, member: str) -> tuple[float, float, float]:
    """Steps that a version took, those of all versions up to it, and their FLOPs (matmul)."""
    steps, so_far, flops = 0, 0, 0.0
    for event in events(run):
        if event["event"] == "stage_finished":
            steps, so_far = steps + event["steps"], so_far + event["steps"]
            flops += event["flops"]["matmul"]
        if event["event"] == "member_finished":
            if event["member"] == member:
                break
            steps = 0
    return steps, so_far, flops


if __name__ == "__main__":
    main()
