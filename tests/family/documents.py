"""Family files to test with."""

from typing import Any


def shape(**sizes: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        **sizes,
    }


def document(**parts: Any) -> dict[str, Any]:
    """A valid family of two members; keywords replace its parts."""
    larger = shape(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, intermediate_size=96)
    return {
        "name": "pair",
        "model": {"architecture": "llama", "context_length": 16},
        "tokenizer": {"vocab_size": 300},
        "data": {"train": [{"path": "corpus.jsonl"}], "held_out": {"share": 0.1, "sources": []}},
        "members": [{"name": "small", "shape": shape()}, {"name": "large", "shape": larger, "tokens": 1e6}],
        "recipe": {"tokens_per_step": 64, "schedule": {"warmup_share": 0.1, "decay_share": 0.2}},
        **parts,
    }
