r"""Rates that transfer from a base shape to every other: muP in width, CompleteP in width and depth.

muP (Yang et al., arXiv 2203.03466) and CompleteP (Dey et al., arXiv 2505.01618, here with alpha = 1) put multipliers
into the model and scale initial weights, learning rates, weight decay and Adam's eps, so that a step changes the
activations of a large model as much as those of a small one; the best peak of the one is then that of the other. With
m_L the ratio of layers to the base's, m_in and m_out those of what a parameter reads and writes, and m_w that of hidden
sizes:

    parameter                   multiplier c    initial deviation  learning rate  weight decay  eps
    embedding                   1               1                  1              1             1/m_w
    q, k, v, gate, up           1               1/sqrt(m_in)       1/m_in         m_in          1/(m_out m_L)
    o, down (end of a branch)   1/m_L           1/sqrt(m_in)       1/m_in         m_in          1/(m_w m_L)
    gammas of a block           1               value 1            1              (none)        1/(m_w m_L)
    final gamma                 1               value 1            1              (none)        1/m_w
    head, tied or not           1/m_w           as the embedding   1              1             1/m_w
    scores of attention         1/sqrt(m_h), m_h the ratio of head sizes: 1/head size, relative to the base

The published m_w stands for m_in and m_out, which are the same where all axes grow alike; here every axis has its own
ratio. Where axes are copied whole (tile), a copy with these rates repeats its parent's training (tested): the learning
rate falls by the copies that are summed, and eps follows the gradient, which falls by the copies of what is written.
Gammas inside heads (Qwen3) are shared by all heads, whose gradients are summed: eps / (m_h m_L). The published code
divides every eps by m_w m_L; here only the eps of blocks is divided by m_L, as their gradients are.

A stock model has no multipliers, so they are folded into weights. Let a model use W = c w, and train w by AdamW with
rate r, decay l and eps e. The gradient of w is c times that of W, so with Adam's moments m, v of the gradients of W

    w <- (1 - r l) w - r c m / (c sqrt(v) + e)        times c:
    W <- (1 - r l) W - (r c) m / (sqrt(v) + e/c)

which is AdamW on W itself with rate c r, decay l/c and eps e/c, from c times the initial weights: the symmetry of the
abc-parametrisations (Yang and Hu, arXiv 2011.14522; Yang and Littwin, arXiv 2308.01814, for Adam). It is exact, up to
the clip of the gradient's norm, which sees the gradients of W. Where the multipliers go:

- 1/m_L of a branch into o and down.
- 1/m_w of the logits into the head; where it is tied, into the final gamma, because the embedding also writes, and must
  stay as it is for that. It has one rate for both: in the stream its updates are as large beside itself as the base's,
  and in the logits m_w times as many of them are summed, and divided by m_w. Either is what growth does: it divides the
  final gamma of a tied model by the ratio of the hidden sizes, and tiling does the same to an untied head. So a grown
  child is where a child from scratch would begin, and its factors are simply those of its own shape.
- 1/sqrt(m_h) into q, and where a norm follows (Qwen3) into the gamma of that norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import model_validator

from kinfolk.family.base import Spec
from kinfolk.family.faults import MisfitError
from kinfolk.family.shapes import Architecture, Shape


class RateTransfer(Spec):
    """By which rule rates transfer between shapes, and from which one."""

    rule: Literal["none", "mup", "completep"] = "none"
    """`mup` transfers over widths, `completep` over widths and depths."""
    base: str | None = None
    """The member whose peak the recipe's is; by default the first."""
    base_shape: Shape | None = None
    """The shape for which the recipe was tuned, where it is no member's."""

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if self.base is not None and self.base_shape is not None:
            raise MisfitError(
                "there are two bases, a member and a shape", field="base_shape", fix="take one of them out"
            )
        return self


@dataclass(frozen=True)
class Factors:
    """What makes a parameter of a shape different from the same one of the base; all are multiples of the base's."""

    initial: float = 1.0
    """Standard deviation of the initial weights; for a gamma its initial value."""
    rate: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


def parameter_factors(
    shape: Shape, base: Shape, rule: Literal["mup", "completep"], architecture: Architecture
) -> dict[str, Factors]:
    """The factors of all parameters of a shape, by the name of their module (`q_proj`, `norm`, ...).

    >>> small = Shape(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128)
    >>> sizes = dict(num_hidden_layers=4, hidden_size=128, num_attention_heads=8, intermediate_size=256)
    >>> factors = parameter_factors(Shape(**sizes), small, "completep", "llama")
    >>> factors["embed_tokens"]
    Factors(initial=1.0, rate=1.0, decay=1.0, eps=0.5)
    >>> factors["down_proj"].rate, factors["down_proj"].decay, factors["norm"].initial
    (0.25, 4.0, 0.5)
    """
    width = shape.hidden_size / base.hidden_size
    depth = shape.num_hidden_layers / base.num_hidden_layers if rule == "completep" else 1.0
    head = shape.head_dim / base.head_dim
    queries = head * shape.num_attention_heads / base.num_attention_heads
    keys = head * shape.num_key_value_heads / base.num_key_value_heads
    feed_forward = shape.intermediate_size / base.intermediate_size
    scores, has_head_norms = head**-0.5, architecture == "qwen3"
    branch, logits, gammas = 1 / depth, 1 / width, _folded(eps=1 / (width * depth))
    factors = {
        "embed_tokens": _folded(eps=1 / width),
        "input_layernorm": gammas,
        "q_proj": _matrix(width, queries, depth, 1.0 if has_head_norms else scores),
        "k_proj": _matrix(width, keys, depth),
        "v_proj": _matrix(width, keys, depth),
        "o_proj": _matrix(queries, width, depth, branch),
        "post_attention_layernorm": gammas,
        "gate_proj": _matrix(width, feed_forward, depth),
        "up_proj": _matrix(width, feed_forward, depth),
        "down_proj": _matrix(feed_forward, width, depth, branch),
        "norm": _folded(logits if shape.tie_word_embeddings else 1.0, eps=1 / width),
    }
    if has_head_norms:
        factors |= {"q_norm": _folded(scores, eps=1 / (head * depth)), "k_norm": _folded(eps=1 / (head * depth))}
    if not shape.tie_word_embeddings:
        factors["lm_head"] = _folded(logits, eps=1 / width)
    return factors


def factors_of(name: str, factors: Mapping[str, Factors] | None) -> Factors:
    """The factors of the parameter called `name`, as in a state dict; all 1 where there are none.

    >>> factors_of("model.layers.3.self_attn.q_proj.weight", {"q_proj": Factors(rate=0.5)}).rate
    0.5
    """
    return Factors() if factors is None else factors[name.split(".")[-2]]


def _matrix(reads: float, writes: float, depth: float, multiplier: float = 1.0) -> Factors:
    """Of a matrix inside a block, whose inputs and outputs are so many times the base's."""
    return _folded(multiplier, reads**-0.5, 1 / reads, reads, 1 / (writes * depth))


def _folded(
    multiplier: float = 1.0, initial: float = 1.0, rate: float = 1.0, decay: float = 1.0, eps: float = 1.0
) -> Factors:
    """The factors of W = c w from those of w."""
    return Factors(multiplier * initial, multiplier * rate, decay / multiplier, eps / multiplier)
