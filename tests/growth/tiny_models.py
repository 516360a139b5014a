"""Tiny float64 models that are hard to preserve by accident: random gammas, biases if asked, logits up to about 4."""

from typing import Any

import torch
from double_precision import use_double_precision
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.growth.grow import grow_weights
from kinfolk.plan.stages import Operator

VOCABULARY = 61


def shape(
    hidden: int = 16,
    heads: int = 4,
    groups: int = 2,
    ffn: int = 24,
    layers: int = 2,
    tied: bool = True,
    head_dim: int = 4,
) -> Shape:
    return Shape(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=ffn,
        tie_word_embeddings=tied,
    )


def empty_model(architecture: Architecture, shape: Shape, *, bias: bool = False, double: bool = True) -> Any:
    sizes = shape.model_dump() | {"vocab_size": VOCABULARY, "attention_bias": bias, "rms_norm_eps": 1e-3}
    if architecture == "llama":
        # LlamaConfig refuses hidden sizes that are no multiple of the heads, which its model computes all the same;
        # setting the heads afterwards gets past it, and growth is tested at every ratio.
        heads = {name: sizes.pop(name) for name in ("num_attention_heads", "num_key_value_heads")}
        config = LlamaConfig(**sizes, mlp_bias=bias, num_attention_heads=1, num_key_value_heads=1)
        for name, number in heads.items():
            setattr(config, name, number)
        model: Any = LlamaForCausalLM(config)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    if double:
        model.double()
        use_double_precision(model)
    return model.eval()


def random_model(architecture: Architecture, shape: Shape, *, seed: int = 0, bias: bool = False) -> Any:
    model = empty_model(architecture, shape, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * draw)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * draw)
            else:
                # The head and the tied embedding get logits of about 4, whatever the hidden size.
                parameter.copy_(1.2 * draw / parameter.shape[-1] ** 0.5)
    return model


def load(model: Any, parameters: dict[str, Tensor]) -> Any:
    """Put parameters into a model; they must be exactly the model's."""
    own = dict(model.named_parameters())
    assert list(own) == list(parameters)
    with torch.no_grad():
        for name, parameter in own.items():
            assert parameter.shape == parameters[name].shape, name
            parameter.copy_(parameters[name])
    return model


def grown_model(
    model: Any, architecture: Architecture, parent: Shape, child: Shape, operator: Operator, *, bias: bool = False
) -> Any:
    parameters = grow_weights(dict(model.named_parameters()), architecture, parent, child, operator)
    return load(empty_model(architecture, child, bias=bias), parameters)


def random_tokens(batch: int = 2, time: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def relative_difference(parent: Any, child: Any, tokens: Tensor, **keywords: Any) -> float:
    with torch.no_grad():
        before, after = (model(tokens, **keywords).logits for model in (parent, child))
    return float((after - before).abs().max() / before.abs().max())


def gradients(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits = model(tokens).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
