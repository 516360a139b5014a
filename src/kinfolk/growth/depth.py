"""Depth growth: which of the parent's layers each of the child's layers comes from.

zero_exit   the parent's layers stay where they are, and new blocks come on top of them: copies of its layers 0, 1, ...
            (cyclically) whose **exits**, the tensors that write the residual stream (o and down, with their biases),
            are zero. A new block adds nothing, so the function is kept bit for bit. It is alive: the first step moves
            its exits, the second everything in it (growth spec, section 3.3; blocks as in LLaMA-Pro, arXiv
            2401.02415, which spreads them instead of putting them on top).
stack       child layer j is parent layer j mod L with everything in it (G_stack, arXiv 2405.15319). Not exact: the
            function changes, and the loss rises before it falls.

Depth is grown after width: a layer that is copied carries its width noise along.
"""

from typing import Literal, NamedTuple

from kinfolk.growth.axes import Axes, Axis


class LayerSource(NamedTuple):
    """Where one layer of the child comes from."""

    source: int
    """Layer of the parent."""
    is_new: bool
    """Beyond the parent's own layers."""


def layer_map(parent_layers: int, child_layers: int) -> tuple[LayerSource, ...]:
    """The source s(j) = j mod L of every layer of the child; the same for both ways of growing depth.

    >>> [tuple(layer) for layer in layer_map(2, 3)]
    [(0, False), (1, False), (0, True)]
    """
    return tuple(LayerSource(layer % parent_layers, layer >= parent_layers) for layer in range(child_layers))


def is_exit(axes: Axes, layer: int | None) -> bool:
    """Whether a parameter is an exit of its layer: it writes the residual stream from inside a block."""
    return layer is not None and axes[0] is Axis.HIDDEN_WRITE


def preserves_function(depth: Literal["zero_exit", "stack"], parent_layers: int, child_layers: int) -> bool:
    """Whether this way of growing depth leaves the function as it was."""
    return depth == "zero_exit" or child_layers == parent_layers
