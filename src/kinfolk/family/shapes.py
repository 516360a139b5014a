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


def growth_misfits(parent: Shape, child: Shape) -> list[MisfitError]:
    """What keeps `parent` from growing into `child`, with the field of the child that is in the way.

    Allowed: more layers, a larger hidden size (any ratio), whole KV groups, more query heads in every group, a larger
    feed-forward; the head size and the tie of the embeddings stay.
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
    if child.head_dim != parent.head_dim:
        misfits.append(
            MisfitError(
                f"head_dim cannot change from {parent.head_dim} to {child.head_dim}",
                field="head_dim",
                fix=f"use head_dim {parent.head_dim} and change the number of heads",
            )
        )
    if child.queries_per_group < parent.queries_per_group:
        heads = parent.queries_per_group * child.num_key_value_heads
        misfits.append(
            MisfitError(
                f"query heads per KV head cannot fall from {parent.queries_per_group} to {child.queries_per_group}",
                field="num_attention_heads",
                fix=f"use {heads} query heads for {child.num_key_value_heads} KV heads",
            )
        )
    if child.tie_word_embeddings != parent.tie_word_embeddings:
        word = "tied" if parent.tie_word_embeddings else "untied"
        misfits.append(
            MisfitError(
                f"the embeddings are {word} in the parent",
                field="tie_word_embeddings",
                fix="set tie_word_embeddings the same in both",
            )
        )
    return misfits


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)
