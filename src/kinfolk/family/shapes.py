"""The shape of a decoder: its sizes, its parameters, and which shapes can grow into which.

Field names are those of a transformers `LlamaConfig` or `Qwen3Config`, so that a shape can be read off any config.json.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kinfolk.family.faults import MisfitError

Architecture = Literal["llama", "qwen3"]

Size = Annotated[int, Field(ge=1, le=10**9)]
"""The bound keeps costs within floating point."""


class Shape(BaseModel):
    """Sizes of one Llama-type decoder (RMSNorm, rotary positions, grouped-query attention, SwiGLU)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: int = Field(ge=2, le=10**9)
    intermediate_size: Size
    tie_word_embeddings: bool = True

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_transformers(cls, values: Any) -> Any:
        """KV heads default to the query heads, head size to hidden size / query heads, as in transformers."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if isinstance(heads, int) and heads > 0:
            values.setdefault("num_key_value_heads", heads)
            if isinstance(hidden, int) and hidden > 0 and "head_dim" not in values:
                if hidden % heads:
                    raise MisfitError(
                        f"{hidden} does not divide by {heads} query heads",
                        field="hidden_size",
                        fix=f"use hidden_size {_nearest_multiple(hidden, heads)}, or give head_dim",
                    )
                values["head_dim"] = hidden // heads
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise MisfitError(
                f"{self.num_key_value_heads} KV heads do not divide {self.num_attention_heads} query heads",
                field="num_key_value_heads",
                fix=f"use {_nearest_multiple(self.num_attention_heads, self.num_key_value_heads)} query heads, "
                "or other KV heads",
            )
        if self.head_dim % 2:
            raise MisfitError(
                f"head_dim {self.head_dim} is odd, and rotary positions turn pairs",
                field="head_dim",
                fix=f"use {self.head_dim + 1}",
            )
        return self

    @property
    def queries_per_group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_attention_heads // self.num_key_value_heads


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model, each tensor counted once (a tied head is the embedding)."""

    total: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding


def parameter_count(shape: Shape, vocab_size: int, architecture: Architecture) -> ParameterCount:
    """Count parameters. `embedding` is the input embedding and, where untied, the output head as well.

    Equals `sum(p.numel() for p in model.parameters())` of the transformers model (tested).
    """
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    attention = hidden * (2 * queries + 2 * keys)
    if architecture == "qwen3":
        attention += 2 * shape.head_dim
    feed_forward = 3 * hidden * shape.intermediate_size
    blocks = layers * (attention + feed_forward + 2 * hidden)
    embedding = vocab_size * hidden * (1 if shape.tie_word_embeddings else 2)
    return ParameterCount(total=blocks + hidden + embedding, embedding=embedding)


def growth_obstacles(parent: Shape, child: Shape) -> list[str]:
    """Why `parent` cannot grow into `child`, one sentence with a remedy each; an empty list when it can."""
    return [str(misfit) for misfit in growth_misfits(parent, child)]


def growth_misfits(parent: Shape, child: Shape, architecture: Architecture | None = None) -> list[MisfitError]:
    """What keeps `parent` from growing into `child`, with the field of the child that is in the way.

    Allowed: more layers, a larger hidden size (any ratio), more KV heads, more query heads in every group, fewer where
    the KV heads make up for it, a larger feed-forward, a multiple of the head size (not in Qwen3, whose heads have
    norms of their own); tied embeddings may be untied.
    """
    misfits = []
    for field, unit in (
        ("num_hidden_layers", "layers"),
        ("hidden_size", "hidden units"),
        ("num_key_value_heads", "KV heads"),
        ("intermediate_size", "feed-forward units"),
    ):
        old, new = getattr(parent, field), getattr(child, field)
        if new < old:
            misfits.append(
                MisfitError(f"{old} {unit} cannot shrink to {new}", field=field, fix=f"use {field} {old} or more")
            )
    if architecture == "qwen3" and child.head_dim != parent.head_dim:
        misfits.append(
            MisfitError(
                f"head_dim cannot change from {parent.head_dim} to {child.head_dim} in Qwen3",
                field="head_dim",
                fix=f"use head_dim {parent.head_dim} and change the number of heads",
            )
        )
    elif child.head_dim % parent.head_dim:
        misfits.append(
            MisfitError(
                f"head_dim {parent.head_dim} can only grow to a multiple of itself, not to {child.head_dim}",
                field="head_dim",
                fix=f"use head_dim {_nearest_multiple(child.head_dim, parent.head_dim)}, or keep it and change the "
                "number of heads",
            )
        )
    if child.num_key_value_heads >= parent.num_key_value_heads and not groups_split(parent, child):
        heads = parent.queries_per_group * child.num_key_value_heads
        misfits.append(
            MisfitError(
                f"query heads per KV head cannot fall from {parent.queries_per_group} to {child.queries_per_group} "
                f"with {child.num_key_value_heads} KV heads",
                field="num_attention_heads",
                fix=f"use {heads} query heads for {child.num_key_value_heads} KV heads, or "
                f"{parent.num_attention_heads} KV heads",
            )
        )
    if child.tie_word_embeddings and not parent.tie_word_embeddings:
        misfits.append(
            MisfitError(
                "the embeddings are untied in the parent, and two matrices cannot become one",
                field="tie_word_embeddings",
                fix="set tie_word_embeddings to false",
            )
        )
    return misfits


def groups_split(parent: Shape, child: Shape) -> int:
    """For how many parts of its query heads each KV head is repeated before groups grow; 0 where none fits.

    1 unless query heads per KV head fall. Exact because the parts of a group read the same keys and values.

    >>> sizes = dict(num_hidden_layers=1, hidden_size=64, num_attention_heads=8, intermediate_size=64)
    >>> groups_split(Shape(**sizes, num_key_value_heads=2), Shape(**sizes, num_key_value_heads=4))
    2
    """
    for split in range(1, parent.queries_per_group + 1):
        fits = parent.queries_per_group % split == 0
        if (
            fits
            and parent.queries_per_group // split <= child.queries_per_group
            and parent.num_key_value_heads * split <= child.num_key_value_heads
        ):
            return split
    return 0


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)
