"""Grow a checkpoint: weights and Adam moments of a parent become those of a child. Width first, then depth.

Parameters are named as in a checkpoint of transformers. A `state_dict()` of a tied model also lists the head; that
second name of the embedding is left out of the result, which holds each tensor once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Shape
from kinfolk.growth.axes import Axes, Axis
from kinfolk.growth.claims import refuse_obstacles
from kinfolk.growth.depth import layer_map
from kinfolk.growth.maps import cyclic
from kinfolk.growth.names import Place, grown_names, in_layer, place_of, tied_alias
from kinfolk.growth.rows import Rows, TensorRows, blocks
from kinfolk.growth.sizes import Sizes
from kinfolk.growth.tables import table_of
from kinfolk.growth.width import WidthGrowth
from kinfolk.plan.stages import Operator


def grow_weights(
    parameters: Mapping[str, Tensor],
    architecture: str,
    parent: Shape | Sizes,
    child: Shape | Sizes,
    operator: Operator,
) -> dict[str, Tensor]:
    """The child's parameters, in the order of its `named_parameters()` if the parent's are in theirs.

    Deterministic: the same parent, operator and seed give the same bytes, in whatever order the parameters come.
    Same shape: a copy. Results never share memory with the parent.
    """
    return dict(iterate_weights(parameters, architecture, parent, child, operator))


def iterate_weights(
    parameters: Mapping[str, Tensor],
    architecture: str,
    parent: Shape | Sizes,
    child: Shape | Sizes,
    operator: Operator,
) -> Iterator[tuple[str, Tensor]]:
    """`grow_weights` one tensor at a time, for a mapping that reads its tensors when they are asked for."""
    origins = origins_of(parameters, architecture, parent, child, operator)
    return ((name, origin.weights(parameters)) for name, origin in origins)


def grow_moments(
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    architecture: str,
    parent: Shape | Sizes,
    child: Shape | Sizes,
    operator: Operator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adam's first and second moments of the child: the parent's by the same index maps, times the gradient factor
    and its square (growth spec, section 4, rule 4; the step count is kept by the caller).

    A child grown without noise has exactly these moments. Those of new zero-exit blocks are zero, and so are those of
    embeddings that the child unties; stacked layers take the moments of the layer they copy.
    """
    grown = [
        {
            name: origin.gradients(moments, power)
            for name, origin in origins_of(moments, architecture, parent, child, operator)
        }
        for moments, power in ((exp_avg, 1), (exp_avg_sq, 2))
    ]
    return grown[0], grown[1]


