"""The sizes of a checkpoint as growth sees them: a shape, and what a shape does not know."""

from dataclasses import dataclass, replace
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import Axis
from kinfolk.growth.tables import table_of


@dataclass(frozen=True)
class Sizes:
    """Everything that growth can change, and what of the rest decides whether it can."""

    shape: Shape
    vocab_size: int | None = None
    """Rows of the embedding; None where the vocabulary stays as it is."""
    experts: int | None = None
    experts_per_token: int | None = None
    rope_type: str = "default"
    """How rotary positions are scaled, by the name that transformers gives it."""
    rotated_share: float = 1.0
    """The share of every head that rotary positions turn."""

    @classmethod
    def of(cls, sizes: "Shape | Sizes") -> "Sizes":
        """Sizes as they are, or those of a bare shape."""
        return sizes if isinstance(sizes, Sizes) else cls(sizes)


def sizes_of_config(config: Any) -> Sizes:
    """The sizes that a transformers config says (of an architecture in `kinfolk.growth.tables`)."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    experts = getattr(config, "num_local_experts", None)
    feed_forward = getattr(config, "moe_intermediate_size", None) if experts else None
    feed_forward = feed_forward or getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return Sizes(
        Shape(
            num_hidden_layers=config.num_hidden_layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or hidden // heads,
            intermediate_size=feed_forward or 4 * hidden,
            tie_word_embeddings=config.tie_word_embeddings,
        ),
        vocab_size=config.vocab_size,
        experts=experts,
        experts_per_token=config.num_experts_per_tok if experts else None,
        rope_type=_rope(config).get("rope_type", "default"),
        rotated_share=_rope(config).get("partial_rotary_factor", 1.0),
    )


def config_fields(sizes: Sizes, config: Any, layer_sources: tuple[int, ...]) -> dict[str, Any]:
    """What changes in the parent's config, as attributes to set on a copy of it (its class maps names of its own).

    `layer_sources` says which of the parent's layers each layer of the child copies, for what a config lists by layer.
    Raises KinfolkError for sizes that the config's class refuses though a model could have them.
    """
    shape = sizes.shape
    if table_of(config.model_type).heads_divide_hidden and shape.hidden_size % shape.num_attention_heads:
        multiple = -(-shape.hidden_size // shape.num_attention_heads) * shape.num_attention_heads
        raise KinfolkError(
            f"transformers refuses a {config.model_type} config whose hidden size ({shape.hidden_size}) is no multiple "
            f"of its query heads ({shape.num_attention_heads})",
            where="hidden_size",
            fix=f"use hidden_size {multiple}",
        )
    fields: dict[str, Any] = {
        "num_hidden_layers": shape.num_hidden_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "vocab_size": sizes.vocab_size or config.vocab_size,
    }
    if hasattr(config, "num_key_value_heads"):
        fields["num_key_value_heads"] = shape.num_key_value_heads
    if hasattr(config, "head_dim") or shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        fields["head_dim"] = shape.head_dim
    if sizes.experts:
        fields |= {"num_local_experts": sizes.experts, "num_experts_per_tok": sizes.experts_per_token}
    feed_forward = ("moe_intermediate_size" if sizes.experts else "", "intermediate_size", "n_inner")
    fields[next(name for name in feed_forward if name and hasattr(config, name))] = shape.intermediate_size
    if getattr(config, "layer_types", None):
        fields["layer_types"] = [config.layer_types[source] for source in layer_sources]
    return fields


def _rope(config: Any) -> dict[str, Any]:
    """The rotary positions of a config, of its full-attention layers where they differ by layer."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    full: dict[str, Any] = rope.get("full_attention", rope)
    return full


def with_fields(parent: Sizes, changes: dict[str, int | bool]) -> Sizes:
    """The parent's sizes with some of them changed, named as in a transformers config.

    Raises pydantic's ValidationError where the shape does not hold together.
    """
    outside = {"vocab_size": "vocab_size", "num_local_experts": "experts", "num_experts_per_tok": "experts_per_token"}
    shape = parent.shape.model_dump() | {name: value for name, value in changes.items() if name not in outside}
    others: dict[str, Any] = {field: changes[name] for name, field in outside.items() if name in changes}
    return replace(parent, shape=Shape.model_validate(shape), **others)


def axis_size(axis: Axis, sizes: Shape | Sizes) -> int | None:
    """Units along an axis in a model of these sizes; None for what they do not say."""
    sizes = Sizes.of(sizes)
    shape = sizes.shape
    match axis:
        case Axis.VOCAB:
            return sizes.vocab_size
        case Axis.POSITION:
            return None
        case Axis.EXPERT:
            return sizes.experts
        case Axis.QUERY | Axis.QUERY_READ | Axis.NORMED_QUERY | Axis.QUERY_NORM:
            return shape.num_attention_heads * shape.head_dim
        case Axis.KEY | Axis.VALUE | Axis.NORMED_KEY | Axis.KEY_NORM:
            return shape.num_key_value_heads * shape.head_dim
        case Axis.QUERY_KEY_VALUE:
            return 3 * shape.num_attention_heads * shape.head_dim
        case Axis.FFN | Axis.FFN_READ:
            return shape.intermediate_size
        case Axis.HEAD_SIZE:
            return shape.head_dim
        case _:
            return shape.hidden_size
