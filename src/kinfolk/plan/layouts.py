"""How several GPUs share the training of one model, and which of these ways the engine runs today."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "autocast", "mixed", "bfloat16"]
"""Of matrix products; weights, gradients and moments are kept in float32 always.

float32    everything in float32
autocast   one GPU under bfloat16: weights are cast where they are used, the residual stream is float32
mixed      several GPUs under bfloat16: the blocks are gathered in bfloat16 (FSDP2's MixedPrecisionPolicy), embedding,
           head and the residual stream are float32
bfloat16   embedding, head and the residual stream are bfloat16 as well, as torchtitan has it
"""


@dataclass(frozen=True)
class Layout:
    """GPUs in groups: a group shards one copy of the model (FSDP2), and the groups are replicas of each other."""

    gpus: int
    group: int
    """GPUs that share a copy; all of them is plain full sharding, fewer hybrid sharding."""
    precision: Precision = "mixed"
    checkpointing: bool = False
    """Activation checkpointing: a layer keeps its input alone and is computed once more in the backward pass."""
    reduces_each: bool = False
    """Whether the gradients of every micro-batch are reduced, and not the sum of them at the end of a step."""

    @property
    def replicas(self) -> int:
        return self.gpus // self.group

    @property
    def block_bytes(self) -> int:
        """Of each parameter of a block while it is whole on a GPU, and on its way there."""
        return 2 if self.precision in ("mixed", "bfloat16") else 4

    @property
    def outside_bytes(self) -> int:
        """The same of what lies outside the blocks."""
        return 2 if self.precision == "bfloat16" else 4


def engine_layout(gpus: int, replicas: int = 1, checkpointing: bool = False, reduces_each: bool = False) -> Layout:
    """What `kinfolk build` runs on so many GPUs under bfloat16, with its options (`train/layout.py`)."""
    return Layout(gpus, gpus // replicas, "mixed" if gpus > 1 else "autocast", checkpointing, reduces_each)


def engine_options(layout: Layout) -> list[str]:
    """The options of `kinfolk build` that ask for a layout of the engine's.

    >>> engine_options(engine_layout(64, replicas=8, checkpointing=True))
    ['--replicas 8', '--recompute']
    """
    replicas = [f"--replicas {layout.replicas}"] if layout.replicas > 1 else []
    flags = {"--recompute": layout.checkpointing, "--reduce-each": layout.reduces_each}
    return replicas + [flag for flag, is_set in flags.items() if is_set]


def lacking(layout: Layout) -> list[str]:
    """What a layout takes that the engine does not do yet; an empty list for one that it runs."""
    return ["a residual stream in bfloat16"] if layout.precision == "bfloat16" else []


def describe(layout: Layout) -> str:
    """A layout in words.

    >>> describe(Layout(64, 8, "bfloat16", checkpointing=True))
    'sharded over 8, 8 replicas, bfloat16, checkpointing'
    """
    parts = [f"sharded over {layout.group}" if layout.group > 1 else "whole"]
    if layout.replicas > 1:
        parts.append(f"{layout.replicas} replicas")
    parts.append(layout.precision)
    if layout.checkpointing:
        parts.append("checkpointing")
    if layout.reduces_each:
        parts.append("reducing each micro-batch")
    return ", ".join(parts)
