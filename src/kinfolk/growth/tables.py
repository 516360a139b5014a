"""Which named axes every parameter has: one table per architecture, the only place that knows parameter names.

A new architecture is a new table. Names are those of a checkpoint of transformers, in which a tied head appears once,
as the embedding; where a live model uses another name, the table lists both.
"""

from dataclasses import dataclass, replace
from typing import Literal

from kinfolk.errors import KinfolkError
from kinfolk.growth.axes import Axes, Axis

HeadSizeGrowth = Literal["rotary", "fixed_scale", "learned_positions"]


@dataclass(frozen=True)
class Table:
    """What growth knows of one architecture."""

    outside: dict[str, Axes]
    """Parameters outside the layers."""
    layer: dict[str, Axes]
    """Parameters of a layer, without its prefix; `{expert}` stands for the number of an expert."""
    embedding: str
    head: str
    layer_prefix: str = "model.layers."
    optional_prefix: str = ""
    """Some checkpoints leave this out in front of every name."""
    norm: Literal["rms", "layer"] = "rms"
    gamma_offset: float = 0.0
    """What the model adds to every stored gamma."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    head_size: HeadSizeGrowth | None = None
    """How the head size can grow, and with which attention scale; None where it cannot."""
    head_size_obstacle: str = ""
    head_size_is_free: bool = True
    """Whether the head size may differ from hidden size / query heads."""
    heads_divide_hidden: bool = False
    """Whether the config's class refuses a hidden size that is no multiple of the query heads."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of buffers that old checkpoints hold and models recompute."""

    @property
    def has_experts(self) -> bool:
        """Whether feed-forward layers are mixtures of experts."""
        return any(Axis.EXPERT in axes for axes in self.layer.values())

    @property
    def has_post_norms(self) -> bool:
        """Whether what a block computes is normed before it is added to the residual stream."""
        return any(Axis.HIDDEN_POST_NORM in axes for axes in self.layer.values())

    @property
    def has_wide_query_norm(self) -> bool:
        """Whether one query norm spans all heads."""
        return any(Axis.QUERY_NORM in axes for axes in self.layer.values())

    def is_exit(self, axes: Axes) -> bool:
        """Whether a parameter of a layer is the last thing before the residual stream: zero, and the block is silent.

        A norm at a block's end would turn a zero input into a gradient of 1/sqrt(eps), so there its gamma is the exit.
        """
        last = Axis.HIDDEN_POST_NORM if self.has_post_norms else Axis.HIDDEN_WRITE
        return last in axes


