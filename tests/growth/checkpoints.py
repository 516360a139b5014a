"""Tiny checkpoints of every architecture on disk, hard to preserve by accident."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt2": {"n_inner": 100},
}
WIDER: dict[str, int | bool | str] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 60,
}


def changes_of(architecture: str) -> dict[str, int | bool | str]:
    """A growth in every size, by an integer ratio where LayerNorm asks for one."""
    if architecture in ("gpt2", "gpt_neox"):
        return WIDER | {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 128}
    return WIDER | ({"intermediate_size": 36} if architecture == "qwen3_moe" else {})


@cache
def model(architecture: str = "llama", tied: bool = False) -> Any:
    sizes = _SIZES | _OWN.get(architecture, {}) | {"tie_word_embeddings": tied}
    if architecture in ("gpt2", "gpt_neox"):
        sizes = {name: value for name, value in sizes.items() if name not in ("head_dim", "num_key_value_heads")}
    if architecture == "gpt2":
        del sizes["intermediate_size"]  # it is n_inner here
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.3 * draw)
            else:
                parameter.add_(0.2 * draw)
    return made


def save(folder: Path, architecture: str = "llama", tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint folder as transformers writes it, without a tokenizer."""
    import copy

    copy.deepcopy(model(architecture, tied)).to(dtype).save_pretrained(folder)
    return folder


def logits(checkpoint: Path | Any, tokens: torch.Tensor) -> torch.Tensor:
    loaded = checkpoint
    if isinstance(checkpoint, Path):
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return loaded.eval()(tokens).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
