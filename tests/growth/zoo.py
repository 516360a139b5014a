"""One tiny random model per architecture and variant, hard to preserve by accident, and what growth makes of it.

Gammas are far from one, biases from zero, eps is large, and logits are a few units. Models compute in float64
throughout where that is asked for, although transformers rounds to float32 inside: see `Float64`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from kinfolk.growth.depth import layer_map
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.sizes import Sizes, config_fields, sizes_of_config, with_fields
from kinfolk.plan.stages import Operator

VOCABULARY = 41


class Float64(TorchFunctionMode):
    """What asks for float32 gets float64: transformers' norms, softmaxes and rotary positions do not round."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = dict(keywords or {})
        if function is Tensor.float:
            return args[0].double()
        if keywords.get("dtype") is torch.float32:
            keywords["dtype"] = torch.float64
        if function in (Tensor.to, Tensor.type) and torch.float32 in args[1:]:
            args = (args[0], *(torch.float64 if argument is torch.float32 else argument for argument in args[1:]))
        return function(*args, **keywords)


@dataclass(frozen=True)
class Kind:
    """An architecture, and what its config says besides the sizes."""

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    """Sizes that differ from those of `parent_sizes`."""


_EPS = {"rms_norm_eps": 1e-3}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_WINDOW = {"sliding_window": 4}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], **_WINDOW}
_GEMMA = {"pad_token_id": None} | _EPS | _ALTERNATING | {"query_pre_attn_scalar": 7}
_NEOX = {"layer_norm_eps": 1e-3, "hidden_act": "gelu"}
_FULL_HEADS = {"num_key_value_heads": 4}
_NO_PADDING = {"pad_token_id": None}
"""The embedding of a padding token gets no gradient."""

