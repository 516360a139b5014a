"""Grow a checkpoint: weights and Adam moments of a parent become those of a child. Width first, then depth.

Parameters are named as in `named_parameters()` of the transformers model. A `state_dict()` of a tied model also lists
the head; that second name of the embedding is left out of the result, which holds each tensor once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture, Shape, growth_obstacles
from kinfolk.growth.axes import Axes, axes_of, in_layer, tied_alias
from kinfolk.growth.depth import is_exit, layer_map, preserves_function
from kinfolk.growth.width import WidthGrowth
from kinfolk.plan.stages import Operator


def claims_preservation(operator: Operator, parent: Shape, child: Shape) -> bool:
    """Whether the operator claims that the child computes the parent's function (up to rounding).

    The energy split claims it for every width, noise or not; zero-exit depth does; stacked layers do not.
    """
    return preserves_function(operator.depth, parent.num_hidden_layers, child.num_hidden_layers)


def describe(operator: Operator, parent: Shape, child: Shape) -> str:
    """One line on what the operator does between these shapes."""
    sizes = [
        f"{label} {getattr(parent, field)} -> {getattr(child, field)}"
        for label, field in (
            ("hidden", "hidden_size"),
            ("query heads", "num_attention_heads"),
            ("KV heads", "num_key_value_heads"),
            ("feed-forward", "intermediate_size"),
        )
        if getattr(parent, field) != getattr(child, field)
    ]
    parts = [f"{operator.width} ({', '.join(sizes)}; noise {operator.noise:g}, seed {operator.seed})"] if sizes else []
    if parent.num_hidden_layers != child.num_hidden_layers:
        parts.append(f"{operator.depth} (layers {parent.num_hidden_layers} -> {child.num_hidden_layers})")
    return ", then ".join(parts) or "same shape: a copy"


def grow_weights(
    parameters: Mapping[str, Tensor], architecture: Architecture, parent: Shape, child: Shape, operator: Operator
) -> dict[str, Tensor]:
    """The child's parameters, in the order of its `named_parameters()` if the parent's are in theirs.

    Deterministic: the same parent, operator and seed give the same bytes, in whatever order the parameters come.
    Same shape: a copy. Results never share memory with the parent.
    """
    return dict(iterate_weights(parameters, architecture, parent, child, operator))


def iterate_weights(
    parameters: Mapping[str, Tensor], architecture: Architecture, parent: Shape, child: Shape, operator: Operator
) -> Iterator[tuple[str, Tensor]]:
    """`grow_weights` one tensor at a time, for a mapping that reads its tensors when they are asked for."""
    _refuse_obstacles(parent, child)
    return _iterate_weights(parameters, architecture, parent, child, operator)


def _iterate_weights(
    parameters: Mapping[str, Tensor], architecture: Architecture, parent: Shape, child: Shape, operator: Operator
) -> Iterator[tuple[str, Tensor]]:
    width = WidthGrowth(parent, child)
    names = _without_tied_aliases(parameters, architecture, parent)
    for name, origin in _origins(names, architecture, parent, child):
        tensor = parameters[origin.name]
        if operator.depth == "zero_exit" and origin.is_new and origin.is_exit:
            yield name, tensor.new_zeros(width.child_size(tensor, origin.axes))
        else:
            yield name, width.weights(tensor, origin.axes, origin.name, noise=operator.noise, seed=operator.seed)


def grow_moments(
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    architecture: Architecture,
    parent: Shape,
    child: Shape,
    operator: Operator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adam's first and second moments of the child: the parent's by the same index maps, times the gradient factor
    and its square (growth spec, section 4, rule 4; the step count is kept by the caller).

    A child grown without noise has exactly these moments. Those of new zero-exit blocks are zero; stacked layers take
    the moments of the layer they copy.
    """
    _refuse_obstacles(parent, child)
    width = WidthGrowth(parent, child)
    grown: list[dict[str, Tensor]] = []
    for moments, power in ((exp_avg, 1), (exp_avg_sq, 2)):
        names = _without_tied_aliases(moments, architecture, parent)
        result = {}
        for name, origin in _origins(names, architecture, parent, child):
            tensor = moments[origin.name]
            if operator.depth == "zero_exit" and origin.is_new:
                result[name] = tensor.new_zeros(width.child_size(tensor, origin.axes))
            else:
                result[name] = width.gradients(tensor, origin.axes, origin.name, power=power)
        grown.append(result)
    return grown[0], grown[1]


@dataclass(frozen=True)
class _Origin:
    """Where one of the child's parameters comes from."""

    name: str
    axes: Axes
    is_new: bool
    is_exit: bool


def _origins(
    names: Iterable[str], architecture: Architecture, parent: Shape, child: Shape
) -> list[tuple[str, _Origin]]:
    """The child's parameters with their origins: those outside the layers in place, the layers where the first was."""
    outside_before: list[tuple[str, _Origin]] = []
    outside_after: list[tuple[str, _Origin]] = []
    layers: dict[int, list[tuple[str, Axes]]] = {}
    for name in names:
        axes, layer = axes_of(name, architecture)
        if layer is None:
            (outside_after if layers else outside_before).append((name, _Origin(name, axes, False, False)))
        elif layer >= parent.num_hidden_layers:
            raise KinfolkError(
                f"{name} is in layer {layer}, and the parent's shape has {parent.num_hidden_layers} layers",
                fix="give the shape that the parent's config.json says",
            )
        else:
            layers.setdefault(layer, []).append((name, axes))
    inside = [
        (in_layer(name, number, architecture), _Origin(name, axes, source.is_new, is_exit(axes, source.source)))
        for number, source in enumerate(layer_map(parent.num_hidden_layers, child.num_hidden_layers))
        for name, axes in layers.get(source.source, ())
    ]
    return outside_before + inside + outside_after


def _without_tied_aliases(parameters: Mapping[str, Tensor], architecture: Architecture, parent: Shape) -> list[str]:
    names = []
    for name in parameters:
        original = tied_alias(name, architecture) if parent.tie_word_embeddings else None
        if original is None:
            names.append(name)
        elif original in parameters and not torch.equal(parameters[name], parameters[original]):
            raise KinfolkError(
                f"{name} differs from {original}, and the parent's shape says that the embeddings are tied",
                fix="set tie_word_embeddings to false in both shapes",
            )
    return names


def _refuse_obstacles(parent: Shape, child: Shape) -> None:
    obstacles = growth_obstacles(parent, child)
    if obstacles:
        raise KinfolkError("; ".join(obstacles), where="growth")
