"""Which named axes every parameter has: one table per architecture, the only place that knows parameter names.

Operators act on axes. An axis is a family of units (hidden units, query heads, ...) together with the *role* that a
tensor plays on it, because the role decides how the tensor is rescaled: a hidden unit is written by the embedding and
by `o` and `down`, passes a norm, and is read by `q`, `k`, `v`, `gate`, `up` and the head.

A new architecture is a new table. Names are those of `named_parameters()` of the transformers model, in which a tied
head appears once, as the embedding.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture, Shape


class Axis(Enum):
    """The units along one dimension of a tensor, and what the tensor does with them."""

    VOCAB = auto()
    HIDDEN_WRITE = auto()
    """Adds to the residual stream: columns of the embedding, rows of o and down."""
    HIDDEN_NORM = auto()
    """Scales the residual stream for a block's readers."""
    FINAL_NORM = auto()
    """Scales the residual stream for the head, which writes as well when it is tied to the embedding."""
    HIDDEN_READ = auto()
    """Reads the normed residual stream: columns of q, k, v, gate, up and of the head."""
    QUERY = auto()
    """Query heads times head size: rows of q."""
    QUERY_READ = auto()
    """Reads the attention output of every query head: columns of o."""
    KEY_VALUE = auto()
    """KV heads (groups) times head size: rows of k and v."""
    FFN = auto()
    """Feed-forward units: rows of gate and up."""
    FFN_READ = auto()
    """Reads feed-forward units: columns of down."""
    HEAD_SIZE = auto()
    """Inside one head, shared by all heads: the gammas of a per-head query or key norm."""


Axes = tuple[Axis, ...]

READERS = frozenset({Axis.HIDDEN_READ, Axis.QUERY_READ, Axis.FFN_READ})
"""Axes whose copies are summed, so that anything that sums to zero over the copies of a unit may be added."""


@dataclass(frozen=True)
class _Table:
    outside: Mapping[str, Axes]
    layer: Mapping[str, Axes]
    layer_prefix: str = "model.layers."
    aliases_when_tied: Mapping[str, str] | None = None


_LLAMA_LAYER: dict[str, Axes] = {
    "input_layernorm.weight": (Axis.HIDDEN_NORM,),
    "self_attn.q_proj.weight": (Axis.QUERY, Axis.HIDDEN_READ),
    "self_attn.k_proj.weight": (Axis.KEY_VALUE, Axis.HIDDEN_READ),
    "self_attn.v_proj.weight": (Axis.KEY_VALUE, Axis.HIDDEN_READ),
    "self_attn.o_proj.weight": (Axis.HIDDEN_WRITE, Axis.QUERY_READ),
    "self_attn.q_proj.bias": (Axis.QUERY,),
    "self_attn.k_proj.bias": (Axis.KEY_VALUE,),
    "self_attn.v_proj.bias": (Axis.KEY_VALUE,),
    "self_attn.o_proj.bias": (Axis.HIDDEN_WRITE,),
    "post_attention_layernorm.weight": (Axis.HIDDEN_NORM,),
    "mlp.gate_proj.weight": (Axis.FFN, Axis.HIDDEN_READ),
    "mlp.up_proj.weight": (Axis.FFN, Axis.HIDDEN_READ),
    "mlp.down_proj.weight": (Axis.HIDDEN_WRITE, Axis.FFN_READ),
    "mlp.gate_proj.bias": (Axis.FFN,),
    "mlp.up_proj.bias": (Axis.FFN,),
    "mlp.down_proj.bias": (Axis.HIDDEN_WRITE,),
}

_QWEN3_LAYER: dict[str, Axes] = _LLAMA_LAYER | {
    "self_attn.q_norm.weight": (Axis.HEAD_SIZE,),
    "self_attn.k_norm.weight": (Axis.HEAD_SIZE,),
}

_OUTSIDE: dict[str, Axes] = {
    "model.embed_tokens.weight": (Axis.VOCAB, Axis.HIDDEN_WRITE),
    "model.norm.weight": (Axis.FINAL_NORM,),
    "lm_head.weight": (Axis.VOCAB, Axis.HIDDEN_READ),
}

_TIED = {"lm_head.weight": "model.embed_tokens.weight"}

_TABLES: dict[Architecture, _Table] = {
    "llama": _Table(_OUTSIDE, _LLAMA_LAYER, aliases_when_tied=_TIED),
    "qwen3": _Table(_OUTSIDE, _QWEN3_LAYER, aliases_when_tied=_TIED),
}


def axes_of(name: str, architecture: Architecture) -> tuple[Axes, int | None]:
    """The axes of the parameter called `name` and the layer it belongs to (None outside the layers).

    >>> axes, layer = axes_of("model.layers.11.mlp.down_proj.weight", "llama")
    >>> [axis.name for axis in axes], layer
    (['HIDDEN_WRITE', 'FFN_READ'], 11)
    """
    table = _table(architecture)
    if name in table.outside:
        return table.outside[name], None
    found = _layer_pattern(table).match(name)
    if found and found["rest"] in table.layer:
        return table.layer[found["rest"]], int(found["layer"])
    raise KinfolkError(
        f"the {architecture} architecture has no parameter {name!r}",
        fix=f"pass the named_parameters() of a stock {architecture} model of transformers",
    )


def in_layer(name: str, layer: int, architecture: Architecture) -> str:
    """The name of the same parameter in another layer.

    >>> in_layer("model.layers.1.mlp.up_proj.weight", 11, "llama")
    'model.layers.11.mlp.up_proj.weight'
    """
    table = _table(architecture)
    found = _layer_pattern(table).match(name)
    if not found:
        raise ValueError(f"{name!r} belongs to no layer")
    return f"{table.layer_prefix}{layer}.{found['rest']}"


def tied_alias(name: str, architecture: Architecture) -> str | None:
    """The parameter that `name` is another name of when the embeddings are tied, or None."""
    return (_table(architecture).aliases_when_tied or {}).get(name)


def axis_size(axis: Axis, shape: Shape) -> int | None:
    """Units along an axis in a model of this shape; None for the vocabulary, which a shape does not know."""
    match axis:
        case Axis.VOCAB:
            return None
        case Axis.HIDDEN_WRITE | Axis.HIDDEN_NORM | Axis.FINAL_NORM | Axis.HIDDEN_READ:
            return shape.hidden_size
        case Axis.QUERY | Axis.QUERY_READ:
            return shape.num_attention_heads * shape.head_dim
        case Axis.KEY_VALUE:
            return shape.num_key_value_heads * shape.head_dim
        case Axis.FFN | Axis.FFN_READ:
            return shape.intermediate_size
        case Axis.HEAD_SIZE:
            return shape.head_dim


def _table(architecture: Architecture) -> _Table:
    if architecture not in _TABLES:
        raise KinfolkError(
            f"no table of parameter axes for the architecture {architecture!r}", fix=f"use one of {', '.join(_TABLES)}"
        )
    return _TABLES[architecture]


def _layer_pattern(table: _Table) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(table.layer_prefix)}(?P<layer>0|[1-9][0-9]*)\.(?P<rest>.+)\Z")
