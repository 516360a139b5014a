"""What a training step keeps of a Llama or Qwen3 of transformers between its forward and its backward pass.

The terms are the tensors that autograd saves in the models' own code run eagerly, counted one by one; the tests compare
them with what torch saves, to the byte. Attention runs in one kernel, which keeps queries, keys, values, its output and
one number a head instead of the scores (FlashAttention, arXiv 2205.14135), and shares keys and values among the query
heads of a group. Compilation keeps less.
"""

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.plan.layouts import Precision

LOGITS_AT_ONCE = 2**27
"""Elements in a chunk of logits on a GPU (`kinfolk.train.objective`)."""


def product_bytes(precision: Precision) -> int:
    """Of a number that a matrix product reads or writes."""
    return 4 if precision == "float32" else 2


def stream_bytes(precision: Precision) -> int:
    """Of a number in the residual stream."""
    return 2 if precision == "bfloat16" else 4


def layer_bytes(shape: Shape, architecture: Architecture, precision: Precision) -> int:
    """Bytes that one layer keeps of one position.

    With h, q, k, f the widths of hidden state, queries, keys and feed-forward, and s, r the bytes of a product's number
    and of the residual stream's:
    norms          2 (4h + 4 + r h): the input in float32, a deviation, the normed state
    their outputs  5 s h under autocast and mixed, which cast for each of the five products that read them; else 2 s h
    attention      2 s (q + k) + 4 heads: queries, keys, values, output, and the logarithms of the sums
    feed-forward   4 s f: gate, its activation, up, and their product
    norms of query and key (Qwen3)   (4 + s) (q + k) + 4 (heads + KV heads)
    """
    hidden, feed_forward = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    size, stream = product_bytes(precision), stream_bytes(precision)
    norms = 2 * (4 * hidden + 4 + stream * hidden)
    normed = (5 if precision in ("autocast", "mixed") else 2) * size * hidden
    attention = 2 * size * (queries + keys) + 4 * shape.num_attention_heads
    total = norms + normed + attention + 4 * size * feed_forward
    if architecture == "qwen3":
        total += (4 + size) * (queries + keys) + 4 * (shape.num_attention_heads + shape.num_key_value_heads)
    return total


def layer_input_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes that one checkpointed layer keeps of one position: its input."""
    return stream_bytes(precision) * shape.hidden_size


def outside_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes kept of one position outside the layers: the last norm, its token, sine and cosine of its rotation."""
    stream = stream_bytes(precision)
    return 4 * shape.hidden_size + 4 + stream * shape.hidden_size + 8 + 2 * stream * shape.head_dim


def head_bytes(shape: Shape, vocab_size: int, positions: int, precision: Precision, chunked: bool = True) -> int:
    """Bytes that the head and its cross-entropy take at most for so many positions.

    kinfolk's are chunked: the hidden states, as they are and as the product reads them, and their gradient; the head's
    weight as the product reads it, its gradient, and what a chunk adds to that; and one chunk of logits, in float32 and
    as products write and read them. Whole logits are what a model of transformers makes: the product, the same in
    float32, the logarithms of the softmax, and the gradient (arithmetic from its code, not measured).
    """
    hidden, size, stream = shape.hidden_size, product_bytes(precision), stream_bytes(precision)
    is_cast = size != stream
    states = positions * hidden * (2 * stream + (size if is_cast else 0))
    table = vocab_size * hidden * (stream + size + (size if is_cast else 0))
    if not chunked:
        return states + table + positions * vocab_size * (size + 4 + 4 + 4)
    rows = min(positions, max(16, LOGITS_AT_ONCE // vocab_size))
    return states + table + rows * vocab_size * (4 if precision == "float32" else 4 + size)
