"""Units of the child that copy none of the parent's: drawn at random, zero, or the mean of the parent's units.

Three operators leave such units. `lemon` and `zero_pad` make new hidden units silent: nothing but zero is written into
them, or the mean of the old ones under LayerNorm, which their readers then see as zero as well; so the readers' new
columns are free and drawn. `zero_pad` also draws whole new heads and feed-forward units, and what reads them is zero.
Every operator draws the new part of a larger head: its keys are zero, so that the old part decides the attention alone,
and what reads its values is zero. New tokens get the mean of the old ones.

On each path through new units exactly one side is zero and the other is not, so that both sides get gradients by the
second step (under zero_pad the gammas of the last post-norm wait for a third where the head is tied). One norm over all
query heads (OLMo 2) leaves nothing free: a drawn row would change what the old ones are divided by. There queries and
keys of new heads are copies in every operator.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kinfolk.growth.axes import Axis
from kinfolk.growth.maps import Units
from kinfolk.plan.stages import WidthRule


class Fills(NamedTuple):
    """Which units of an axis are no copies, one mask for each kind."""

    fresh: Tensor
    """Drawn at random."""
    zero: Tensor
    """Zero, also where another axis would have the entries drawn."""
    mean: Tensor
    """The mean of the parent's units."""


def fills_of(axis: Axis, units: Units, rule: WidthRule, norm: Literal["rms", "layer"]) -> Fills:
    """What becomes of the units of an axis that are no copies."""
    none = torch.zeros_like(units.new)
    pads_hidden = rule in ("lemon", "zero_pad")
    pads_all = rule == "zero_pad"
    padded = units.new & ~units.repeated if pads_all else units.head_new
    match axis:
        case Axis.VOCAB:
            return Fills(none, none, units.new)
        case Axis.HIDDEN_EMBED | Axis.HIDDEN_WRITE if pads_hidden:
            return Fills(none, none, units.new) if norm == "layer" else Fills(none, units.new, none)
        case Axis.HIDDEN_NORM | Axis.HIDDEN_POST_NORM | Axis.FINAL_NORM if pads_hidden:
            return Fills(none, none, units.new)
        case Axis.HIDDEN_NORM_BIAS | Axis.FINAL_NORM_BIAS if pads_hidden:
            return Fills(none, units.new, none)
        case Axis.HIDDEN_READ | Axis.HIDDEN_READ_RAW if pads_hidden:
            return Fills(units.new, none, none)
        case Axis.QUERY | Axis.VALUE | Axis.QUERY_KEY_VALUE:
            return Fills(padded, none, none)
        case Axis.KEY:
            return Fills(padded & ~units.head_new, units.head_new, none)
        case Axis.QUERY_READ:
            return Fills(none, padded, none)
        case Axis.FFN if pads_all:
            return Fills(units.new, none, none)
        case Axis.FFN_READ if pads_all:
            return Fills(none, units.new, none)
        case _:
            return Fills(none, none, none)
