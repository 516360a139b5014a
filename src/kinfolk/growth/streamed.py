"""A transformers model that reads its weights from safetensors files while it runs, and keeps none of them.

Its parameters are on the meta device. A linear layer multiplies by some rows of its weight at a time, an embedding
reads the rows of the tokens that it is given, a mixture of experts one expert after the other, and everything else has
little to read. So memory is that of the activations, whatever the size of the model.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from kinfolk.errors import KinfolkError
from kinfolk.growth.axes import Axis, parts
from kinfolk.growth.names import tied_alias
from kinfolk.growth.precision import computing_in
from kinfolk.growth.rows import Stored
from kinfolk.growth.tables import table_of
from kinfolk.growth.torch_calls import CallsBy

ELEMENTS_AT_ONCE = 1 << 22
"""Of a weight: 16 MiB in float32."""


def streamed_model(config: Any, weights: Mapping[str, Stored], dtype: torch.dtype) -> Any:
    """A model of this config that computes in `dtype` from weights in files; run it under `computing_in(dtype)`."""
    config = copy.deepcopy(config)
    config._experts_implementation = "eager"  # which takes one expert after the other
    make: Any = AutoModelForCausalLM.from_config
    with no_init_weights(), computing_in(dtype), CallsBy(_empty_on_meta):
        model: nn.Module = make(config, dtype=dtype, attn_implementation="eager")
    model.eval().requires_grad_(False)
    names = _Names(config, weights)
    for path, module in model.named_modules():
        own = [name for name, parameter in module._parameters.items() if parameter is not None]
        for name in own:
            module._parameters[name] = module._parameters[name].to("meta")
        if set(own) >= {"gate_up_proj", "down_proj"}:
            _stream_experts(module, names.experts(path), dtype)
        elif own:
            _stream(module, {name: names.entry(f"{path}.{name}") for name in own}, dtype)
    return model


def _empty_on_meta(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Uninitialised tensors, which parameters are made of, take no memory; what is computed stays real."""
    return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


class _Names:
    """What a parameter of a model is called in the files."""

    def __init__(self, config: Any, weights: Mapping[str, Stored]) -> None:
        self._architecture = str(config.model_type)
        self._table = table_of(self._architecture)
        self._tied, self._experts = config.tie_word_embeddings, getattr(config, "num_local_experts", None)
        self._weights = weights

    def entry(self, name: str) -> Stored:
        candidates = [name]
        if original := tied_alias(name, self._architecture):
            heads = [head for head in self._table.outside if tied_alias(head, self._architecture)]
            candidates = [original] if self._tied else heads
        elif name.endswith(".gate.weight") and self._table.has_experts:
            router = next(key for key, axes in self._table.layer.items() if Axis.EXPERT in parts(axes[0]))
            candidates.append(f"{self._layer(name)}{router}")
        for candidate in candidates:
            for stored in (candidate, candidate.removeprefix(self._table.optional_prefix)):
                if stored in self._weights:
                    return self._weights[stored]
        raise KinfolkError(f"the weights lack the tensor {name}", fix="copy the complete checkpoint")

    def experts(self, path: str) -> dict[str, list[list[Stored]]]:
        """By parameter of the fused experts, for each expert the tensors that are stacked in it."""
        gate, up, down = (key for key in self._table.layer if "{expert}" in key)
        layer = self._layer(path)
        return {
            fused: [
                [self._weights[layer + key.format(expert=expert)] for key in keys]
                for expert in range(self._experts or 0)
            ]
            for fused, keys in (("gate_up_proj", (gate, up)), ("down_proj", (down,)))
        }

    def _layer(self, name: str) -> str:
        found = re.match(re.escape(self._table.layer_prefix) + r"\d+\.", name)
        assert found, name
        return found[0]


class _Experts:
    """In the place of a stacked parameter: one expert is read when it is asked for."""

    def __init__(self, experts: list[list[Stored]], dtype: torch.dtype) -> None:
        self._experts, self._dtype = experts, dtype

    def __getitem__(self, number: Any) -> Tensor:
        return torch.cat([entry.whole().to(self._dtype) for entry in self._experts[int(number)]])


def _stream_experts(module: nn.Module, experts: dict[str, list[list[Stored]]], dtype: torch.dtype) -> None:
    for name, entries in experts.items():
        del module._parameters[name]
        object.__setattr__(module, name, _Experts(entries, dtype))


def _stream(module: Any, entries: dict[str, Stored], dtype: torch.dtype) -> None:
    kind: type = type(module)
    if kind is nn.Linear:
        module.forward = _linear(entries, dtype)
    elif kind is Conv1D:
        module.forward = _conv1d(entries, dtype)
    elif isinstance(module, nn.Embedding):
        _stream_embedding(module, entries["weight"], dtype)
    else:
        _stream_small(module, entries, dtype)


def _linear(entries: dict[str, Stored], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = entries["weight"], entries.get("bias")
    rows, columns = weight.shape
    step = max(1, ELEMENTS_AT_ONCE // columns)

    def forward(inputs: Tensor) -> Tensor:
        output = inputs.new_empty(*inputs.shape[:-1], rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            shift = bias.rows(start, stop).to(dtype) if bias is not None else None
            output[..., start:stop] = functional.linear(inputs, weight.rows(start, stop).to(dtype), shift)
        return output

    return forward


def _conv1d(entries: dict[str, Stored], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """GPT-2's linear layer, whose weight is (inputs, outputs)."""
    weight, bias = entries["weight"], entries["bias"]
    rows, columns = weight.shape
    step = max(1, ELEMENTS_AT_ONCE // columns)

    def forward(inputs: Tensor) -> Tensor:
        output = bias.whole().to(dtype).expand(*inputs.shape[:-1], columns)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            output = output + inputs[..., start:stop] @ weight.rows(start, stop).to(dtype)
        return output

    return forward


def _stream_embedding(module: Any, weight: Stored, dtype: torch.dtype) -> None:
    """Only the rows of the tokens at hand are read, and the tokens renumbered to them."""
    empty = module.weight

    def load(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, numbers = torch.unique(arguments[0], return_inverse=True)
        rows = torch.cat([weight.rows(token, token + 1) for token in tokens.tolist()])
        module._parameters["weight"] = nn.Parameter(rows.to(dtype), requires_grad=False)
        return (numbers, *arguments[1:])

    module.padding_idx = None  # which is for gradients, and would be checked against the rows at hand
    module.register_forward_pre_hook(load)
    module.register_forward_hook(lambda module, *_: module._parameters.__setitem__("weight", empty))


def _stream_small(module: Any, entries: dict[str, Stored], dtype: torch.dtype) -> None:
    empty = {name: module._parameters[name] for name in entries}

    def load(module: Any, arguments: Any) -> None:
        for name, entry in entries.items():
            module._parameters[name] = nn.Parameter(entry.whole().to(dtype), requires_grad=False)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(lambda module, *_: module._parameters.update(empty))