KINDS = {
    "llama": Kind("llama", _EPS),
    "llama untied": Kind("llama", _EPS, {"tie_word_embeddings": False}),
    "llama biases": Kind("llama", _EPS | {"attention_bias": True, "mlp_bias": True}),
    "llama scaled rotary": Kind("llama", _EPS | {"rope_parameters": _LLAMA3}),
    "mistral": Kind("mistral", _EPS | _WINDOW, {"tie_word_embeddings": False}),
    "qwen2": Kind("qwen2", _EPS | _ALTERNATING | {"use_sliding_window": True}),
    "qwen3": Kind("qwen3", _EPS),
    "gemma2": Kind("gemma2", _GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "gemma2 untied": Kind("gemma2", _GEMMA, {"tie_word_embeddings": False}),
    "gemma3_text": Kind("gemma3_text", _GEMMA),
    "olmo2": Kind("olmo2", _EPS | _NO_PADDING, {"tie_word_embeddings": False}),
    "olmo2 tied": Kind("olmo2", _EPS | {"attention_bias": True}),
    "gpt2": Kind("gpt2", {"layer_norm_epsilon": 1e-3, "n_inner": 24}, _FULL_HEADS),
    "gpt_neox": Kind("gpt_neox", _NEOX | {"rotary_pct": 0.5}, _FULL_HEADS | {"tie_word_embeddings": False}),
    "gpt_neox serial": Kind("gpt_neox", _NEOX | {"rotary_pct": 0.5, "use_parallel_residual": False}, _FULL_HEADS),
    "phi3": Kind("phi3", _EPS | _NO_PADDING, {"tie_word_embeddings": False}),
    "mixtral": Kind("mixtral", _EPS, {"tie_word_embeddings": False, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": Kind("qwen3_moe", _EPS, {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen3_moe normed": Kind(
        "qwen3_moe", _EPS | {"norm_topk_prob": True}, {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
}

ONE_EACH = tuple({kind.architecture: name for name, kind in reversed(KINDS.items())}.values())
"""One kind of every architecture, for what its variants do not change."""


def parent_fields(kind: Kind) -> dict[str, Any]:
    """Sizes of the parent that every test begins from, all different."""
    plain = {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": 24,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    return plain | kind.sizes


def parent_config(kind: Kind, **changes: Any) -> Any:
    """The config of a parent, made as users make it."""
    fields = parent_fields(kind) | changes
    if "num_local_experts" in fields and kind.architecture == "qwen3_moe":
        fields["moe_intermediate_size"] = fields.pop("intermediate_size")
    layers = fields["num_hidden_layers"]
    extra = dict(kind.config)
    if "layer_types" in extra:
        extra["layer_types"] = [extra["layer_types"][layer % 2] for layer in range(layers)]
    if "n_inner" in extra:
        extra["n_inner"] = fields.pop("intermediate_size")
    if kind.architecture in ("gpt2", "gpt_neox"):
        del fields["head_dim"], fields["num_key_value_heads"]
    elif fields["head_dim"] * fields["num_attention_heads"] == fields["hidden_size"] and not hasattr(
        AutoConfig.for_model(kind.architecture), "head_dim"
    ):
        del fields["head_dim"]
    return AutoConfig.for_model(kind.architecture, **fields, **extra)


def child_config(parent: Any, sizes: Sizes, operator: Operator) -> Any:
    """The parent's config with the child's sizes."""
    layers = parent.num_hidden_layers
    sources = layer_map(layers, sizes.shape.num_hidden_layers, operator.depth, operator.placement)
    config = copy.deepcopy(parent)
    for name, value in config_fields(sizes, parent, tuple(layer.source for layer in sources)).items():
        setattr(config, name, value)
    return config


def empty_model(config: Any, dtype: torch.dtype = torch.float64) -> Any:
    """A model of a config, in evaluation mode."""
    config = copy.deepcopy(config)
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    keywords = {"experts_implementation": "eager"} if hasattr(config, "num_local_experts") else {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with Float64() if dtype == torch.float64 else torch.no_grad():
            config.dtype = dtype
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, **keywords)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def randomise(model: Any, seed: int = 0) -> Any:
    """Fill a model with numbers that hide no mistake."""
    generator = torch.Generator().manual_seed(seed)
    offset = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("bias"):
                parameter.copy_(0.3 * draw)
            elif parameter.dim() == 1:
                parameter.copy_((0 if offset else 1) + 0.4 * draw)
            elif "router" in name or name.endswith("mlp.gate.weight"):
                parameter.copy_(draw)
            else:
                parameter.copy_(1.2 * draw / parameter.shape[-1] ** 0.5)
    return model


@cache
def parent_model(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """The random parent of a kind, built once; its float32 version has the same weights, rounded."""
    model = empty_model(parent_config(KINDS[kind]), dtype)
    return randomise(model)


def checkpoint_of(model: Any, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The parameters, or tensors of their names, as a checkpoint names them: one for each matrix of an expert."""
    found: dict[str, Tensor] = {}
    for name, tensor in (tensors or dict(model.named_parameters())).items():
        tensor = tensor.detach()
        if ".experts." not in name:
            found[name] = tensor
            continue
        prefix, matrix = name.rsplit(".", 1)
        keys = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else ("down_proj",)
        for expert, whole in enumerate(tensor):
            for key, part in zip(keys, whole.chunk(len(keys)), strict=True):
                found[f"{prefix}.{expert}.{key}.weight"] = part
    return {_on_disk(name, model.config.model_type): tensor for name, tensor in found.items()}


def _on_disk(name: str, architecture: str) -> str:
    if architecture == "mixtral" and ".mlp." in name:
        for live, stored in (("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            name = name.replace(live, stored)
    return name.replace("lm_head.", "embed_out.") if architecture == "gpt_neox" else name


def load(model: Any, tensors: dict[str, Tensor]) -> Any:
    """Put a checkpoint into a model; its names and sizes must be exactly the model's."""
    own = checkpoint_of(model)
    assert set(own) == set(tensors)
    with torch.no_grad():
        for name, tensor in own.items():
            assert tensor.shape == tensors[name].shape, name
            # Parts of a tensor with all experts are views of it.
            tensor.copy_(tensors[name])
    return model


def child_of(model: Any, changes: dict[str, Any], operator: Operator) -> Any:
    """The model's child with some sizes changed, named as in a config."""
    parent = sizes_of_config(model.config)
    child = with_fields(parent, changes)
    tensors = grow_weights(checkpoint_of(model), model.config.model_type, parent, child, operator)
    return load(empty_model(child_config(model.config, child, operator), model.dtype), tensors)


def run(model: Any, tokens: Tensor, **keywords: Any) -> Any:
    """What the model gives, computed in its dtype throughout."""
    with torch.no_grad(), Float64() if model.dtype == torch.float64 else torch.no_grad():
        return model(tokens, **keywords)


def logits_of(model: Any, tokens: Tensor, **keywords: Any) -> Tensor:
    return run(model, tokens, **keywords).logits


def difference(parent: Any, child: Any, tokens: Tensor | None = None, **keywords: Any) -> float:
    """Largest difference of a logit of the parent's vocabulary, relative to the largest logit."""
    tokens = some_tokens() if tokens is None else tokens
    before = logits_of(parent, tokens, **keywords)
    after = logits_of(child, tokens, **keywords)[..., : before.shape[-1]]
    return float((after - before).abs().max() / before.abs().max())


def gradients_of(model: Any, tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Gradients of the loss by the names of the checkpoint."""
    tokens = some_tokens() if tokens is None else tokens
    model.zero_grad()
    with Float64() if model.dtype == torch.float64 else torch.enable_grad():
        logits = model(tokens).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return checkpoint_of(model, {name: parameter.grad for name, parameter in model.named_parameters()})


def some_tokens(batch: int = 2, time: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))
