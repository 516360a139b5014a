"""Counts against the real transformers models, and which shapes grow into which."""

import pytest
import torch
from documents import shape as sizes
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.family.shapes import Architecture, Shape, growth_obstacles, parameter_count
from kinfolk.family.spec import Model
from kinfolk.train.model import config_for, new_model


def shape(**changed: object) -> Shape:
    return Shape.model_validate(sizes(**changed))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    groups, queries = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Shape(
        num_hidden_layers=draw(st.integers(1, 3)),
        hidden_size=groups * queries * draw(st.integers(1, 6)),
        num_attention_heads=groups * queries,
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 4)),
        intermediate_size=draw(st.integers(1, 40)),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from(["llama", "qwen3"]), st.integers(1, 50))
def test_parameters_are_those_of_the_real_model(shape: Shape, architecture: Architecture, vocab_size: int) -> None:
    with torch.device("meta"):
        model = new_model(config_for(shape, Model(architecture=architecture), vocab_size), seed=0)
    count = parameter_count(shape, vocab_size, architecture)
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    inside = {id(parameter): parameter.numel() for end in ends for parameter in end.parameters()}
    assert count.embedding == sum(inside.values())
    assert count.non_embedding + count.embedding == count.total
    assert (len(inside) == 1) == shape.tie_word_embeddings


def test_published_sizes() -> None:
    """Llama 3.1 8B has 8,030,261,248 parameters, Qwen3 0.6B 596,049,920 (their model cards on the hub)."""
    llama = Shape(
        num_hidden_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=14336,
        tie_word_embeddings=False,
    )
    assert parameter_count(llama, 128_256, "llama").total == 8_030_261_248
    qwen = Shape(
        num_hidden_layers=28,
        hidden_size=1024,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        tie_word_embeddings=True,
    )
    assert parameter_count(qwen, 151_936, "qwen3").total == 596_049_920


def test_defaults_are_those_of_transformers() -> None:
    bare = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 8}
    assert Shape.model_validate(bare).num_key_value_heads == 4
    assert Shape.model_validate(bare).head_dim == 6
    assert Shape.model_validate(bare | {"head_dim": 8}).head_dim == 8


@pytest.mark.parametrize(
    "larger",
    [
        {},
        {"num_hidden_layers": 3},
        {"hidden_size": 33},
        {"intermediate_size": 65},
        {"num_attention_heads": 6, "num_key_value_heads": 3},
        {"num_attention_heads": 6, "num_key_value_heads": 2},
        {"num_attention_heads": 9, "num_key_value_heads": 3},
        {"num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 5, "num_key_value_heads": 5},
        {"head_dim": 24},
    ],
)
def test_what_can_grow(larger: dict[str, int]) -> None:
    assert growth_obstacles(shape(), shape(**larger)) == []


@pytest.mark.parametrize(
    ("other", "obstacles"),
    [
        ({"num_hidden_layers": 1}, ["2 layers cannot shrink to 1: use num_hidden_layers 2 or more"]),
        ({"hidden_size": 31}, ["32 hidden units cannot shrink to 31: use hidden_size 32 or more"]),
        ({"intermediate_size": 1}, ["64 feed-forward units cannot shrink to 1: use intermediate_size 64 or more"]),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 1},
            ["2 KV heads cannot shrink to 1: use num_key_value_heads 2 or more"],
        ),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3},
            ["query heads per KV head cannot fall from 2 to 1 with 3 KV heads: use 6 query heads for 3 KV heads, or 4"],
        ),
        ({"head_dim": 12}, ["head_dim 8 can only grow to a multiple of itself, not to 12: use head_dim 16"]),
        ({"num_hidden_layers": 1, "hidden_size": 8}, ["2 layers", "32 hidden units"]),
    ],
)
def test_what_cannot_grow(other: dict[str, int], obstacles: list[str]) -> None:
    found = growth_obstacles(shape(), shape(**other))
    assert len(found) == len(obstacles)
    assert all(sentence.startswith(start) for sentence, start in zip(found, obstacles, strict=True))


def test_embeddings_are_untied_and_never_tied() -> None:
    tied, untied = shape(), shape(tie_word_embeddings=False)
    assert growth_obstacles(tied, untied) == []
    assert growth_obstacles(untied, tied) == [
        "the embeddings are untied in the parent, and two matrices cannot become one: set tie_word_embeddings to false"
    ]


@settings(max_examples=200, deadline=None)
@given(shapes(), shapes())
def test_two_shapes_that_grow_both_ways_are_equal(one: Shape, other: Shape) -> None:
    if not growth_obstacles(one, other) and not growth_obstacles(other, one):
        assert one == other
    assert growth_obstacles(one, one) == []
