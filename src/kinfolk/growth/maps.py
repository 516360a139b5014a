"""Index maps: which of the parent's units each of the child's units comes from, axis by axis.

Whole KV groups are copied, and query heads inside their group, so that every query head keeps reading the keys and
values it read before. Where the ratio of query to KV heads falls, every KV head is first repeated for its own part of
the query heads (growth spec, section 3.2); then groups and the heads in them grow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.family.shapes import Shape, groups_split
from kinfolk.growth.axes import Axis
from kinfolk.growth.sizes import Sizes

Choose = Callable[[int, int], Tensor]
"""(units of the child, units of the parent) -> the parent's unit for each of the child's; the first ones their own."""


@dataclass(frozen=True)
class Units:
    """Where the units along one axis come from."""

    index: Tensor
    """The parent's unit that each unit of the child copies."""
    new: Tensor
    """Whether a unit of the child is beyond the parent's own."""
    repeated: Tensor
    """Whether it is new only because a KV head is repeated for a part of its query heads, which go on reading it."""
    head_new: Tensor
    """Whether it lies in the new part of a head that has become larger."""


@dataclass(frozen=True)
class _Heads:
    """Where the child's heads come from; the masks are those of `Units`."""

    index: Tensor
    new: Tensor
    repeated: Tensor


def cyclic(child: int, parent: int) -> Tensor:
    """Copy the parent's units in order, again and again."""
    return torch.arange(child) % parent


def at_random(seed: int) -> Choose:
    """Copies of units drawn at random beyond the parent's own (bert2BERT, arXiv 2110.07143)."""

    def choose(child: int, parent: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(parent, (child - parent,), generator=generator)
        return torch.cat([torch.arange(parent), drawn])

    return choose


def units_of(axis: Axis, parent: Sizes, child: Sizes, choose: Choose, *, rotary: bool) -> Units | None:
    """The map of one axis, or None where it cannot grow.

    `rotary` says whether queries and keys are turned in pairs (i, i + half of the head), which stay together.
    """
    old, new = parent.shape, child.shape
    match axis:
        case Axis.POSITION | Axis.HEAD_SIZE:
            return None
        case Axis.VOCAB:
            return _plain(parent.vocab_size or 0, child.vocab_size or parent.vocab_size or 0, cyclic)
        case Axis.EXPERT:
            # The experts themselves are copied in order, whatever the operator: see `kinfolk.growth.grow`.
            return _plain(parent.experts or 0, child.experts or 0, cyclic)
        case Axis.FFN | Axis.FFN_READ:
            return _plain(old.intermediate_size, new.intermediate_size, choose)
        case Axis.QUERY | Axis.NORMED_QUERY | Axis.QUERY_NORM:
            return _rows(_query_heads(old, new, choose), _pairs(old, new) if rotary else _appended(old, new))
        case Axis.QUERY_READ:
            return _rows(_query_heads(old, new, choose), _appended(old, new))
        case Axis.KEY | Axis.NORMED_KEY | Axis.KEY_NORM:
            return _rows(_groups(old, new, choose), _pairs(old, new) if rotary else _appended(old, new))
        case Axis.VALUE:
            return _rows(_groups(old, new, choose), _appended(old, new))
        case Axis.QUERY_KEY_VALUE:
            within = torch.arange(3 * old.head_dim)
            return _rows(_query_heads(old, new, choose), (within, within < 0))
        case _:
            return _plain(old.hidden_size, new.hidden_size, choose)


def _plain(parent: int, child: int, choose: Choose) -> Units:
    units = torch.arange(child)
    none = torch.zeros(child, dtype=torch.bool)
    return Units(choose(child, parent) if parent else units, units >= (parent or child), none, none)


def _groups(old: Shape, new: Shape, choose: Choose) -> _Heads:
    split = groups_split(old, new)
    parts = choose(new.num_key_value_heads, old.num_key_value_heads * split)
    beyond = torch.arange(new.num_key_value_heads) >= old.num_key_value_heads * split
    repeated = ~beyond & (parts % split > 0)
    return _Heads(parts // split, beyond | repeated, repeated)


def _query_heads(old: Shape, new: Shape, choose: Choose) -> _Heads:
    """A query head of the child is (group, slot) and copies a slot of the group's part."""
    split = groups_split(old, new)
    parts = choose(new.num_key_value_heads, old.num_key_value_heads * split)
    slots_per_part = old.queries_per_group // split
    slots = choose(new.queries_per_group, slots_per_part)
    heads = parts[:, None] * slots_per_part + slots
    new_group = torch.arange(new.num_key_value_heads) >= old.num_key_value_heads * split
    new_slot = torch.arange(new.queries_per_group) >= slots_per_part
    is_new = (new_group[:, None] | new_slot).flatten()
    return _Heads(heads.flatten(), is_new, torch.zeros_like(is_new))


def _rows(heads: _Heads, within: tuple[Tensor, Tensor]) -> Units:
    """Heads as rows: every head is `within` (the parent's row in a head, whether it is new)."""
    rows, row_is_new = within
    old_rows = int((~row_is_new).sum())
    index = (heads.index[:, None] * old_rows + rows).flatten()
    new, repeated = (mask.repeat_interleave(len(rows)) for mask in (heads.new, heads.repeated))
    head_new = row_is_new.repeat(len(heads.index))
    return Units(index, new | head_new, repeated, head_new)


def _appended(old: Shape, new: Shape) -> tuple[Tensor, Tensor]:
    rows = torch.arange(new.head_dim)
    return rows % old.head_dim, rows >= old.head_dim


def _pairs(old: Shape, new: Shape) -> tuple[Tensor, Tensor]:
    """Rotary pair i becomes pair m i, which turns at the same frequency: theta^(-2i/h) = theta^(-2mi/(mh))."""
    times, half = new.head_dim // old.head_dim, new.head_dim // 2
    rows = torch.arange(new.head_dim)
    pair, side = rows % half, rows // half
    return side * (old.head_dim // 2) + pair // times, pair % times > 0
