"""Patch-level training: its speed beside token-level training, and what it gives at equal compute.

    python benchmarks/patch.py speed           tokens per second of patch steps and token steps, in one run
    python benchmarks/patch.py run             all arms, each an ordinary `kinfolk build`; goes on where it was stopped
    python benchmarks/patch.py show            the table of what has finished

`speed` takes whole steps, reading included, at the same positions a step; rounds alternate between the sizes, so that a
machine whose speed drifts harms none of them. `run` reads ../shared/data/classics and says so where it is absent. Its
arms train one member alone; all have one schedule shape and cost the same FLOPs, so that patch arms read more tokens.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from progressive import CLASSICS, build_all, events, finished_members, prepare, spread

from kinfolk.data.loader import Reading, read
from kinfolk.family.load import load_family
from kinfolk.family.patch import relative_cost, token_share_of
from kinfolk.plan.stages import Patch
from kinfolk.train.engine import alone
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import stage_loss
from kinfolk.train.optimizer import make_optimizer

SIZES = (1, 2, 4, 8)
POSITIONS_PER_STEP = 4096
POSITIONS_PER_MICRO_BATCH = 1024
CONTEXT = 256

ARMS: dict[str, tuple[int, float, str] | None] = {
    "token": None,
    "K 4, r 1/3": (4, 1 / 3, "carry"),
    "K 4, r 1/3, reset": (4, 1 / 3, "reset"),
    "K 2, r 1/3": (2, 1 / 3, "carry"),
    "K 8, r 1/3": (8, 1 / 3, "carry"),
    "K 4, r 1/5": (4, 1 / 5, "carry"),
    "K 4, r 1/2": (4, 1 / 2, "carry"),
}
"""Patch size, share of the positions, and what happens to the optimizer at the switch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-patch"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="token-level steps; what every arm costs")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.rounds, arguments.threads)
        return
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: these arms read {CLASSICS}, which is not there")
    if arguments.what == "run":
        runs = {
            run_name(arm, arguments.steps, seed): overrides(arm, arguments.steps, seed)
            for seed, arm in itertools.product(range(arguments.seeds), arguments.arms)
        }
        build_all(prepare(arguments.work, 1), arguments.work, runs, arguments.jobs)
    show(arguments)


def speed(rounds: int, threads: int) -> None:
    """Tokens per second at each patch size, and the ratio to K times those of token-level steps."""
    torch.set_num_threads(threads)
    print("| hidden size, layers | " + " | ".join(f"K {size}" for size in SIZES) + " | step of K 8 / step of K 1 |")
    print("|---|" + "---|" * (len(SIZES) + 1))
    for preset, index in (("tiny", 0), ("tiny", 3), ("small", 3)):
        steps = [Step(preset, index, size) for size in SIZES]
        seconds: list[list[float]] = [[] for _ in SIZES]
        for round_ in range(rounds + 1):
            for step, measured in zip(steps, seconds, strict=True):
                took = step.seconds()
                if round_:  # the first one warms up
                    measured.append(took)
        medians = [statistics.median(measured) for measured in seconds]
        cells = [
            f"{size * POSITIONS_PER_STEP / median:,.0f} ({medians[0] / median:.2f} K)"
            for size, median in zip(SIZES, medians, strict=True)
        ]
        shape = steps[0].shape
        name = f"{shape.hidden_size}, {shape.num_hidden_layers}"
        print(f"| {name} | " + " | ".join(cells) + f" | {medians[-1] / medians[0]:.2f} |", flush=True)


class Step:
    """One model that can be asked to train a step of patches of one size, from tokens on the disk's side of it."""

    def __init__(self, preset: str, index: int, size: int) -> None:
        family = load_family(preset).family
        member_shape = family.members[index].shape
        assert member_shape is not None
        self.shape = member_shape
        config = config_for(self.shape, family.model, 1024)
        config.max_position_embeddings = CONTEXT
        self.objective = stage_loss(new_model(config, seed=0), Patch(size))
        self.optimizer = make_optimizer(self.objective.model, family.recipe.optimizer)  # type: ignore[arg-type]
        self.rows = POSITIONS_PER_STEP // CONTEXT
        self.reading = Reading(CONTEXT, size, size, first=0, sequences=10**6)
        self.tokens = np.random.default_rng(0).integers(1024, size=8_000_000).astype(np.uint16)
        self.done = 0

    def seconds(self) -> float:
        began = time.perf_counter()
        sequences = torch.from_numpy(read(self.tokens, self.reading, self.done * self.rows, self.rows, seed=0))
        self.done += 1
        self.objective.train()
        for part in sequences.split(POSITIONS_PER_MICRO_BATCH // CONTEXT):
            with alone().autocast("float32"):
                loss = self.objective(part).minimised
            (loss / sequences.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - began


def overrides(arm: str, steps: int, seed: int) -> list[str]:
    """Settings of an arm that costs `steps` token-level steps."""
    common = ["strategy=independent", "recipe.schedule.decay_share=0.2", f"recipe.seed={seed}"]
    setting = ARMS[arm]
    tokens = steps * 2048
    if setting is None:
        return [*common, f"members.0.tokens={tokens}.0"]
    size, step_share, optimizer = setting
    cost = relative_cost(size, token_share_of(size, step_share))
    patch = f"{{size: {size}, step_share: {step_share:.6f}, optimizer: {optimizer}}}"
    return [*common, f"members.0.tokens={tokens / cost:.1f}", f"patch={patch}"]


def run_name(arm: str, steps: int, seed: int) -> str:
    return f"{arm.replace(',', '').replace(' ', '').replace('/', '-')}-steps{steps}-seed{seed}"


def show(arguments: argparse.Namespace) -> None:
    """Bits per byte, difference to the token arm of the same seed, cost, data and time of each arm."""
    print(f"\n{arguments.steps} token-level steps of compute; mean ± standard deviation over the seeds\n")
    print("| arm | seeds | bits per byte | minus token, per seed | FLOPs (matmul) | tokens read | core seconds |")
    print("|---|---|---|---|---|---|---|")
    scores: dict[str, dict[int, float]] = {}
    for arm in ARMS:
        runs = {seed: arguments.work / run_name(arm, arguments.steps, seed) for seed in range(arguments.seeds)}
        ended = {seed: run for seed, run in runs.items() if any(e["event"] == "build_finished" for e in events(run))}
        if not ended:
            continue
        scores[arm] = {
            seed: next(iter(finished_members(run).values()))["held_out"]["bits_per_byte"] for seed, run in ended.items()
        }
        differences = [
            f"{score - scores['token'][seed]:+.4f}"
            for seed, score in scores[arm].items()
            if arm != "token" and seed in scores.get("token", {})
        ]
        stages = [[event for event in events(run) if event["event"] == "stage_finished"] for run in ended.values()]
        flops = statistics.mean(sum(event["flops"]["matmul"] for event in run) for run in stages)
        tokens = statistics.mean(sum(event["tokens"] for event in run) for run in stages)
        seconds = statistics.mean(sum(event["seconds"] for event in run) for run in stages)
        cells = [arm, str(len(ended)), spread(list(scores[arm].values())), ", ".join(differences)]
        print("| " + " | ".join([*cells, f"{flops:.4g}", f"{tokens:,.0f}", f"{seconds:,.0f}"]) + " |")


if __name__ == "__main__":
    main()
