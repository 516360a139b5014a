"""Attention on a CPU: torch's fused kernel beside plain matrix products, forwards and backwards.

    python benchmarks/attention.py [--threads 1] [--rounds 8]

One attention module of transformers' Llama on 1,024 tokens, for several hidden sizes, contexts and precisions, both
ways in turn. Prints how many times as long the fused kernel takes as the plain products: above 1 these are faster.
`Engine.use_attention` has its rule from this.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

TOKENS = 1_024
CONTEXTS = (32, 64, 128, 256, 512, 1_024)
WIDTHS = ((64, 16), (128, 32), (256, 32), (384, 32), (768, 64))
"""Hidden size and head size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"| precision, hidden size, head size | {' | '.join(map(str, CONTEXTS))} |\n|---|{'---|' * len(CONTEXTS)}")
    for precision in (torch.bfloat16, torch.float32):
        for hidden, head in WIDTHS:
            found = [ratio(hidden, head, context, precision, arguments.rounds) for context in CONTEXTS]
            name = f"{str(precision).removeprefix('torch.')}, {hidden}, {head}"
            print(f"| {name} | {' | '.join(f'{each:.2f}' for each in found)} |", flush=True)


def ratio(hidden: int, head: int, context: int, precision: torch.dtype, rounds: int) -> float:
    """Median over the rounds of the time of the fused kernel by that of the plain products."""
    fused, plain = (pass_through(hidden, head, context, precision, way) for way in ("sdpa", "eager"))
    fused(), plain()  # the first ones warm up
    return statistics.median(seconds(fused) / seconds(plain) for _ in range(rounds))


def pass_through(hidden: int, head: int, context: int, precision: torch.dtype, way: str) -> Callable[[], None]:
    """Attention with its projections, forwards and backwards."""
    config = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=hidden // head,
        num_key_value_heads=hidden // head,
        head_dim=head,
        max_position_embeddings=max(CONTEXTS),
        attn_implementation=way,
    )
    torch.manual_seed(0)
    attention, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)
    states = torch.randn(TOKENS // context, context, hidden, requires_grad=True)
    positions = torch.arange(context)[None]

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            mask = create_causal_mask(
                config=config, inputs_embeds=states, attention_mask=None, past_key_values=None, position_ids=positions
            )
            output = attention(states, position_embeddings=rotary(states, positions), attention_mask=mask)[0]
        output.sum().backward()

    return run


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
