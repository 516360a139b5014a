"""The parameter tensors of a model, in the groups that FSDP2 gathers and frees, and what a GPU holds of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kinfolk.family.shapes import Architecture, Shape

Size = tuple[int, ...]


@dataclass(frozen=True)
class ModelTensors:
    """Sizes of all parameters, each tensor once: those of one layer, and those outside the layers."""

    block: tuple[Size, ...]
    layers: int
    outside: tuple[Size, ...]
    """Embedding, last norm, and the head unless it is tied."""

    @property
    def hidden_matrices(self) -> tuple[Size, ...]:
        """The matrices of one layer: what Muon moves."""
        return tuple(size for size in self.block if len(size) == 2)

    @property
    def count(self) -> int:
        """Tensors."""
        return self.layers * len(self.block) + len(self.outside)

    @property
    def parameters(self) -> int:
        return self.layers * elements(self.block) + elements(self.outside)

    def shard(self, gpus: int) -> int:
        """Parameters that the fullest of `gpus` GPUs holds."""
        return self.layers * shard_elements(self.block, gpus) + shard_elements(self.outside, gpus)


def model_tensors(shape: Shape, vocab_size: int, architecture: Architecture) -> ModelTensors:
    """The parameters of a Llama or Qwen3 of transformers."""
    hidden, head = shape.hidden_size, shape.head_dim
    queries, keys = shape.num_attention_heads * head, shape.num_key_value_heads * head
    attention: tuple[Size, ...] = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
    if architecture == "qwen3":
        attention += ((head,), (head,))
    feed_forward = ((shape.intermediate_size, hidden),) * 2 + ((hidden, shape.intermediate_size),)
    tables = ((vocab_size, hidden),) * (1 if shape.tie_word_embeddings else 2)
    return ModelTensors(
        block=(*attention, *feed_forward, (hidden,), (hidden,)),
        layers=shape.num_hidden_layers,
        outside=(*tables, (hidden,)),
    )


def elements(sizes: Iterable[Size]) -> int:
    """Elements of tensors.

    >>> elements([(2, 3), (4,)])
    10
    """
    return sum(math.prod(size) for size in sizes)


def shard_elements(sizes: Iterable[Size], gpus: int) -> int:
    """Elements that the first of `gpus` GPUs holds, and none holds more.

    FSDP2 cuts the first dimension of every tensor into chunks of ceil(rows / gpus) rows, as torch.chunk does, so that
    the last GPUs may have less, or nothing.

    >>> shard_elements([(10, 3), (4,)], 4)
    10
    """
    return sum(-(-size[0] // gpus) * math.prod(size[1:]) for size in sizes)
