"""The vocabulary of growth: named axes of parameters, and the role that a tensor plays on each.

Operators act on axes. An axis is a family of units (hidden units, query heads, ...) together with the *role* of a
tensor on it, because the role decides how the tensor is rescaled: a hidden unit is written by the embedding and by `o`
and `down`, passes a norm, and is read by `q`, `k`, `v`, `gate`, `up` and the head. Which axes a parameter has is said
by one table per architecture, in `kinfolk.growth.tables`.
"""

from enum import Enum, auto


class Axis(Enum):
    """The units along one dimension of a tensor, and what the tensor does with them."""

    VOCAB = auto()
    POSITION = auto()
    """Learned positions: never grown."""
    EXPERT = auto()
    """Experts of a mixture: rows of the router."""

    HIDDEN_EMBED = auto()
    """Writes the residual stream from the vocabulary: columns of the token embedding."""
    HIDDEN_WRITE = auto()
    """Adds to the residual stream: rows of o and down, columns of learned positions."""
    HIDDEN_POST_NORM = auto()
    """Scales what a block has computed before it is added to the residual stream (Gemma, OLMo 2)."""
    HIDDEN_NORM = auto()
    """Scales the residual stream for a block's readers."""
    HIDDEN_NORM_BIAS = auto()
    FINAL_NORM = auto()
    """Scales the residual stream for the head, which writes as well when it is tied to the embedding."""
    FINAL_NORM_BIAS = auto()
    HIDDEN_READ = auto()
    """Reads the normed residual stream: columns of q, k, v, gate, up, of the router and of the head."""
    HIDDEN_READ_RAW = auto()
    """Reads the residual stream itself, where a block has no norm before it (OLMo 2)."""

    QUERY = auto()
    """Query heads times head size: rows of q."""
    QUERY_READ = auto()
    """Reads the attention output of every query head: columns of o."""
    KEY = auto()
    """KV heads (groups) times head size: rows of k."""
    VALUE = auto()
    """KV heads (groups) times head size: rows of v."""
    NORMED_QUERY = auto()
    """Rows of q where one norm spans all query heads (OLMo 2)."""
    NORMED_KEY = auto()
    QUERY_NORM = auto()
    """Gamma of that norm."""
    KEY_NORM = auto()
    QUERY_KEY_VALUE = auto()
    """Rows of a fused projection that is ordered by head: the head's q, its k, its v (GPT-NeoX)."""
    HEAD_SIZE = auto()
    """Inside one head, shared by all heads: the gammas of a per-head query or key norm."""

    FFN = auto()
    """Feed-forward units: rows of gate and up."""
    FFN_READ = auto()
    """Reads feed-forward units: columns of down."""


Part = Axis | tuple[Axis, ...]
"""One dimension of a tensor: an axis, or several axes one after the other where a tensor is fused."""

Axes = tuple[Part, ...]

READERS = frozenset({Axis.HIDDEN_READ, Axis.HIDDEN_READ_RAW, Axis.QUERY_READ, Axis.FFN_READ})
"""Axes whose copies are summed, so that anything that sums to zero over the copies of a unit may be added."""

OUTPUTS = frozenset(
    {
        Axis.HIDDEN_WRITE,
        Axis.QUERY,
        Axis.KEY,
        Axis.VALUE,
        Axis.NORMED_QUERY,
        Axis.NORMED_KEY,
        Axis.QUERY_KEY_VALUE,
        Axis.FFN,
    }
)
"""Axes along which a tensor inside a layer computes units (its rows)."""

NORMS = frozenset(
    {Axis.HIDDEN_POST_NORM, Axis.HIDDEN_NORM, Axis.FINAL_NORM, Axis.QUERY_NORM, Axis.KEY_NORM, Axis.HEAD_SIZE}
)
"""Gammas: in Gemma they are stored as the difference from one."""


def parts(part: Part) -> tuple[Axis, ...]:
    """The axes that follow one another along one dimension.

    >>> [axis.name for axis in parts(Axis.FFN)]
    ['FFN']
    """
    return part if isinstance(part, tuple) else (part,)
