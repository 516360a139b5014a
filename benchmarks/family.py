"""Strategies at equal quality: what each must spend until every member is as good as one trained alone.

    python benchmarks/family.py run       all arms at all budgets, each an ordinary `kinfolk build`; resumable
    python benchmarks/family.py show      the tables of docs/results.md, from whatever has finished

Reads ../shared/data/classics and says so where it is absent. A budget of 1 gives every member ten tokens per parameter,
by the strategy's own rule; other budgets multiply that. Where a strategy's member crosses the score of its twin is
interpolated between its budgets, in the logarithm of the compute; a family needs what its most demanding member needs.
All arms but those that are called otherwise hold the peak and decay linearly over the last 30 %.
"""

import argparse
import itertools
import math
import os
import statistics
import sys
from pathlib import Path

from progressive import CLASSICS, LATE, build_all, events, finished_members, prepare, spread, test_score

from kinfolk.family.patch import relative_cost, token_share_of

TOKENS_PER_PARAMETER = 10
PATCH_SIZE, PATCH_STEP_SHARE = 4, 0.2

ARMS: dict[str, list[str]] = {
    "independent": ["strategy=independent", LATE],
    "independent, linear": ["strategy=independent"],
    "independent, cosine": [
        "strategy=independent",
        "recipe.schedule.decay_shape=cosine",
        "recipe.schedule.end_ratio=0.1",
    ],
    "progressive": ["strategy=progressive", LATE],
    "progressive, linear": ["strategy=progressive"],
    "trunk": ["strategy=trunk", LATE],
    "trunk, patches": ["strategy=trunk", LATE],
}
TARGETS = ("independent", "independent, linear", "independent, cosine")
"""Whose members, at a budget of 1, the others are to match: the same schedule, the best one we know for a member alone,
and the papers' AdamW with a cosine to a tenth."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-family"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=3, help="use only the smallest so many members")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 1.25])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    family = prepare(arguments.work, arguments.members)
    if arguments.what == "run":
        runs = {
            run_name(arm, budget, arguments.members, seed): overrides(arm, budget, seed)
            for seed, budget, arm in itertools.product(range(arguments.seeds), arguments.budgets, arguments.arms)
            if not (arm in TARGETS and budget > 1)
        }
        build_all(family, arguments.work, runs, arguments.jobs)
    show(arguments)


def overrides(arm: str, budget: float, seed: int) -> list[str]:
    """Settings of an arm. Patches read more tokens, so that a budget stands for the same compute in every arm."""
    tokens = TOKENS_PER_PARAMETER * budget
    settings = [*ARMS[arm], "recipe.peak_exponent=0.25", f"recipe.seed={seed}"]
    if arm.endswith("patches"):
        tokens /= relative_cost(PATCH_SIZE, token_share_of(PATCH_SIZE, PATCH_STEP_SHARE))
        settings.append(f"patch={{size: {PATCH_SIZE}, step_share: {PATCH_STEP_SHARE}, members: all}}")
    return [*settings, f"tokens_per_parameter={tokens:.6g}"]


def run_name(arm: str, budget: float, members: int, seed: int) -> str:
    return f"{arm.replace(',', '').replace(' ', '-')}-budget{budget:g}-members{members}-seed{seed}"


class Results:
    """Scores and costs of the runs that have finished, read once."""

    def __init__(self, work: Path, members: int, seeds: int, budgets: list[float]) -> None:
        self.seeds, self.budgets = seeds, sorted(budgets)
        self.scores: dict[tuple[str, float, int], dict[str, float]] = {}
        """Bits per byte on the test part, by member."""
        self.flops: dict[tuple[str, float, int], float] = {}
        """Matmul FLOPs of the whole family."""
        for arm, budget, seed in itertools.product(ARMS, self.budgets, range(seeds)):
            run = work / run_name(arm, budget, members, seed)
            ledger = list(events(run))
            if any(event["event"] == "build_finished" for event in ledger):
                key = (arm, budget, seed)
                self.scores[key] = {name: test_score(work, run, name) for name in finished_members(run)}
                self.flops[key] = sum(e["flops"]["matmul"] for e in ledger if e["event"] == "stage_finished")

    def needed(self, arm: str, target: str, member: str, seed: int) -> float | None:
        """Compute at which an arm's member has the target's score, as a share of the target family's.

        Bits per byte are taken to be linear in the logarithm of the compute between two budgets, and a little beyond
        the largest: by at most the distance of the last two. None where that does not reach the score. Where the
        smallest budget reaches it already, that one's compute, an upper bound.
        """
        wanted = self.scores[target, 1.0, seed][member]
        points = [
            (math.log(self.flops[arm, budget, seed] / self.flops[target, 1.0, seed]), self.scores[arm, budget, seed])
            for budget in self.budgets
            if (arm, budget, seed) in self.scores
        ]
        pairs = list(itertools.pairwise((compute, scores[member]) for compute, scores in points))
        if not pairs:
            return None
        (low, worse), (high, better) = next((pair for pair in pairs if pair[1][1] <= wanted), pairs[-1])
        if worse <= wanted:
            return math.exp(low)
        if better >= worse:
            return None
        compute = low + (high - low) * (worse - wanted) / (worse - better)
        return math.exp(compute) if compute <= high + (high - low) else None


def show(arguments: argparse.Namespace) -> None:
    """Scores and costs of every arm; then the compute that each needs until all its members match their twins."""
    results = Results(arguments.work, arguments.members, arguments.seeds, arguments.budgets)
    if not results.scores:
        sys.exit("nothing has finished yet")
    members = list(next(iter(results.scores.values())))
    print("\nBits per byte on the test part; mean ± standard deviation over the seeds\n")
    print("| arm | budget | seeds | " + " | ".join(members) + " | FLOPs (matmul) / independent |")
    print("|---" * (len(members) + 4) + "|")
    for arm, budget in itertools.product(ARMS, results.budgets):
        seeds = [seed for seed in range(results.seeds) if (arm, budget, seed) in results.scores]
        if seeds:
            cells = [spread([results.scores[arm, budget, seed][member] for seed in seeds]) for member in members]
            costs = [
                results.flops[arm, budget, seed] / results.flops["independent", 1.0, seed]
                for seed in seeds
                if ("independent", 1.0, seed) in results.flops
            ]
            cost = f"{statistics.mean(costs):.3f}" if costs else ""
            print(f"| {arm} | {budget:g} | {len(seeds)} | " + " | ".join(cells) + f" | {cost} |")
    for target in TARGETS:
        print(f"\nCompute at which each member matches its twin of '{target}', as a share of that whole family's\n")
        print("| arm | seeds | " + " | ".join(members) + " | all members |")
        print("|---" * (len(members) + 3) + "|")
        for arm in ARMS:
            seeds = [
                seed
                for seed in range(results.seeds)
                if (target, 1.0, seed) in results.scores
                and all((arm, budget, seed) in results.scores for budget in results.budgets)
            ]
            if seeds:
                print(needs_row(results, arm, target, members, seeds))


def needs_row(results: Results, arm: str, target: str, members: list[str], seeds: list[int]) -> str:
    """One line of the second table; a member whose score lies outside what two budgets can tell is marked."""
    columns = [[results.needed(arm, target, member, seed) for seed in seeds] for member in members]
    whole = [
        max(known) if len(known := [need for need in needs if need is not None]) == len(members) else None
        for needs in zip(*columns, strict=True)
    ]
    cells = [
        spread(known) if len(known := [need for need in column if need is not None]) == len(column) else "out of reach"
        for column in [*columns, whole]
    ]
    return f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
