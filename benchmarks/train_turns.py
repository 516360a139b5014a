"""Whole trainings in turn in one process: a step of kinfolk's build, one of a bare loop, one of the HF Trainer.

All read their own batches, save two checkpoints, each as it does, and use as many threads as suits them: kinfolk what
its rule says, the others all that torch takes. On a machine whose speed changes by the minute this tells small
differences that trainings one after the other do not.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Semaphore, Thread

from train_build import begin_run, watched_build
from train_contenders import bare_training, time_spent_in, trainer_training
from train_task import TOKENS_PER_STEP, prepare, steps_of

NAMES = ("kinfolk", "bare loop", "HF Trainer")


def turns(work: Path, sizes: list[str], rounds: int) -> None:
    """Tokens per second of each, over all steps but the first, and the others' times over kinfolk's in each round."""
    prepare(work)
    heads = " | ".join(f"{name}: tokens/s" for name in NAMES)
    ratios = " | ".join(f"kinfolk / {name}, per round" for name in NAMES[1:])
    print(f"| model | {heads} | {ratios} |\n|---|" + "---|" * (2 * len(NAMES) - 1))
    for size in sizes:
        seconds = [one_round(size, work) for _ in range(rounds)]
        tokens = (steps_of(size) - 1) * TOKENS_PER_STEP
        speeds = [f"{rounds * tokens / sum(each):,.0f}" for each in zip(*seconds, strict=True)]
        cells = [", ".join(f"{one[place] / one[0]:.2f}" for one in seconds) for place in range(1, len(NAMES))]
        print(f"| {' | '.join([size, *speeds, *cells])} |", flush=True)


def one_round(size: str, work: Path) -> tuple[float, ...]:
    """Seconds of each, in the order of `NAMES`, from the end of its first step to its last checkpoint."""
    import torch

    from kinfolk.train import stage

    threads = torch.get_num_threads()  # a build sets its own, and leaves them as they were
    run = work / f"run-{size}"
    begin_run(work, run)
    evaluating = time_spent_in(stage, "quick_loss")
    # What a generator does after its last step, a checkpoint it may be, comes when it is asked for one more.
    others = [bare_training(size, work), in_steps(lambda pause: trainer_training(size, work, pause))]
    mine: list[float] = []
    theirs: list[list[float]] = [[] for _ in others]
    last = 0.0

    def steps_of_the_others(name: str, loss: float) -> None:
        nonlocal last
        mine.append(time.time() - last)
        own = torch.get_num_threads()
        torch.set_num_threads(threads)
        take_turns()
        torch.set_num_threads(own)
        last = time.time()

    def take_turns() -> None:
        for other, seconds in zip(others, theirs, strict=True):
            began = time.time()
            next(other, None)
            seconds.append(time.time() - began)

    watched_build(work, size, run, steps_of_the_others)
    take_turns()
    saved = max(path.stat().st_mtime for path in run.glob("stages/*/checkpoints/*/state.json"))
    return sum(mine[1:]) + saved - last - sum(evaluating), *(sum(seconds[1:]) for seconds in theirs)


def in_steps(work: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """What a function does up to its next call of the function that it is given: it runs in a thread, and waits there.

    That thread and the caller's never run at the same time.
    """
    import torch

    go, paused = Semaphore(0), Semaphore(0)
    failed: list[BaseException] = []
    ended = False

    def pause() -> None:
        paused.release()
        go.acquire()

    def run() -> None:
        nonlocal ended
        go.acquire()
        torch.set_num_threads(torch.get_num_threads())  # which each thread keeps for itself
        try:
            work(pause)
        except BaseException as error:
            failed.append(error)
        ended = True
        paused.release()

    Thread(target=run, daemon=True).start()
    while not ended:
        go.release()
        paused.acquire()
        if failed:
            raise failed[0]
        yield
