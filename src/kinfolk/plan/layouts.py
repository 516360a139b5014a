"""How several GPUs share the training of one model, and which of these ways the engine runs today."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "autocast", "bfloat16"]
"""Of matrix products. `autocast`: weights are gathered in float32 and cast to bfloat16 where they are used, and the
residual stream is float32; `bfloat16`: weights are gathered in bfloat16, and so is the residual stream (FSDP2's
MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)). Weights, gradients and moments are kept in float32
always."""


@dataclass(frozen=True)
class Layout:
    """GPUs in groups: a group shards one copy of the model (FSDP2), and the groups are replicas of each other."""

    gpus: int
    group: int
    """GPUs that share a copy; all of them is plain full sharding, fewer hybrid sharding."""
    precision: Precision = "autocast"
    checkpointing: bool = False
    """Activation checkpointing: a layer keeps its input alone and is computed once more in the backward pass."""
    reduces_each: bool = False
    """Whether the gradients of every micro-batch are reduced, and not the sum of them at the end of a step."""

    @property
    def replicas(self) -> int:
        return self.gpus // self.group

    @property
    def gathered_bytes(self) -> int:
        """Of each parameter while it is whole on a GPU, and on its way there."""
        return 2 if self.precision == "bfloat16" else 4


def engine_layout(gpus: int) -> Layout:
    """What `kinfolk.train.engine` runs today on so many GPUs: every block sharded over all of them, under autocast."""
    return Layout(gpus, gpus)


def lacking(layout: Layout) -> list[str]:
    """What a layout takes that the engine does not do yet; an empty list for one that it runs."""
    found = []
    if layout.precision == "bfloat16":
        found.append("gathering weights in bfloat16")
    if layout.checkpointing:
        found.append("activation checkpointing")
    if layout.replicas > 1:
        found.append("hybrid sharding")
    if layout.reduces_each:
        found.append("reducing the gradients of every micro-batch")
    return found


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