@dataclass(frozen=True)
class Origin:
    """Where one of the child's parameters comes from, and how it is made from there."""

    name: str
    """Of the parent's parameter."""
    child_name: str
    following: str | None
    """The same parameter one layer up, where new units are taken from it."""
    axes: Axes
    is_new: bool
    """In a layer that zero-exit growth adds."""
    is_exit: bool
    """The last thing before the residual stream, in such a layer."""
    expert_copy: tuple[int, int]
    width: WidthGrowth
    is_untied: bool = False
    """Embedding or head of a child that unties them: both are the parent's one matrix, whose gradient is a sum of two
    that nothing tells apart."""

    @property
    def is_silent(self) -> bool:
        """Whether it is such that its block adds nothing."""
        return self.is_new and self.is_exit

    @property
    def silence(self) -> float:
        """The value by which it does so."""
        return -self.width.table.gamma_offset if Axis.HIDDEN_POST_NORM in self.axes else 0.0

    def weights(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The child's tensor, in new memory and the parent's dtype.

        Rounding to a dtype narrower than float32 disturbs the zero sum of the noise: grow float32 or float64 master
        weights and cast afterwards.
        """
        tensor = parameters[self.name]
        grown = tensor.new_empty(self.width.axes.child_size(tensor.shape, self.axes))
        names = (self.name, self.following) if self.following else (self.name,)
        for start, block in self.blocks({name: TensorRows(parameters[name]) for name in names}):
            grown[start : start + len(block)] = block
        return grown

    def blocks(self, parameters: Mapping[str, Rows]) -> Iterator[tuple[int, Tensor]]:
        """The child's tensor as blocks of rows in float32 or wider, each with its first row."""
        tensor = parameters[self.name]
        if self.is_silent:
            size = self.width.axes.child_size(tensor.shape, self.axes)
            return ((start, torch.full((stop - start, *size[1:]), self.silence)) for start, stop in blocks(size))
        if self.is_new and self.width.operator.block == "drawn" and len(self.axes) > 1:
            return self.width.drawn(tensor, self.axes, self.child_name)
        following = parameters[self.following] if self.following else None
        return self.width.blocks(tensor, self.axes, self.name, following=following, expert_copy=self.expert_copy)

    def gradients(self, moments: Mapping[str, Tensor], power: int) -> Tensor:
        """A moment of the child, in new memory."""
        tensor = moments[self.name]
        grown = tensor.new_empty(self.width.axes.child_size(tensor.shape, self.axes))
        for start, block in self.gradient_blocks({self.name: TensorRows(tensor)}, power):
            grown[start : start + len(block)] = block
        return grown

    def gradient_blocks(self, moments: Mapping[str, Rows], power: int) -> Iterator[tuple[int, Tensor]]:
        """A moment of the child as blocks of rows in the parent's dtype, each with its first row."""
        moment = moments[self.name]
        if self.is_new or self.is_untied:
            size = self.width.axes.child_size(moment.shape, self.axes)
            return ((start, torch.zeros((stop - start, *size[1:]), dtype=moment.dtype)) for start, stop in blocks(size))
        # The copies of an expert share its tokens' weight, and with it the gradient.
        copies = self.expert_copy[1] ** power
        grown = self.width.gradients(moment, self.axes, self.name, power=power)
        return ((start, block.div_(copies)) for start, block in grown)


def origins_of(
    parameters: Mapping[str, Tensor] | Iterable[str],
    architecture: str,
    parent: Shape | Sizes,
    child: Shape | Sizes,
    operator: Operator,
) -> list[tuple[str, Origin]]:
    """The child's parameters with their origins: those outside the layers in place, the layers where the first was.

    `parameters` may be names alone; a mapping is also asked whether a second name of a tied embedding agrees with the
    first. Raises KinfolkError for what cannot grow, before any work.
    """
    refuse_obstacles(operator, parent, child, architecture)
    before, after = Sizes.of(parent), Sizes.of(child)
    width = WidthGrowth(before, after, operator, architecture)
    table = table_of(architecture)
    sources = layer_map(
        before.shape.num_hidden_layers, after.shape.num_hidden_layers, operator.depth, operator.placement
    )
    unties = before.shape.tie_word_embeddings and not after.shape.tie_word_embeddings
    outside: tuple[list[tuple[str, Origin]], list[tuple[str, Origin]]] = ([], [])
    head: Origin | None = None
    layers: dict[int, list[tuple[str, Place]]] = {}
    for name in _without_tied_aliases(parameters, architecture, before.shape):
        place = place_of(name, architecture)
        if place.layer is None:
            is_untied = unties and place.key == table.embedding
            origin = Origin(name, name, None, place.axes, False, False, (0, 1), width, is_untied)
            outside[bool(layers)].append((name, origin))
            if is_untied:
                head = replace(origin, child_name=table.head, axes=table.outside[table.head])
        elif place.layer >= before.shape.num_hidden_layers:
            raise KinfolkError(
                f"{name} is in layer {place.layer}, and the parent's shape has {before.shape.num_hidden_layers} layers",
                fix="give the shape that the parent's config.json says",
            )
        else:
            layers.setdefault(place.layer, []).append((name, place))
    inside = []
    top = before.shape.num_hidden_layers - 1
    for number, source in enumerate(sources):
        is_new = source.is_new and operator.depth == "zero_exit"
        for name, place in layers.get(source.source, ()):
            # The last layer has none above it and takes its own.
            takes_next = operator.width == "aki" and source.source < top
            following = in_layer(name, source.source + 1, architecture) if takes_next else None
            for expert, copy, copies in _experts(place.expert, before, after):
                child_name = in_layer(name, number, architecture, expert)
                origin = Origin(
                    name, child_name, following, place.axes, is_new, table.is_exit(place.axes), (copy, copies), width
                )
                inside.append((child_name, origin))
    return outside[0] + inside + outside[1] + ([(head.child_name, head)] if head else [])


def _experts(expert: int | None, parent: Sizes, child: Sizes) -> list[tuple[int | None, int, int]]:
    """The child's experts that copy one of the parent's: its own number, that among the copies, how many these are."""
    if expert is None or not parent.experts or not child.experts:
        return [(expert, 0, 1)]
    copies = (cyclic(child.experts, parent.experts) == expert).nonzero().flatten().tolist()
    return [(number, copy, len(copies)) for copy, number in enumerate(copies)]


def _without_tied_aliases(
    parameters: Mapping[str, Tensor] | Iterable[str], architecture: str, parent: Shape
) -> list[str]:
    names = []
    for name in grown_names(parameters, architecture):
        original = tied_alias(name, architecture) if parent.tie_word_embeddings else None
        if original is None:
            names.append(name)
        elif (
            isinstance(parameters, Mapping)
            and original in parameters
            and not torch.equal(parameters[name], parameters[original])
        ):
            raise KinfolkError(
                f"{name} differs from {original}, and the parent's shape says that the embeddings are tied",
                fix="set tie_word_embeddings to false in both shapes",
            )
    return names
