"""FLOPs of the formula against those that torch counts on the real model."""

import pytest
import torch
from counted_flops import counted_flops
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.family.spec import Model
from kinfolk.plan.costs import matmul_flops_per_token, six_nd, stage_tokens
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import TokenLoss


def counted(sizes: Shape, architecture: Architecture, vocab_size: int, context: int, sequences: int) -> int:
    """FLOPs that torch counts in a forward and a backward pass."""
    config = config_for(sizes, Model(architecture=architecture, context_length=context), vocab_size)
    config._attn_implementation = "eager"
    model = new_model(config, seed=0)
    tokens = torch.randint(vocab_size, (sequences, context + 1))

    def work() -> None:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

    return counted_flops(model, context, work)


def shape(layers: int, hidden: int, heads: int, groups: int, head_dim: int, ffn: int, tied: bool) -> Shape:
    return Shape(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=ffn,
        tie_word_embeddings=tied,
    )


SHAPES = [shape(1, 16, 2, 2, 8, 24, True), shape(3, 24, 6, 2, 4, 40, True), shape(2, 20, 4, 1, 6, 12, False)]


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_matmul_flops_are_those_that_torch_counts(sizes: Shape, architecture: Architecture) -> None:
    vocab_size, context, sequences = 37, 12, 3
    per_token = matmul_flops_per_token(sizes, vocab_size, context)
    assert per_token * context * sequences == counted(sizes, architecture, vocab_size, context, sequences)


def test_the_objective_of_training_costs_what_the_formula_says() -> None:
    """The chunked head of `TokenLoss` is counted like the plain one."""
    sizes, vocab_size, context = SHAPES[1], 37, 16
    config = config_for(sizes, Model(context_length=context), vocab_size)
    config._attn_implementation = "eager"
    model = new_model(config, seed=0)
    objective, tokens = TokenLoss(model), torch.randint(vocab_size, (1, context + 1))
    found = counted_flops(model, context, lambda: objective(tokens).minimised.backward())
    assert found == matmul_flops_per_token(sizes, vocab_size, context) * context


def test_matmul_flops_of_a_large_model_are_about_six_nd() -> None:
    """Kaplan et al. (2001.08361): 6N per token plus attention, where N counts the head but not the embedding."""
    llama = shape(32, 4096, 32, 8, 128, 14336, tied=False)
    matrices = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336) + 128_256 * 4096
    attention = 12 * 32 * 4096 * 2048
    assert matmul_flops_per_token(llama, 128_256, 2048) == 6 * matrices + attention


@given(st.floats(1, 1e12), st.floats(1, 1e15), st.floats(1, 1e12), st.floats(1, 1e15))
@settings(max_examples=100, deadline=None)
def test_a_lineage_spends_exactly_its_members_budget(
    parameters: float, tokens: float, parent_parameters: float, parent_tokens: float
) -> None:
    parent = six_nd(parent_parameters, parent_tokens)
    spent = six_nd(parameters, stage_tokens(tokens, parameters, parent, credit=1.0)) + parent
    assert spent == pytest.approx(six_nd(parameters, tokens), rel=1e-9, abs=parent * 1e-9)
    assert stage_tokens(tokens, parameters, parent, credit=0.0) == pytest.approx(tokens, rel=1e-12)


def test_flops_of_a_billion() -> None:
    """laws.md, section 10: 6 N_matmul and the attention of a full context."""
    sizes = shape(16, 2048, 16, 4, 128, 8192, False)
    assert matmul_flops_per_token(sizes, 32_000, 2048) == pytest.approx(7.03699e9, rel=1e-6)
    assert matmul_flops_per_token(sizes, 32_000, 0) == pytest.approx(6.23169e9, rel=1e-6)
