"""A training step by precision, attention kernel and threads: what the engine's rules choose from.

    python benchmarks/step.py [--threads 1] [--context-length 256]

Prints tokens per second (of wall time: use a quiet machine) for members of the small presets, and each choice's ratio
to float32 with SDPA in the same run. Rounds alternate between the choices, so that a machine whose speed drifts harms
none of them.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from kinfolk.family.load import load_family
from kinfolk.train.engine import Precision, alone
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import TokenLoss
from kinfolk.train.optimizer import make_optimizer

CHOICES: list[tuple[Precision, str]] = [
    ("float32", "sdpa"),
    ("float32", "eager"),
    ("bfloat16", "sdpa"),
    ("bfloat16", "eager"),
]
TOKENS_PER_STEP = 4096
TOKENS_PER_MICRO_BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| hidden size, layers | " + " | ".join(f"{precision} {kernel}" for precision, kernel in CHOICES) + " |")
    print("|---|" + "---|" * len(CHOICES))
    for preset, index in (("tiny", 0), ("tiny", 1), ("tiny", 3), ("small", 2), ("small", 3)):
        family = load_family(preset).family
        shape = family.members[index].shape
        assert shape is not None
        config = config_for(shape, family.model, 1024)
        config.max_position_embeddings = arguments.context_length
        steps = [Step(config, precision, kernel, arguments.context_length) for precision, kernel in CHOICES]
        rates: list[list[float]] = [[] for _ in CHOICES]
        for round_ in range(arguments.rounds + 1):
            for step, measured in zip(steps, rates, strict=True):
                rate = step.tokens_per_second()
                if round_:  # the first one warms up
                    measured.append(rate)
        medians = [statistics.median(measured) for measured in rates]
        cells = [f"{median:,.0f} ({median / medians[0]:.2f})" for median in medians]
        print(f"| {shape.hidden_size}, {shape.num_hidden_layers} | " + " | ".join(cells) + " |", flush=True)


class Step:
    """One model that can be asked to train a step."""

    def __init__(self, config: object, precision: Precision, kernel: str, context_length: int) -> None:
        model = new_model(config, seed=0)  # type: ignore[arg-type]
        model.set_attn_implementation(kernel)
        self.precision = precision
        self.objective = TokenLoss(model, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self.optimizer = make_optimizer(model, load_family("tiny").family.recipe.optimizer)
        self.sequences = torch.randint(0, 1024, (TOKENS_PER_STEP // context_length, context_length + 1))
        self.micro_batch = max(1, TOKENS_PER_MICRO_BATCH // context_length)

    def tokens_per_second(self) -> float:
        began = time.perf_counter()
        for part in self.sequences.split(self.micro_batch):
            with alone().autocast(self.precision):
                loss = self.objective(part).minimised
            (loss / TOKENS_PER_STEP).backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return TOKENS_PER_STEP / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
