r"""How copies of units are rescaled: the factors of weights and of gradients along every axis.

With c_j the number of copies of the unit that unit j of the child copies, beta_j the share of them that readers give to
copy j (1/c_j, or uneven, summing to one), d -> D the old and new hidden sizes, and alpha_j the operator's factor of
what writes hidden unit j: sqrt(D/(d c_j)), and 1 under fpi and aki. A tensor's entries are copied by the maps of its
axes and multiplied by the outer product of one factor per axis; its gradient in the child is the parent's, copied by
the same maps and multiplied by the outer product of the gradient factors:

    axis                               value                      gradient
    HIDDEN_WRITE, HIDDEN_EMBED         alpha_j (x m)              beta_j/alpha_j (/ m)
    HIDDEN_POST_NORM                   1                          beta_j
    HIDDEN_NORM, FINAL_NORM untied     1/alpha_j                  alpha_j beta_j
    FINAL_NORM, head tied              d/(D m)                    alpha_j^2 m
    biases of HIDDEN_NORM              1                          beta_j
    bias of FINAL_NORM, head tied      beta_j/(alpha_j m)         alpha_j m
    HIDDEN_READ, QUERY_READ, FFN_READ  beta_j                     1
    HIDDEN_READ_RAW                    beta_j/alpha_j             alpha_j
    NORMED_QUERY, NORMED_KEY           s_j                        beta_j/s_j
    QUERY_NORM, KEY_NORM               1/s_j                      s_j beta_j
    QUERY                              h                          beta_j/h
    KEY, VALUE, FFN, EXPERT            1                          beta_j

with m = sqrt(d/D) where embeddings are multiplied by the square root of the hidden size (Gemma) and 1 elsewhere;
s_j = sqrt(N/(n c_j)) for a norm that spans n -> N query or key units (OLMo 2); and h = sqrt(new/old head size) where
the attention scale falls by it. Values are exact wherever the operator is. Gradients are exact for copies with even
shares and no noise, because only then all copies of a unit have the same gradient; a KV head that is repeated for a
part of its query heads gets that part's gradient, which no factor can know.
"""

import torch
from torch import Tensor

from kinfolk.growth.axes import READERS, Axis
from kinfolk.growth.sizes import Sizes, axis_size
from kinfolk.growth.tables import Table
from kinfolk.plan.stages import Operator


def factors_of(
    axis: Axis, copies: Tensor, share: Tensor, operator: Operator, table: Table, parent: Sizes, child: Sizes
) -> tuple[Tensor, Tensor]:
    """Value and gradient factor of every unit (float64) from `copies` c_j and `share` beta_j."""
    one = torch.ones_like(copies)
    ratio = child.shape.hidden_size / parent.shape.hidden_size
    alpha = one if operator.width in ("fpi", "aki") else (ratio / copies).sqrt()
    embed = ratio**-0.5 if table.scaled_embedding else 1.0
    spread = (len(copies) / ((axis_size(axis, parent) or 1) * copies)).sqrt()
    tied = child.shape.tie_word_embeddings
    match axis:
        case Axis.HIDDEN_EMBED:
            return alpha * embed, share / (alpha * embed)
        case Axis.HIDDEN_WRITE:
            return alpha, share / alpha
        case Axis.FINAL_NORM if tied:
            return one / (ratio * embed), alpha**2 * embed
        case Axis.FINAL_NORM_BIAS if tied:
            return share / (alpha * embed), alpha * embed
        case Axis.HIDDEN_NORM | Axis.FINAL_NORM:
            return 1 / alpha, alpha * share
        case Axis.HIDDEN_READ | Axis.QUERY_READ | Axis.FFN_READ:
            return share, one
        case Axis.HIDDEN_READ_RAW:
            return share / alpha, alpha
        case Axis.NORMED_QUERY | Axis.NORMED_KEY:
            return spread, share / spread
        case Axis.QUERY_NORM | Axis.KEY_NORM:
            return 1 / spread, spread * share
        case Axis.QUERY if table.head_size in ("rotary", "learned_positions"):
            # The attention scale falls by the square root of the head size; queries make up for it.
            scale = (child.shape.head_dim / parent.shape.head_dim) ** 0.5
            return one * scale, share / scale
        case _:
            return one, share


def shares_of(axis: Axis, index: Tensor, copied: Tensor, copies: Tensor, operator: Operator) -> Tensor:
    """beta_j: what readers take of each copy of a unit; 1 for units that are no copies (`copied` is false)."""
    is_uneven = operator.width == "lemon" or operator.split == "uneven"
    if not is_uneven or axis not in READERS | {Axis.QUERY, Axis.FFN}:
        return 1 / copies
    number = occurrence(torch.where(copied, index, -1))
    return torch.where(copied, number / (copies * (copies + 1) / 2), 1.0)


def occurrence(index: Tensor) -> Tensor:
    """For each entry, how often its value has come up so far, itself included."""
    order = index.argsort(stable=True)
    ordered = index[order]
    starts = torch.searchsorted(ordered, ordered)
    number = torch.empty(len(index), dtype=torch.float64)
    number[order] = (torch.arange(len(index)) - starts + 1).double()
    return number
