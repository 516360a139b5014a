"""Depth growth: which of the parent's layers each of the child's layers comes from.

zero_exit    new blocks are copies whose **exits**, the tensors that write the residual stream, are zero: a new block
             adds nothing, so the function is kept bit for bit. It is alive: the first step moves its exits, the second
             everything in it (growth spec, section 3.3). Their matrices are those of a layer, or drawn at random with
             the same deviation. They come on top, as copies of the layers 0, 1, ...
             (cyclically), or are spread evenly or put at given places, each a copy of the layer below it (LLaMA-Pro,
             arXiv 2401.02415).
stack        child layer j is parent layer j mod L with everything in it (G_stack, arXiv 2405.15319).
interpolate  child layer j is parent layer floor(j L / M) (AKI-Pro, arXiv 2408.06567).
middle       the middle layers come twice, in one run after the other (MIDAS, arXiv 2409.19044; SOLAR, arXiv 2312.15166,
             is the same map).

The last three are not exact: the function changes, and the loss rises before it falls. Growing by a few layers at a
time (gradual stacking) is growing several times.

Depth is grown after width: a layer that is copied carries its width noise along.
"""

from typing import NamedTuple

from kinfolk.errors import KinfolkError
from kinfolk.plan.stages import DepthRule, Placement


class LayerSource(NamedTuple):
    """Where one layer of the child comes from."""

    source: int
    """Layer of the parent."""
    is_new: bool
    """A further copy: the parent has this layer once, and the child has it elsewhere as well."""


def layer_map(
    parent_layers: int, child_layers: int, depth: DepthRule = "zero_exit", placement: Placement = "top"
) -> tuple[LayerSource, ...]:
    """The source of every layer of the child.

    >>> [tuple(layer) for layer in layer_map(2, 3)]
    [(0, False), (1, False), (0, True)]
    >>> [layer.source for layer in layer_map(4, 6, "zero_exit", "even")]
    [0, 1, 1, 2, 3, 3]
    >>> [layer.source for layer in layer_map(2, 7, "zero_exit", "even")]
    [0, 0, 0, 1, 1, 1, 1]
    >>> [layer.source for layer in layer_map(2, 4, "interpolate")]
    [0, 0, 1, 1]
    >>> [layer.source for layer in layer_map(4, 6, "middle")]
    [0, 1, 2, 1, 2, 3]

    Raises KinfolkError for places that do not fit, and for a middle that is larger than the parent.
    """
    more = child_layers - parent_layers
    if depth == "zero_exit" and placement != "top":
        return _inserted(parent_layers, child_layers, placement)
    if depth == "interpolate":
        sources = [layer * parent_layers // child_layers for layer in range(child_layers)]
    elif depth == "middle":
        if more > parent_layers:
            raise KinfolkError(
                f"the middle of {parent_layers} layers cannot fill {more} more",
                where="depth",
                fix=f"grow to {2 * parent_layers} layers at most, or use stack",
            )
        first = (parent_layers - more) // 2
        sources = [*range(first + more), *range(first, parent_layers)]
    else:
        sources = [layer % parent_layers for layer in range(child_layers)]
    return tuple(LayerSource(source, source in sources[:layer]) for layer, source in enumerate(sources))


def _inserted(parent_layers: int, child_layers: int, placement: Placement) -> tuple[LayerSource, ...]:
    more = child_layers - parent_layers
    if placement == "even":
        # The last of every run of equal length is new, as in LLaMA-Pro; rounded up, so that the first is never new.
        places = tuple(-(-(number + 1) * child_layers // more) - 1 for number in range(more))
    else:
        assert not isinstance(placement, str)
        places = tuple(placement)
        if len(set(places)) != len(places) or len(places) != more or not all(0 < p < child_layers for p in places):
            raise KinfolkError(
                f"new layers at {', '.join(map(str, places)) or 'no place'} do not make {child_layers} layers of "
                f"{parent_layers}",
                where="placement",
                fix=f"give {more} different places from 1 to {child_layers - 1}, counted in the child",
            )
    layers, source = [], -1
    for layer in range(child_layers):
        is_new = layer in places
        source += not is_new
        layers.append(LayerSource(source, is_new))
    return tuple(layers)


def preserves_function(depth: DepthRule, parent_layers: int, child_layers: int) -> bool:
    """Whether this way of growing depth leaves the function as it was."""
    return depth == "zero_exit" or child_layers == parent_layers
