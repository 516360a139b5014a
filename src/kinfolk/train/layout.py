"""How the processes of a job share its work. Nothing here changes what is trained, but for rounding."""

from dataclasses import dataclass

from kinfolk.errors import KinfolkError


@dataclass(frozen=True)
class Layout:
    """Where tensors lie, what is computed again and what is compiled; a run may go on under another."""

    replicas: int = 1
    """Groups of processes that each hold the whole model in shards (hybrid sharding): gathering stays within a group,
    which is best as large as one node, and only gradients cross."""
    tensor_parallel: int = 1
    """Processes that share the matrices of every block and read the same sequences: as many as there are neighbours
    that talk fast, which is a node at most. All processes are replicas x shards x these, in this order."""
    recompute: bool = False
    """Keep only what enters each block, and compute the rest again for its gradient: a third more products, for
    activations of a block in place of those of all (Chen et al., arXiv 1604.06174)."""
    compile: bool = False
    """Compile each block with torch.compile."""
    reduce_each: bool = False
    """Sum the gradients of every micro-batch over the processes, and not those of a step once: each process then keeps
    its shard of them and never the whole, for as many times the communication."""
    background_saving: bool | None = None
    """Write checkpoints from a copy in host memory while training goes on; None: on a GPU."""

    def check(self, world_size: int) -> None:
        """KinfolkError where `world_size` processes cannot be laid out so."""
        for groups, option in (
            (self.tensor_parallel, "--tensor-parallel"),
            (self.replicas, "--replicas"),
            (self.replicas * self.tensor_parallel, "--replicas times --tensor-parallel"),
        ):
            if groups < 1 or world_size % groups:
                what = f"groups of {groups}" if option == "--tensor-parallel" else f"{groups} groups"
                raise KinfolkError(
                    f"{world_size} processes do not divide into {what}",
                    where=option,
                    fix=f"use a divisor of {world_size}, or another number of processes",
                )
