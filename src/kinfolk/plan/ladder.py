"""Shapes of wanted sizes that grow into each other and that hardware likes.

Along a ladder head size, query heads per KV head and tying stay, as growth wants it; nothing shrinks; hidden and
feed-forward sizes are multiples of 128.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture, Shape, growth_misfits, parameter_count
from kinfolk.laws.objectives import Array

TOLERANCE = 0.05
"""How far a shape's parameters may be from the wish, as a share of it."""

MULTIPLE = 128
"""Of hidden and feed-forward sizes: what matrix units of GPUs like."""

MOST_LAYERS = 160
FEED_FORWARD = 3.0
"""Feed-forward over hidden size that is aimed at: between 8/3 of Llama and 3.5 of models with few KV heads."""


def shape_ladder(sizes: Sequence[float], vocab_size: int, architecture: Architecture) -> tuple[Shape, ...]:
    """One shape for each of the `sizes` (all parameters, rising), each within 5 % and able to grow into the next.

    Head size 128 from a billion parameters on, else 64; 4 query heads to a KV head from 100 million on, else 2;
    embeddings are tied below two billion (always by the smallest). KinfolkError where no shape is near a size.
    """
    smallest = sizes[0]
    head_dim = 128 if smallest >= 1e9 else 64
    group = 4 if smallest >= 1e8 else 2
    shapes: list[Shape] = []
    for size in sizes:
        shape = _nearest(
            size, vocab_size, architecture, head_dim, group, smallest < 2e9, shapes[-1] if shapes else None
        )
        if shape is None:
            after = f" that grows out of {_text(shapes[-1])}" if shapes else ""
            raise KinfolkError(
                f"no shape of multiples of {MULTIPLE} with {size:.4g} parameters{after} and a vocabulary of "
                f"{vocab_size:,}, to within {TOLERANCE:.0%}",
                where="--sizes",
                fix="ask for sizes further apart, for larger ones, or for a smaller --vocabulary",
            )
        shapes.append(shape)
    return tuple(shapes)


@cache
def _nearest(
    size: float,
    vocab_size: int,
    architecture: Architecture,
    head_dim: int,
    group: int,
    tied: bool,
    parent: Shape | None,
) -> Shape | None:
    """The best-proportioned shape within the tolerance of `size`; None if there is none."""
    step = math.lcm(MULTIPLE, head_dim * group)
    guess = (size * _aspect(size) / 12) ** (1 / 3)
    low = max(step, parent.hidden_size if parent else step)
    hidden = np.arange(-(-low // step) * step, 3 * guess + step, step, dtype=np.float64)
    ratios = np.arange(2.0, 4.51, 0.125)
    if not len(hidden):
        return None
    wide = hidden[:, None, None]  # (hidden, ffn, layers)
    ffn = np.round(wide * ratios[None, :, None] / MULTIPLE) * MULTIPLE
    if parent:
        ffn = np.maximum(ffn, parent.intermediate_size)
    block = wide * wide * (2 + 2 / group) + 3 * wide * ffn + 2 * wide + (2 * head_dim if architecture == "qwen3" else 0)
    rest = size - vocab_size * wide * (1 if tied else 2) - wide
    layers = np.clip(np.floor(rest / block) + np.array([0.0, 1.0]), parent.num_hidden_layers if parent else 2, None)
    error = np.log((layers * block + size - rest) / size)
    fits = (np.abs(np.expm1(error)) <= TOLERANCE) & (layers <= MOST_LAYERS)
    if not fits.any():
        return None
    penalty = np.log(wide / layers / _aspect(size)) ** 2 + np.log(ffn / wide / FEED_FORWARD) ** 2 + 25 * error**2
    for index in np.argsort(np.where(fits, penalty, np.inf), axis=None, kind="stable"):
        if not fits.flat[index]:
            return None
        shape = _shape(index, hidden, ffn, layers, head_dim, group, tied)
        count = parameter_count(shape, vocab_size, architecture).total
        if abs(count / size - 1) <= TOLERANCE and not (parent and growth_misfits(parent, shape, architecture)):
            return shape
    return None


def _shape(index: int, hidden: Array, ffn: Array, layers: Array, head_dim: int, group: int, tied: bool) -> Shape:
    row, column, depth = np.unravel_index(index, layers.shape)
    heads = int(hidden[row]) // head_dim
    return Shape(
        num_hidden_layers=int(layers[row, column, depth]),
        hidden_size=int(hidden[row]),
        num_attention_heads=heads,
        num_key_value_heads=heads // group,
        head_dim=head_dim,
        intermediate_size=int(ffn[row, column, 0]),
        tie_word_embeddings=tied,
    )


def _aspect(size: float) -> float:
    """Hidden size over layers that is aimed at: about 100 at a billion parameters, less below, as in models in use."""
    return min(160.0, max(16.0, 100.0 * math.pow(size / 1e9, 0.12)))


def _text(shape: Shape) -> str:
    return f"{shape.num_hidden_layers} layers of {shape.hidden_size}"
