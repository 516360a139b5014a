"""Post-training once, used on every member: how fast a pair decodes, and how much of full fine-tuning it recovers.

    python benchmarks/transfer.py speed      tokens per second of pairs beside the serial limit; a few minutes
    python benchmarks/transfer.py run        bases, trainings, measurements of all seeds; goes on where it was stopped
    python benchmarks/transfer.py show       the tables of docs/results-transfer.md, from whatever has finished

`run` reads ../shared/data (classics, modern_pd, seed_tasks, stories260K) and says so where it is absent. The bases are
a progressive family of three, its largest member continued on other text, a model with another tokenizer, and
stories260K; all but the last are made for each seed by `kinfolk build`. Value networks are trained on the smallest
member, or on the two smallest; alpha is chosen on development demonstrations, and every figure is of test ones.
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from progressive import CLASSICS
from transfer_family import BASES, MODERN, build_bases
from transfer_task import WRITTEN, write_task


def main() -> None:
    from transfer_arms import ARMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "run", "show"])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-transfer"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        from transfer_speed import speed

        speed(arguments.rounds)
        return
    if arguments.what == "run":
        absent = [str(path) for path in (CLASSICS, MODERN, WRITTEN) if not path.exists()]
        if absent:
            sys.exit(f"skipped: this benchmark reads {', '.join(absent)}, which is not there")
        build_bases(arguments.work, arguments.seeds, arguments.bases, arguments.jobs)
        write_task(arguments.work / "task")
        one = partial(one_seed, arguments.work, arguments.arms, arguments.bases)
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(one, arguments.seeds))
    from transfer_tables import show

    show(arguments.work, arguments.seeds)


def one_seed(work: Path, arms: list[str], bases: list[str], seed: int) -> None:
    """In a process of its own, with one thread."""
    import torch
    from transfer_measure import run_seed

    from kinfolk.cli.live import live_view

    torch.set_num_threads(1)
    with live_view() as view:
        run_seed(work, seed, arms, bases, view)


if __name__ == "__main__":
    main()
