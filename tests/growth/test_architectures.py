"""Every operator on every architecture: equal logits where nothing is said to break, other ones where something is."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import KINDS, ONE_EACH, child_of, difference, empty_model, parent_config, parent_model, randomise

from kinfolk.errors import KinfolkError
from kinfolk.growth.claims import obstacles, what_breaks
from kinfolk.growth.sizes import sizes_of_config, with_fields
from kinfolk.growth.tables import architectures, table_of
from kinfolk.plan.stages import Operator, WidthRule

EXACT = {torch.float64: 1e-11, torch.float32: 2e-5}
BROKEN = 1e-3
"""Smallest relative difference that counts as another function."""

ANY_RATIO = {"hidden_size": 27, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 31}
INTEGER = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 48}
INSIDE = {"num_attention_heads": 8, "intermediate_size": 31}
"""The hidden size stays, and so do the KV heads."""
SPLIT = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 31}
"""KV heads are repeated for a part of their query heads."""


def fitted(kind: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes as an architecture without a head size of its own can have them."""
    table = table_of(KINDS[kind].architecture)
    if table.head_size_is_free:
        return changes
    heads = {27: 6, 32: 8}.get(changes.get("hidden_size", 16), 4)
    return changes | {"hidden_size": 4 * heads, "num_attention_heads": heads, "num_key_value_heads": heads}


def check(model: Any, changes: dict[str, Any], operator: Operator) -> None:
    """What the claims say of a growth is what happens."""
    architecture = model.config.model_type
    parent = sizes_of_config(model.config)
    child = with_fields(parent, changes)
    if obstacles(operator, parent, child, architecture):
        with pytest.raises(KinfolkError):
            child_of(model, changes, operator)
        return
    measured = difference(model, child_of(model, changes, operator))
    if what_breaks(operator, parent, child, architecture):
        assert measured > BROKEN
    else:
        assert measured < EXACT[model.dtype]


def test_every_architecture_is_here() -> None:
    assert {kind.architecture for kind in KINDS.values()} == set(architectures())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", get_args(WidthRule))
def test_width(kind: str, width: WidthRule) -> None:
    model = parent_model(kind)
    for changes in (ANY_RATIO, INTEGER, INSIDE, SPLIT):
        split = "uneven" if changes is INTEGER else "even"
        check(model, fitted(kind, changes), Operator(width, split=split, noise=0.5))
    check(parent_model(kind, torch.float32), fitted(kind, ANY_RATIO), Operator(width, snr=10.0))


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.sizes.get("tie_word_embeddings", True)])
@pytest.mark.parametrize("width", ["energy_split", "zero_pad", "lemon"])
def test_untying(kind: str, width: WidthRule) -> None:
    """The head becomes a matrix of its own, which reads what the embedding writes."""
    untied = {"tie_word_embeddings": False}
    check(parent_model(kind), untied, Operator(width))
    child = child_of(parent_model(kind), untied | fitted(kind, INTEGER), Operator(width, noise=0.5))
    assert difference(parent_model(kind), child) < EXACT[torch.float64]
    head, embedding = child.get_output_embeddings().weight, child.get_input_embeddings().weight
    assert head is not embedding and not torch.equal(head, embedding)


DEPTHS = [
    Operator(depth="zero_exit"),
    Operator(depth="zero_exit", placement="even"),
    Operator(depth="zero_exit", placement=(1, 3)),
    Operator(depth="stack"),
    Operator(depth="interpolate"),
    Operator(depth="middle"),
]


@pytest.mark.parametrize("kind", ONE_EACH)
@pytest.mark.parametrize("operator", DEPTHS, ids=lambda operator: f"{operator.depth}-{operator.placement}")
def test_depth(kind: str, operator: Operator) -> None:
    check(parent_model(kind, torch.float32), {"num_hidden_layers": 4}, operator)
    check(parent_model(kind), {"num_hidden_layers": 4} | fitted(kind, INTEGER), operator)


def drawn_sizes(data: st.DataObject, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of a parent and a child that its config's class takes; what cannot grow is left in."""

    def pair(low: int, high: int, more: int) -> tuple[int, int]:
        old = data.draw(st.integers(low, high))
        return old, data.draw(st.integers(old, old + more))

    table = table_of(KINDS[kind].architecture)
    groups, slots, ffn, layers = pair(1, 3, 2), pair(1, 3, 2), pair(3, 9, 9), pair(1, 2, 2)
    units = pair(3, 5, 5)
    found: list[dict[str, Any]] = []
    for one in (0, 1):
        heads = groups[one] * (slots[one] if table.head_size_is_free else 1)
        hidden = heads * 4 if not table.head_size_is_free else units[one] * (heads if table.heads_divide_hidden else 2)
        found.append(
            {
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "num_key_value_heads": groups[one],
                "head_dim": 4,
                "intermediate_size": ffn[one],
                "num_hidden_layers": layers[one],
            }
        )
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape(kind: str) -> None:
    @settings(max_examples=4, deadline=None)
    @given(st.data())
    def any_shape(data: st.DataObject) -> None:
        before, after = drawn_sizes(data, kind)
        tied = {} if KINDS[kind].architecture == "gpt2" else {"tie_word_embeddings": data.draw(st.booleans())}
        operator = Operator(
            data.draw(st.sampled_from(["energy_split", "tile", "lemon", "zero_pad"])),
            placement=data.draw(st.sampled_from(["top", "even"])),
            split=data.draw(st.sampled_from(["even", "uneven"])),
            snr=data.draw(st.sampled_from([None, 5.0])),
            seed=data.draw(st.integers(0, 9)),
        )
        model = randomise(empty_model(parent_config(KINDS[kind], **before, **tied)), operator.seed)
        if model.config.tie_word_embeddings:
            after["tie_word_embeddings"] = data.draw(st.booleans())
        check(model, after, operator)

    any_shape()
