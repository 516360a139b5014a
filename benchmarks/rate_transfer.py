"""Where the best peak learning rate lies at several sizes, with and without rate transfer.

    python benchmarks/rate_transfer.py run --axis width     three widths, every peak, each rule; goes on where stopped
    python benchmarks/rate_transfer.py run --axis depth     the same over depths
    python benchmarks/rate_transfer.py show --axis width    the table of what has finished

Reads ../shared/data/classics and says so where it is absent. Each arm is an ordinary `kinfolk build` of one member
alone, all on the same tokens in the same steps. The base has no arms of its own under the rules: it is what it is
without them.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from progressive import CLASSICS, build_all, events, finished_members, prepare

PEAKS = tuple(2.0**power for power in range(-9, -2))
RULES = {"width": ("none", "mup"), "depth": ("none", "mup", "completep")}
SIZES = {"width": (64, 128, 256), "depth": (2, 6, 18)}
"""Hidden sizes at 3 layers, and layers at a hidden size of 64; the first is the base."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--axis", choices=list(SIZES), default="width")
    parser.add_argument("--sizes", type=int, nargs="+", help="in place of the default ones; the first is the base")
    parser.add_argument("--peaks", type=float, nargs="+", default=PEAKS)
    parser.add_argument("--steps", type=int, default=1000, help="of 2,048 tokens")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-rate-transfer"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if not CLASSICS.is_dir():
        sys.exit(f"skipped: this benchmark reads {CLASSICS}, which is not there")
    if arguments.what == "run":
        runs = {
            run_name(arguments, rule, size, peak, seed): overrides(arguments, rule, size, peak, seed)
            for seed, size, peak, rule in itertools.product(
                range(arguments.seeds), sizes(arguments), arguments.peaks, RULES[arguments.axis]
            )
            if rule == "none" or size != sizes(arguments)[0]
        }
        build_all(prepare(arguments.work, 1), arguments.work, runs, arguments.jobs)
    show(arguments)


def sizes(arguments: argparse.Namespace) -> tuple[int, ...]:
    return tuple(arguments.sizes or SIZES[arguments.axis])


def shape(axis: str, size: int) -> dict[str, Any]:
    hidden, layers = (size, 3) if axis == "width" else (64, size)
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 32,
        "head_dim": 32,
        "intermediate_size": 11 * hidden // 4,
    }


def overrides(arguments: argparse.Namespace, rule: str, size: int, peak: float, seed: int) -> list[str]:
    member = {
        "name": f"{arguments.axis}{size}",
        "shape": shape(arguments.axis, size),
        "tokens": arguments.steps * 2048.0,
    }
    transfer = {"rule": rule, "base_shape": shape(arguments.axis, sizes(arguments)[0])}
    return [
        "strategy=independent",
        f"members={json.dumps([member])}",
        f"recipe.rate_transfer={json.dumps(transfer)}",
        f"recipe.peak_learning_rate={peak}",
        f"recipe.seed={seed}",
    ]


def run_name(arguments: argparse.Namespace, rule: str, size: int, peak: float, seed: int) -> str:
    base = sizes(arguments)[0] if rule != "none" else ""
    return f"{arguments.axis}{size}-{rule}{base}-peak{peak:g}-steps{arguments.steps}-seed{seed}"


def score(arguments: argparse.Namespace, rule: str, size: int, peak: float) -> float | None:
    """Held-out bits per byte, the mean over the seeds that have finished; infinite where a run has diverged."""
    found = []
    for seed in range(arguments.seeds):
        run = arguments.work / run_name(arguments, rule, size, peak, seed)
        members = finished_members(run)
        if members:
            found.append(next(iter(members.values()))["held_out"]["bits_per_byte"])
        elif any(event["event"] == "build_started" for event in events(run)) and diverged(run):
            found.append(math.inf)
    return statistics.mean(found) if found else None


def diverged(run: Path) -> bool:
    return "training stopped, and the weights" in run.with_name(run.name + ".log").read_text()


def optimum(scores: dict[float, float]) -> float | None:
    """Peak of the parabola, in the logarithm of the peak, through the best score and its neighbours; None at an end."""
    peaks = sorted(scores)
    best = min(range(len(peaks)), key=lambda index: scores[peaks[index]])
    if best in (0, len(peaks) - 1) or math.isinf(scores[peaks[best + 1]]) or math.isinf(scores[peaks[best - 1]]):
        return None
    (x0, y0), (x1, y1), (x2, y2) = ((math.log2(peak), scores[peak]) for peak in peaks[best - 1 : best + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    return float(2 ** ((x0 + x1) / 2 - left / (2 * bend)))


def show(arguments: argparse.Namespace) -> None:
    """Bits per byte at every peak; where the best one lies; and what the base's best costs beside a size's own."""
    base = sizes(arguments)[0]
    print(f"\n{arguments.axis}: {arguments.steps} steps of 2,048 tokens, {arguments.seeds} seed(s), bits per byte\n")
    heading = [f"{peak:g}" for peak in sorted(arguments.peaks)]
    print(
        f"| rule | {arguments.axis} | " + " | ".join(heading) + " | best peak | over the base's | loss at the base's |"
    )
    print("|---|---|" + "---|" * (len(heading) + 3))
    table = {
        (rule, size): {
            peak: value
            for peak in sorted(arguments.peaks)
            if (value := score(arguments, "none" if size == base else rule, size, peak)) is not None
        }
        for rule in RULES[arguments.axis]
        for size in sizes(arguments)
    }
    for (rule, size), scores in table.items():
        reference = table[rule, base]
        if not scores or not reference:
            continue
        own, first = optimum(scores), optimum(reference)
        grid_first = min(reference, key=lambda peak: reference[peak])
        lost = scores[grid_first] - min(scores.values()) if grid_first in scores else math.nan
        cells = [rule, str(size)]
        cells += [f"{scores[peak]:.4f}" if peak in scores else "" for peak in sorted(arguments.peaks)]
        cells += [f"{own:.4g}" if own else "at an end", f"{own / first:.2f}" if own and first else "", f"{lost:+.4f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
