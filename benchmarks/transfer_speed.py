"""Decode speed of a pair beside the serial limit 1 / (1 / base + 1 / value), and beside other ways to the same tokens.

Called by benchmarks/transfer.py. Models are drawn, not trained: what a step costs does not depend on it. Rounds
alternate between all ways, so that a machine whose speed drifts harms none of them. What is measured is processor
seconds of one thread, which other work on the machine lengthens less than the clock.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from kinfolk.train.model import new_model
from kinfolk.transfer.cache import new_cache
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.proxy import proxy_tuned

PROMPT, NEW = 32, 32
BATCHES = (1, 8)
SIZES = {
    "0.9 M, value 0.2 M, vocabulary 1,024": ((4, 128, 4, 352), (2, 64, 2, 176), 1024),
    "16 M, value 2.6 M, vocabulary 4,096": ((8, 384, 6, 1024), (4, 192, 3, 512), 4096),
    "30 M, value 5.3 M, vocabulary 8,192": ((8, 512, 8, 1408), (4, 256, 4, 704), 8192),
}
"""Base and value network as layers, hidden size, heads, intermediate size; heads are tied."""

Decode = Callable[[Tensor], Any]


def speed(rounds: int, new: int = NEW) -> None:
    """Print tokens per second of every way to decode, and the pair's share of the serial limit of the same round."""
    torch.set_num_threads(1)
    print(
        "| base | batch | base, tok/s | value | limit | pair | **pair / limit** | forward passes alone: pair / limit | "
        "pair without a cache / limit | proxy-tuning / pair |"
    )
    print("|---|" + "---|" * 9, flush=True)
    for name, (base_shape, value_shape, vocabulary) in SIZES.items():
        base, value, tuned = (
            drawn(shape, vocabulary, seed) for seed, shape in enumerate((base_shape, value_shape, value_shape))
        )
        ways = ways_to_decode(base, value, tuned, new)
        for batch in BATCHES:
            prompt = torch.randint(0, vocabulary, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
            seconds = alternating(ways, prompt, rounds)
            print("| " + " | ".join([name, str(batch), *cells(seconds, batch * new)]) + " |", flush=True)


def drawn(shape: tuple[int, int, int, int], vocabulary: int, seed: int) -> PreTrainedModel:
    layers, hidden, heads, intermediate = shape
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = new_model(config, seed).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def ways_to_decode(
    base: PreTrainedModel, value: PreTrainedModel, tuned: PreTrainedModel, new: int
) -> dict[str, Decode]:
    """Greedy decoding of so many tokens: by `generate`, and by forward passes with a cache and nothing else."""
    pair = Pair.of(base, value).eval()
    proxy = proxy_tuned(base, tuned, value)

    def generating(model: Any, **options: Any) -> Decode:
        return lambda prompt: model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, **options
        )

    return {
        "base": generating(base),
        "value": generating(value),
        "pair": generating(pair),
        "no cache": generating(pair, use_cache=False),
        "proxy": generating(proxy),
        "base passes": lambda prompt: passes(base, DynamicCache(config=base.config), prompt, new),
        "value passes": lambda prompt: passes(value, DynamicCache(config=value.config), prompt, new),
        "pair passes": lambda prompt: passes(pair, new_cache(pair.config), prompt, new),
    }


@torch.no_grad()
def passes(model: PreTrainedModel, cache: Cache, prompt: Tensor, new: int) -> None:
    ids = prompt
    for _ in range(new):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)


def alternating(ways: dict[str, Decode], prompt: Tensor, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every way in every round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, decode in ways.items():
            began = time.thread_time()
            decode(prompt)
            if round_:
                seconds[name].append(time.thread_time() - began)
    return seconds


def cells(seconds: dict[str, list[float]], tokens: int) -> list[str]:
    """Medians of rates, and of the ratios within each round with their range."""

    def rate(*names: str) -> str:
        return f"{tokens / statistics.median(map(sum, zip(*(seconds[name] for name in names), strict=True))):,.0f}"

    def share(name: str, *serial: str) -> str:
        """Of the serial limit: the time of what it is made of, in the time that it took."""
        limits = map(sum, zip(*(seconds[each] for each in serial), strict=True))
        ratios = [limit / took for limit, took in zip(limits, seconds[name], strict=True)]
        return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"

    return [
        rate("base"),
        rate("value"),
        rate("base", "value"),
        rate("pair"),
        share("pair", "base", "value"),
        share("pair passes", "base passes", "value passes"),
        share("no cache", "base", "value"),
        share("proxy", "pair"),
    ]
