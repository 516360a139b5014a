"""Tiny random causal models of several transformers architectures."""

import copy
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCAB = 53
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GROUPS = {"num_key_value_heads": 1, "head_dim": 8}
NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, **GROUPS),
    "llama tied": LlamaConfig(**SIZES, **GROUPS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **GROUPS),
    "gemma2": Gemma2Config(**SIZES, **GROUPS, **NO_TOKENS, query_pre_attn_scalar=8, final_logit_softcapping=3.0),
    "gemma3_text": Gemma3TextConfig(**SIZES, **GROUPS, **NO_TOKENS, query_pre_attn_scalar=8),
    "gemma3_text untied": Gemma3TextConfig(
        **SIZES, **GROUPS, **NO_TOKENS, query_pre_attn_scalar=8, tie_word_embeddings=False
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "gpt_neox": GPTNeoXConfig(**SIZES, hidden_dropout=0, attention_dropout=0),
    "olmo2": Olmo2Config(**SIZES, num_key_value_heads=1, **NO_TOKENS),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=1, **NO_TOKENS),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2),
}


def random_model(name: str, seed: int = 0, **sizes: int) -> PreTrainedModel:
    """Float32, on the CPU; norms and head are random too, so that nothing is hidden by ones or zeros."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[name])
    config.update(sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.train()
