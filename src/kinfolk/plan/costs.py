"""What training costs, counted two ways that are always named: 6ND, and the matmul FLOPs of the real model."""

from collections.abc import Iterable
from typing import TypedDict

from kinfolk.family.shapes import Shape


class Flops(TypedDict):
    """Training FLOPs, counted both ways; matmul is None for a member without a shape."""

    six_nd: float
    matmul: float | None


def six_nd(parameters: float, positions: float) -> float:
    """Training FLOPs by the rule of thumb of the papers, C = 6 N D (Kaplan et al., arXiv 2001.08361, section 2.1).

    D counts the positions that the model computes: in token-level training its tokens, in patch-level training patches.
    """
    return 6.0 * parameters * positions


def matmul_flops_per_token(shape: Shape, vocab_size: int, context_length: int) -> int:
    """Training FLOPs of one token: every matrix product of the model, forward and backward, head included.

    In patch-level training a patch costs as much, and `context_length` counts patches.
    A product of (m, k) and (k, n) counts 2mkn; backward counts twice forward. Attention counts the full
    `context_length` squared, as kernels that ignore causality (and torch's FlopCounterMode) do. Elementwise work, norms
    and the embedding lookup count nothing.
    """
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    projections = shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)
    attention = 2 * context_length * queries  # scores and weighted values, each context_length x queries
    head = vocab_size * shape.hidden_size
    return 3 * 2 * (shape.num_hidden_layers * (projections + attention) + head)


def stage_tokens(own_tokens: float, parameters: float, parent_flops: float, credit: float) -> float:
    """Tokens of a grown stage under the budget rule of arXiv 2504.00623: T' = (C - credit x C_parent) / 6N.

    `own_tokens` are those of the member trained alone, so C = 6 N T; `parent_flops` is the parent's C. With
    credit 1 the whole lineage has spent exactly C when the member is finished.

    >>> stage_tokens(40e9, 2e9, six_nd(1e9, 20e9), credit=1.0) / 1e9
    30.0
    """
    return (six_nd(parameters, own_tokens) - credit * parent_flops) / (6.0 * parameters)


def sum_flops(costs: Iterable[Flops]) -> Flops:
    """All costs together; matmul is None where it is for one of them."""
    total: Flops = {"six_nd": 0.0, "matmul": 0.0}
    for cost in costs:
        before, more = total["matmul"], cost["matmul"]
        total["matmul"] = None if before is None or more is None else before + more
        total["six_nd"] += cost["six_nd"]
    return total
