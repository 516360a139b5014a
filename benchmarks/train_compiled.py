"""Compiled steps: kinfolk's blocks as `--compile` has them, beside a bare loop's whole model under torch.compile.

Called by benchmarks/train.py: all in turn in one process, with two threads.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from train_contenders import bare_optimizer, bare_step
from train_steps import our_step, ratio
from train_task import CONTEXT, SEQUENCES_PER_STEP, TOKENS_PER_STEP, new_model, prepare, sequences


def compiled(work: Path, sizes: list[str], rounds: int = 8) -> None:
    """The table: tokens per second, seconds of the first step with nothing cached, and ratios of the speeds."""
    import torch

    prepare(work)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=work)
    torch.set_num_threads(2)
    print(
        "| model | kinfolk: tokens/s | kinfolk, compiled (first step) | bare loop, compiled (first step) "
        "| kinfolk compiled / not | kinfolk / bare loop, both compiled |"
    )
    print("|---|---|---|---|---|---|")
    for size in sizes:
        steps = {
            "plain": our_step(size, work),
            "blocks": our_step(size, work, compile_blocks=True),
            "bare": _bare(size, work),
        }
        first = {name: _seconds(step) for name, step in steps.items()}
        speeds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                speeds[name].append(TOKENS_PER_STEP / _seconds(step))
        plain, blocks, bare = (f"{statistics.median(each):,.0f}" for each in speeds.values())
        print(
            f"| {size} | {plain} | {blocks} ({first['blocks']:.0f} s) | {bare} ({first['bare']:.0f} s) "
            f"| {ratio(speeds['blocks'], speeds['plain'])} | {ratio(speeds['blocks'], speeds['bare'])} |",
            flush=True,
        )


def _bare(size: str, work: Path) -> Callable[[], None]:
    import torch

    model = new_model(size, work).train()
    optimizer, whole = bare_optimizer(model), torch.compile(model)
    rows = sequences(work)[:SEQUENCES_PER_STEP, :CONTEXT]

    def step() -> None:
        bare_step(whole, optimizer, rows)

    return step


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