def _linear(rows: Axis | tuple[Axis, ...], columns: Axis, name: str) -> dict[str, Axes]:
    """A linear layer that may have a bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


_GATED = (
    _linear(Axis.FFN, Axis.HIDDEN_READ, "mlp.gate_proj")
    | _linear(Axis.FFN, Axis.HIDDEN_READ, "mlp.up_proj")
    | _linear(Axis.HIDDEN_WRITE, Axis.FFN_READ, "mlp.down_proj")
)
_ATTENTION = (
    _linear(Axis.QUERY, Axis.HIDDEN_READ, "self_attn.q_proj")
    | _linear(Axis.KEY, Axis.HIDDEN_READ, "self_attn.k_proj")
    | _linear(Axis.VALUE, Axis.HIDDEN_READ, "self_attn.v_proj")
    | _linear(Axis.HIDDEN_WRITE, Axis.QUERY_READ, "self_attn.o_proj")
)
_TWO_NORMS: dict[str, Axes] = {
    "input_layernorm.weight": (Axis.HIDDEN_NORM,),
    "post_attention_layernorm.weight": (Axis.HIDDEN_NORM,),
}
_SANDWICH_NORMS: dict[str, Axes] = {
    "input_layernorm.weight": (Axis.HIDDEN_NORM,),
    "post_attention_layernorm.weight": (Axis.HIDDEN_POST_NORM,),
    "pre_feedforward_layernorm.weight": (Axis.HIDDEN_NORM,),
    "post_feedforward_layernorm.weight": (Axis.HIDDEN_POST_NORM,),
}
_HEAD_NORMS: dict[str, Axes] = {
    "self_attn.q_norm.weight": (Axis.HEAD_SIZE,),
    "self_attn.k_norm.weight": (Axis.HEAD_SIZE,),
}
_NORMED_HEADS = "a norm inside every head leaves no exact way except new rows that stay zero for ever"

_LLAMA = Table(
    outside={
        "model.embed_tokens.weight": (Axis.VOCAB, Axis.HIDDEN_EMBED),
        "model.norm.weight": (Axis.FINAL_NORM,),
        "lm_head.weight": (Axis.VOCAB, Axis.HIDDEN_READ),
    },
    layer=_ATTENTION | _GATED | _TWO_NORMS,
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    head_size="rotary",
    ignored=(r".*rotary_emb\.inv_freq",),
)
_QWEN3 = replace(_LLAMA, layer=_LLAMA.layer | _HEAD_NORMS, head_size=None, head_size_obstacle=_NORMED_HEADS)
_GEMMA2 = replace(
    _LLAMA,
    layer=_ATTENTION | _GATED | _SANDWICH_NORMS,
    gamma_offset=1.0,
    scaled_embedding=True,
    head_size="fixed_scale",
    heads_divide_hidden=True,
)
_GEMMA3 = replace(_GEMMA2, layer=_GEMMA2.layer | _HEAD_NORMS, head_size=None, head_size_obstacle=_NORMED_HEADS)
_OLMO2 = replace(
    _LLAMA,
    layer=(
        _linear(Axis.NORMED_QUERY, Axis.HIDDEN_READ_RAW, "self_attn.q_proj")
        | _linear(Axis.NORMED_KEY, Axis.HIDDEN_READ_RAW, "self_attn.k_proj")
        | _linear(Axis.VALUE, Axis.HIDDEN_READ_RAW, "self_attn.v_proj")
        | _linear(Axis.HIDDEN_WRITE, Axis.QUERY_READ, "self_attn.o_proj")
        | _linear(Axis.FFN, Axis.HIDDEN_READ_RAW, "mlp.gate_proj")
        | _linear(Axis.FFN, Axis.HIDDEN_READ_RAW, "mlp.up_proj")
        | _linear(Axis.HIDDEN_WRITE, Axis.FFN_READ, "mlp.down_proj")
        | {
            "self_attn.q_norm.weight": (Axis.QUERY_NORM,),
            "self_attn.k_norm.weight": (Axis.KEY_NORM,),
            "post_attention_layernorm.weight": (Axis.HIDDEN_POST_NORM,),
            "post_feedforward_layernorm.weight": (Axis.HIDDEN_POST_NORM,),
        }
    ),
    head_size=None,
    head_size_obstacle="the query norm spans all heads, and rotated pairs would get another share of it",
)
_PHI3 = replace(
    _LLAMA,
    layer=(
        _linear((Axis.QUERY, Axis.KEY, Axis.VALUE), Axis.HIDDEN_READ, "self_attn.qkv_proj")
        | _linear(Axis.HIDDEN_WRITE, Axis.QUERY_READ, "self_attn.o_proj")
        | _linear((Axis.FFN, Axis.FFN), Axis.HIDDEN_READ, "mlp.gate_up_proj")
        | _linear(Axis.HIDDEN_WRITE, Axis.FFN_READ, "mlp.down_proj")
        | _TWO_NORMS
    ),
)


def _experts(prefix: str, gate: str, up: str, down: str) -> dict[str, Axes]:
    return {
        f"{prefix}.gate.weight": (Axis.EXPERT, Axis.HIDDEN_READ),
        f"{prefix}.experts.{{expert}}.{gate}.weight": (Axis.FFN, Axis.HIDDEN_READ),
        f"{prefix}.experts.{{expert}}.{up}.weight": (Axis.FFN, Axis.HIDDEN_READ),
        f"{prefix}.experts.{{expert}}.{down}.weight": (Axis.HIDDEN_WRITE, Axis.FFN_READ),
    }


_MIXTRAL = replace(_LLAMA, layer=_ATTENTION | _experts("block_sparse_moe", "w1", "w3", "w2") | _TWO_NORMS)
_QWEN3_MOE = replace(
    _QWEN3,
    layer=_ATTENTION | _HEAD_NORMS | _experts("mlp", "gate_proj", "up_proj", "down_proj") | _TWO_NORMS,
)
_GPT2 = Table(
    outside={
        "transformer.wte.weight": (Axis.VOCAB, Axis.HIDDEN_EMBED),
        "transformer.wpe.weight": (Axis.POSITION, Axis.HIDDEN_WRITE),
        "transformer.ln_f.weight": (Axis.FINAL_NORM,),
        "transformer.ln_f.bias": (Axis.FINAL_NORM_BIAS,),
        "lm_head.weight": (Axis.VOCAB, Axis.HIDDEN_READ),
    },
    # GPT-2 stores its linear layers as (inputs, outputs).
    layer={
        "ln_1.weight": (Axis.HIDDEN_NORM,),
        "ln_1.bias": (Axis.HIDDEN_NORM_BIAS,),
        "attn.c_attn.weight": (Axis.HIDDEN_READ, (Axis.QUERY, Axis.KEY, Axis.VALUE)),
        "attn.c_attn.bias": ((Axis.QUERY, Axis.KEY, Axis.VALUE),),
        "attn.c_proj.weight": (Axis.QUERY_READ, Axis.HIDDEN_WRITE),
        "attn.c_proj.bias": (Axis.HIDDEN_WRITE,),
        "ln_2.weight": (Axis.HIDDEN_NORM,),
        "ln_2.bias": (Axis.HIDDEN_NORM_BIAS,),
        "mlp.c_fc.weight": (Axis.HIDDEN_READ, Axis.FFN),
        "mlp.c_fc.bias": (Axis.FFN,),
        "mlp.c_proj.weight": (Axis.FFN_READ, Axis.HIDDEN_WRITE),
        "mlp.c_proj.bias": (Axis.HIDDEN_WRITE,),
    },
    embedding="transformer.wte.weight",
    head="lm_head.weight",
    layer_prefix="transformer.h.",
    optional_prefix="transformer.",
    norm="layer",
    head_size="learned_positions",
    head_size_is_free=False,
    heads_divide_hidden=True,
    ignored=(r".*\.attn\.(masked_)?bias",),
)
_GPT_NEOX = Table(
    outside={
        "gpt_neox.embed_in.weight": (Axis.VOCAB, Axis.HIDDEN_EMBED),
        "gpt_neox.final_layer_norm.weight": (Axis.FINAL_NORM,),
        "gpt_neox.final_layer_norm.bias": (Axis.FINAL_NORM_BIAS,),
        "embed_out.weight": (Axis.VOCAB, Axis.HIDDEN_READ),
        "lm_head.weight": (Axis.VOCAB, Axis.HIDDEN_READ),
    },
    layer={
        "input_layernorm.weight": (Axis.HIDDEN_NORM,),
        "input_layernorm.bias": (Axis.HIDDEN_NORM_BIAS,),
        "post_attention_layernorm.weight": (Axis.HIDDEN_NORM,),
        "post_attention_layernorm.bias": (Axis.HIDDEN_NORM_BIAS,),
        **_linear(Axis.QUERY_KEY_VALUE, Axis.HIDDEN_READ, "attention.query_key_value"),
        **_linear(Axis.HIDDEN_WRITE, Axis.QUERY_READ, "attention.dense"),
        **_linear(Axis.FFN, Axis.HIDDEN_READ, "mlp.dense_h_to_4h"),
        **_linear(Axis.HIDDEN_WRITE, Axis.FFN_READ, "mlp.dense_4h_to_h"),
    },
    embedding="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    layer_prefix="gpt_neox.layers.",
    norm="layer",
    head_size_is_free=False,
    heads_divide_hidden=True,
    head_size_obstacle="its rotary positions turn a part of every head only",
    ignored=(r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
)

_TABLES = {
    "llama": replace(_LLAMA, heads_divide_hidden=True),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "olmo2": _OLMO2,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "phi3": _PHI3,
    "mixtral": _MIXTRAL,
    "qwen3_moe": _QWEN3_MOE,
}


def architectures() -> tuple[str, ...]:
    """The `model_type` of every architecture that can grow."""
    return tuple(_TABLES)


def table_of(architecture: str) -> Table:
    """The table of a transformers `model_type`; KinfolkError where there is none."""
    if architecture not in _TABLES:
        raise KinfolkError(
            f"no table of parameter axes for the architecture {architecture!r}",
            fix=f"use one of {', '.join(_TABLES)}, or write its table in kinfolk/growth/tables.py",
        )
    return _TABLES[architecture]
