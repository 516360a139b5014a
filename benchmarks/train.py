"""Training speed beside peers: the same model, tokens, batch, precision and checkpoints, each in a process of its own.

    pip install accelerate                            what the HF Trainer needs beside this project's packages
    python benchmarks/train.py [--rounds 3]           tokens per second of kinfolk, the HF Trainer and a bare loop
    python benchmarks/train.py turns [--rounds 3]     the same whole trainings, step by step in turn in one process
    python benchmarks/train.py steps                  kinfolk's step and a bare loop's, in turn in one process
    python benchmarks/train.py compiled               steps with compiled blocks, and a bare loop's compiled model
    python benchmarks/train.py profile                where the time of kinfolk's step goes
    python benchmarks/train.py saving                 kinfolk's checkpoint writer beside DCP's, in turn in one process
    python benchmarks/train.py parts                  the data pipeline and the tokenizer alone
    python benchmarks/train.py starts                 seconds to the first step of a stage that is new, grown, resumed

Rounds alternate between the contenders, forwards and backwards, so that a machine whose speed drifts harms none of
them. Tokens per second are those of the whole training, with reading and two checkpoints, from the first step on; the
seconds before that, imports included, stand beside. The HF Trainer saves weights and optimizer as it likes, the bare
loop the weights alone. kinfolk's held-out loss, which no other computes, is left out. torchtitan and litgpt do not
install beside this torch and transformers without patches, and are not measured.

The others are in files beside this one, each named after what it measures (train_turns.py), the trainings that are
compared in train_contenders.py. `one` and `start` are what this script calls itself with.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from train_compiled import compiled
from train_contenders import CONTENDERS, measured
from train_parts import parts
from train_process import called
from train_profile import profile
from train_saving import saving
from train_starts import one_start, starts
from train_steps import steps
from train_task import SHAPES, TOKENS_PER_STEP, prepare, steps_of
from train_turns import turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["compare", "turns", "steps", "compiled", "profile", "saving", "parts", "starts", "one", "start"],
        default="compare",
    )
    parser.add_argument("contender", nargs="?", choices=CONTENDERS, help="of `one`")
    parser.add_argument("size", nargs="?", choices=list(SHAPES), help="of `one`")
    parser.add_argument("--rounds", type=int, default=3, help="of `compare` and `turns`")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=list(SHAPES),
        default=list(SHAPES),
        help="of `compare`, `turns`, `steps`, `compiled` and `profile`",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-train"))
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(measured(arguments.contender, arguments.size, arguments.work)))
    elif arguments.what == "start":
        print(json.dumps(one_start(arguments.work)))
    elif arguments.what == "starts":
        starts(arguments.work)
    elif arguments.what == "turns":
        turns(arguments.work, arguments.sizes, arguments.rounds)
    elif arguments.what == "steps":
        steps(arguments.work, arguments.sizes)
    elif arguments.what == "compiled":
        compiled(arguments.work, arguments.sizes)
    elif arguments.what == "profile":
        profile(arguments.work, arguments.sizes)
    elif arguments.what == "saving":
        saving(arguments.work)
    elif arguments.what == "parts":
        parts(arguments.work)
    else:
        compare(arguments.work, arguments.sizes, arguments.rounds)


def compare(work: Path, sizes: list[str], rounds: int) -> None:
    """The table: medians over the rounds, and kinfolk's ratio to the best of the others in each round."""
    prepare(work)
    head = " | ".join(f"{name}: tokens/s (seconds before)" for name in CONTENDERS)
    print(f"| model | {head} | kinfolk / best of the others, per round |\n|---|" + "---|" * (len(CONTENDERS) + 1))
    for size in sizes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for round_ in range(rounds):
            for name in CONTENDERS if round_ % 2 == 0 else reversed(CONTENDERS):
                found[name].append(in_process(name, size, work))
        cells = [
            f"{statistics.median(one['speed'] for one in runs):,.0f} "
            f"({statistics.median(one['before'] for one in runs):.0f})"
            for runs in found.values()
        ]
        ratios = [
            found["kinfolk"][index]["speed"] / max(found[name][index]["speed"] for name in CONTENDERS[1:])
            for index in range(rounds)
        ]
        losses = {f"{runs[-1]['loss']:.2f}" for runs in found.values()}
        print(f"| {size} | {' | '.join(cells)} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)
        print(f"  (last losses: {', '.join(sorted(losses))})", file=sys.stderr)


def in_process(contender: str, size: str, work: Path) -> dict[str, float]:
    """Tokens per second from the first step on, the seconds before that, and the last loss."""
    began = time.time()
    result = called("one", contender, size, "--work", str(work))
    tokens = (steps_of(size) - 1) * TOKENS_PER_STEP
    return {
        "speed": tokens / (result["ended"] - result["first_step_at"]),
        "before": result["first_step_at"] - began,
        "loss": result["loss"],
    }


if __name__ == "__main__":
    main()
