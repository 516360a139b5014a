"""Where a parameter stands, by its name: its axes, layer and expert, as the table of its architecture says."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from kinfolk.errors import KinfolkError
from kinfolk.growth.axes import Axes, Axis, parts
from kinfolk.growth.tables import table_of


@dataclass(frozen=True)
class Place:
    """Where a parameter stands: its table entry, layer and expert (None outside)."""

    axes: Axes
    key: str
    layer: int | None = None
    expert: int | None = None


def place_of(name: str, architecture: str) -> Place:
    """Where the parameter called `name` stands.

    >>> place = place_of("model.layers.11.mlp.down_proj.weight", "llama")
    >>> [axis.name for axis in place.axes], place.layer
    (['HIDDEN_WRITE', 'FFN_READ'], 11)
    """
    table = table_of(architecture)
    for full in (name, table.optional_prefix + name):
        if full in table.outside:
            return Place(table.outside[full], full)
        found = _layer_pattern(table.layer_prefix).match(full)
        if found:
            key, expert = _without_expert(found["rest"])
            if key in table.layer:
                return Place(table.layer[key], key, int(found["layer"]), expert)
    raise KinfolkError(
        f"the {architecture} architecture has no parameter {name!r}",
        fix=f"give the parameters of a stock {architecture} model of transformers",
    )


def axes_of(name: str, architecture: str) -> tuple[Axes, int | None]:
    """The axes of the parameter called `name` and the layer it belongs to (None outside the layers)."""
    place = place_of(name, architecture)
    return place.axes, place.layer


def in_layer(name: str, layer: int, architecture: str, expert: int | None = None) -> str:
    """The name of the same parameter in another layer and, for a mixture of experts, of another expert.

    >>> in_layer("model.layers.1.mlp.up_proj.weight", 11, "llama")
    'model.layers.11.mlp.up_proj.weight'
    """
    table = table_of(architecture)
    for prefix in (table.layer_prefix, table.layer_prefix.removeprefix(table.optional_prefix)):
        found = _layer_pattern(prefix).match(name)
        if found:
            key, own = _without_expert(found["rest"])
            if own is None:
                return f"{prefix}{layer}.{key}"
            return f"{prefix}{layer}.{key.format(expert=own if expert is None else expert)}"
    raise ValueError(f"{name!r} belongs to no layer")


def grown_names(names: Iterable[str], architecture: str) -> list[str]:
    """The names without those of buffers that models recompute."""
    ignored = [re.compile(pattern) for pattern in table_of(architecture).ignored]
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in ignored)]


def tied_alias(name: str, architecture: str) -> str | None:
    """The parameter that `name` is another name of when the embeddings are tied, or None."""
    table = table_of(architecture)
    is_head = name in table.outside and parts(table.outside[name][0]) == (Axis.VOCAB,) and name != table.embedding
    return table.embedding if is_head else None


@cache
def _layer_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(prefix)}(?P<layer>0|[1-9][0-9]*)\.(?P<rest>.+)\Z")


def _without_expert(rest: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(?P<before>.*\.experts)\.(?P<expert>0|[1-9][0-9]*)\.(?P<after>.+)", rest)
    return (f"{found['before']}.{{expert}}.{found['after']}", int(found["expert"])) if found else (rest, None)
