"""Whole trainings in turn in one process: a step of kinfolk's build, then one of a loop written by hand, and so on.

Both read their own batches, save two checkpoints, each as it does, and use as many threads as suits them: kinfolk what
its rule says, the bare loop all that torch takes. On a machine whose speed changes by the minute
this tells small differences that trainings one after the other do not.
"""

import time
from pathlib import Path

from train_build import begin_run, watched_build
from train_contenders import bare_training, time_spent_in
from train_task import TOKENS_PER_STEP, prepare, steps_of


def turns(work: Path, sizes: list[str], rounds: int) -> None:
    """Tokens per second of both, over all steps but the first, and the ratio of their times in each round."""
    prepare(work)
    print("| model | kinfolk: tokens/s | bare loop | kinfolk / bare loop, per round |\n|---|---|---|---|")
    for size in sizes:
        seconds = [one_round(size, work) for _ in range(rounds)]
        tokens = (steps_of(size) - 1) * TOKENS_PER_STEP
        ours, theirs = (rounds * tokens / sum(each) for each in zip(*seconds, strict=True))
        ratios = ", ".join(f"{bare / mine:.2f}" for mine, bare in seconds)
        print(f"| {size} | {ours:,.0f} | {theirs:,.0f} | {ratios} |", flush=True)


def one_round(size: str, work: Path) -> tuple[float, float]:
    """Seconds of kinfolk's build and of the bare loop, from the end of their first steps to their last checkpoints."""
    import torch

    from kinfolk.train import stage

    threads = torch.get_num_threads()
    run = work / f"run-{size}"
    begin_run(work, run)
    evaluating = time_spent_in(stage, "quick_loss")
    bare = bare_training(size, work)
    mine: list[float] = []
    theirs: list[float] = []
    last = 0.0

    def step_of_the_other(name: str, loss: float) -> None:
        nonlocal last
        began = time.time()
        mine.append(began - last)
        own = torch.get_num_threads()
        torch.set_num_threads(threads)
        next(bare)
        torch.set_num_threads(own)
        last = time.time()
        theirs.append(last - began)

    watched_build(work, size, run, step_of_the_other)
    saved = max(path.stat().st_mtime for path in run.glob("stages/*/checkpoints/*/state.json"))
    return sum(mine[1:]) + saved - last - sum(evaluating), sum(theirs[1:])
