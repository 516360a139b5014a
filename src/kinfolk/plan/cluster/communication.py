"""What GPUs that shard a model send each other in a step, and how long that takes.

FSDP2 gathers the weights of a block before its forward pass and again before its backward pass, and scatters the sums
of its gradients; what lies outside the blocks stays whole in between (Zhao et al., arXiv 2304.11277; `fully_shard`
with its defaults). Replicas then add up their shards of the gradients.
"""

from dataclasses import dataclass

from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.layouts import Layout
from kinfolk.plan.tensors import ModelTensors, elements

REACHED = 0.8
"""Of a link's rate. NCCL's own figures for NVLink are 20 of 25 GB/s a link on A100, 20.6 of 25 on H100 and 40.1 of 50
on B200 (NVIDIA/nccl, src/graph/topo.h); taken for networks as well."""

START_SECONDS, NODE_STEP_SECONDS, NETWORK_STEP_SECONDS = 8.4e-6, 3.4e-6, 14e-6
"""Of a collective operation, and of each step of its ring within and between nodes (NVIDIA/nccl, src/graph/tuning.cc,
ring and protocol Simple)."""

GRADIENT_BYTES = 4
"""Gradients are summed in float32."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU receives in one optimizer step."""

    gathered_forward: float
    gathered_backward: float
    scattered: float
    summed: float
    """Between replicas."""
    muon: float
    """Momenta of the layers' matrices, gathered whole; of the updates each GPU gets its shard."""

    @property
    def total(self) -> float:
        return self.gathered_forward + self.gathered_backward + self.scattered + self.summed + self.muon


@dataclass(frozen=True)
class Waiting:
    """Seconds of communication: of one micro-batch, hidden behind computation or not, and of the end of a step."""

    forward: float
    """Gathering while the forward pass computes."""
    backward: float
    """Gathering while the backward pass computes."""
    reducing: float
    """Scattering and summing gradients while the backward pass computes: of the last micro-batch, or of each."""
    bare: float
    """Before the first block can compute, of every micro-batch."""
    bare_end: float
    """After the last block has computed, of a micro-batch whose gradients are reduced."""
    muon: float
    """At the end of a step."""


def traffic(tensors: ModelTensors, layout: Layout, micro_batches: int, muon: bool) -> Traffic:
    """Bytes that each GPU receives in a step.

    An all-gather or reduce-scatter of M bytes over g GPUs brings (g - 1) / g M to each, and an all-reduce over R
    replicas of M / g bytes 2 (R - 1) / R M / g (ring algorithms).
    """
    group, blocks = layout.group, layout.block_bytes * tensors.layers * elements(tensors.block)
    outside = layout.outside_bytes * elements(tensors.outside)
    whole, received = tensors.parameters, (group - 1) / group
    gathered = received * micro_batches
    reductions = micro_batches if layout.reduces_each else 1
    matrices = GRADIENT_BYTES * tensors.layers * elements(tensors.hidden_matrices)
    replicas = layout.replicas
    return Traffic(
        gathered_forward=gathered * (blocks + outside),
        gathered_backward=gathered * blocks,
        scattered=GRADIENT_BYTES * received * whole * reductions,
        summed=GRADIENT_BYTES * 2 * (replicas - 1) / replicas * whole / group * reductions,
        muon=matrices * (received + received / group) if muon else 0.0,
    )


def waiting(tensors: ModelTensors, layout: Layout, cluster: Cluster, muon: bool) -> Waiting:
    """Seconds that the operations of one micro-batch, and of the end of a step, take by themselves."""
    block, outside = elements(tensors.block), elements(tensors.outside)

    def gather(size: int) -> float:
        return collective_seconds(size, layout.group, cluster)

    def reduce(parameters: int) -> float:
        scattering = collective_seconds(GRADIENT_BYTES * parameters, layout.group, cluster)
        return scattering + replica_seconds(GRADIENT_BYTES * parameters / layout.group, layout, cluster)

    momenta = [GRADIENT_BYTES * elements([size]) for size in tensors.hidden_matrices]
    of_muon = sum(
        collective_seconds(size, layout.group, cluster) + sending_seconds(size, layout.group, cluster)
        for size in momenta
    )
    return Waiting(
        forward=(tensors.layers - 1) * gather(layout.block_bytes * block),
        backward=(tensors.layers - 1) * gather(layout.block_bytes * block),
        reducing=(tensors.layers - 1) * reduce(block),
        bare=gather(layout.outside_bytes * outside) + 2 * gather(layout.block_bytes * block),
        bare_end=reduce(block) + reduce(outside),
        muon=tensors.layers * of_muon if muon else 0.0,
    )


def collective_seconds(size: float, gpus: int, cluster: Cluster) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes by rings over neighbouring GPUs.

    Within a node each GPU receives (g - 1) / g of it through its own links. Over nodes as many rings as a node has GPUs
    share it, each of which leaves the node through the network of one GPU; the slower of both counts.
    """
    if gpus == 1:
        return 0.0
    nodes = cluster.nodes(gpus)
    received = size * (gpus - 1) / gpus
    inside = received / (REACHED * cluster.nvlink_gb_per_second * 1e9)
    rings = min(gpus, cluster.gpus_per_node)
    outside = received / rings / (REACHED * cluster.network_gb_per_second * 1e9) if nodes > 1 else 0.0
    steps = (gpus - nodes) * NODE_STEP_SECONDS + (nodes - 1) * NETWORK_STEP_SECONDS
    return START_SECONDS + steps + max(inside, outside)


def sending_seconds(size: float, gpus: int, cluster: Cluster) -> float:
    """Seconds in which one GPU sends the others their shares of `size` bytes, through its own links alone."""
    if gpus == 1:
        return 0.0
    link = cluster.network_gb_per_second if cluster.nodes(gpus) > 1 else cluster.nvlink_gb_per_second
    return START_SECONDS + size * (gpus - 1) / gpus / (REACHED * link * 1e9)


def replica_seconds(size: float, layout: Layout, cluster: Cluster) -> float:
    """Seconds of an all-reduce of `size` bytes between the replicas, which are in different nodes."""
    replicas = layout.replicas
    if replicas == 1:
        return 0.0
    received = 2 * (replicas - 1) / replicas * size
    return (
        START_SECONDS
        + 2 * (replicas - 1) * NETWORK_STEP_SECONDS
        + received / (REACHED * cluster.network_gb_per_second * 1e9)
    )
