"""Steps alone, without reading and saving: what drifts with the machine from one process to the next falls out.

Called by benchmarks/train.py: kinfolk's step, the same with torch's attention kernel throughout, and a bare loop's, in
turn in one process.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from train_contenders import bare_optimizer, bare_step
from train_task import (
    CONTEXT,
    SEQUENCES_PER_MICRO_BATCH,
    SEQUENCES_PER_STEP,
    TOKENS_PER_STEP,
    new_model,
    prepare,
    read_family,
    sequences,
)


def steps(work: Path, sizes: list[str], rounds: int = 8) -> None:
    """The table: tokens per second with one thread and with two, and how many times as fast kinfolk's step is."""
    import torch

    prepare(work)
    print(
        "| model | threads | kinfolk: tokens/s | bare loop | kinfolk / bare loop: median, quartiles "
        "| kinfolk / with the kernel |"
    )
    print("|---|---|---|---|---|---|")
    for size in sizes:
        takes = {
            "kinfolk": our_step(size, work),
            "kernel": our_step(size, work, by_rule=False),
            "bare loop": their_step(size, work),
        }
        speeds: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in takes for threads in (1, 2)}
        for round_ in range(rounds + 1):
            for name, threads in speeds:
                torch.set_num_threads(threads)
                began = time.perf_counter()
                takes[name]()
                if round_:  # the first one warms up
                    speeds[name, threads].append(TOKENS_PER_STEP / (time.perf_counter() - began))
        for threads in (1, 2):
            ours, kernel, bare = (speeds[name, threads] for name in takes)
            medians = f"{statistics.median(ours):,.0f} | {statistics.median(bare):,.0f}"
            print(f"| {size} | {threads} | {medians} | {ratio(ours, bare)} | {ratio(ours, kernel)} |", flush=True)


def ratio(ours: list[float], others: list[float]) -> str:
    """Median and quartiles over the rounds."""
    low, middle, high = statistics.quantiles([mine / other for mine, other in zip(ours, others, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def our_step(size: str, work: Path, *, by_rule: bool = True, compile_blocks: bool = False) -> Callable[[], None]:
    """kinfolk's step, with attention as a build has it or with torch's kernel, and blocks compiled or not."""
    import torch

    from kinfolk.train.engine import Engine
    from kinfolk.train.layout import Layout
    from kinfolk.train.objective import TokenLoss
    from kinfolk.train.optimizer import make_optimizer

    family, model = read_family(work, size).family, new_model(size, work)
    shape = family.members[0].shape
    assert shape is not None
    engine = Engine(torch.device("cpu"), layout=Layout(compile=compile_blocks))
    objective = TokenLoss(model, torch.bfloat16).train()
    if by_rule:
        engine.use_attention(model, shape, "bfloat16", CONTEXT)
    engine.distribute(objective, "bfloat16")
    optimizer = make_optimizer(model, family.recipe.optimizer)
    rows = sequences(work)[:SEQUENCES_PER_STEP]

    def step() -> None:
        for part in rows.split(SEQUENCES_PER_MICRO_BATCH):
            with engine.autocast("bfloat16"):
                loss = objective(part).minimised
            (loss / TOKENS_PER_STEP).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(size: str, work: Path) -> Callable[[], None]:
    model = new_model(size, work).train()
    optimizer = bare_optimizer(model)
    rows = sequences(work)[:SEQUENCES_PER_STEP, :CONTEXT]

    def step() -> None:
        bare_step(model, optimizer, rows)

    return step
