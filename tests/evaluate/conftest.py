"""Tiny models that the tests of this folder share."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LlamaForCausalLM]:
    """Make a random Llama of two layers; the same arguments make the same weights."""

    def make(seed: int = 0, vocab: int = 61, hidden: int = 16, **settings: object) -> LlamaForCausalLM:
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=vocab,
            max_position_embeddings=64,
            initializer_range=0.4,
            bos_token_id=0,
            eos_token_id=0,
            **settings,
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).float().eval()

    return make
