"""Checkpoints and growth as bytes and seconds."""

from dataclasses import dataclass

from kinfolk.family.recipe import Checkpoints
from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.tensors import ModelTensors, elements

HASHED_BYTES_PER_SECOND = 1.5e9
"""SHA-256 on one core with its own instructions. An assumption."""

COPIED_BYTES_PER_SECOND = 20e9
"""From a GPU to host memory. An assumption."""

SAVING_SHARE = 0.02
"""The most that saving by the clock costs (`kinfolk.train.saving_clock`)."""

GROWING_SECONDS = 3e-9
"""Of a process, for each element of the child's weights or moments (docs/results-growth.md: 0.8 to 3.8 ns)."""

GROWING_BLOCK_BYTES, GROWING_BLOCKS, GROWING_THREADS, GROWING_PROCESS = 2**20, 12, 8, 0.4e9
"""Growth (`kinfolk.growth.made`): a block of rows of the child, how many like it one thread has at once,
threads at most, and what Python and its packages take (docs/results-growth.md)."""


@dataclass(frozen=True)
class State:
    """Bytes of a training state in float32, as checkpoints hold it."""

    weights: int
    moments: int

    @property
    def total(self) -> int:
        return self.weights + self.moments


@dataclass(frozen=True)
class Saving:
    """What saving costs a stage. Every process writes and hashes its own shards, while training goes on."""

    copying_seconds: float
    """For which training waits: from the GPUs to host memory."""
    writing_seconds: float
    hashing_seconds: float
    checkpoints: int
    """How many a stage writes, its last one included."""

    @property
    def total(self) -> float:
        """Seconds that a stage waits for them; for the last one to the end."""
        return self.checkpoints * self.copying_seconds + self.writing_seconds + self.hashing_seconds


@dataclass(frozen=True)
class Growing:
    """What growing a parent's state into a child's takes; each process reads, makes and writes a share."""

    read: int
    """Bytes, once for their hash and once for themselves."""
    written: int
    seconds: float
    """Of reading, growing and writing; comparing the two models, where a build does, comes on top."""
    process_bytes: float
    """Memory of each process, which has a few rows at a time. Activations, for comparing, come on top."""


def state_of(tensors: ModelTensors, muon: bool) -> State:
    """Weights, and AdamW's two averages or, of the layers' matrices under Muon, its one; and a step count a tensor."""
    weights = 4 * tensors.parameters
    momenta = 4 * tensors.layers * elements(tensors.hidden_matrices) if muon else 0
    return State(weights, 2 * weights - momenta + 4 * tensors.count)


def saving(state: State, steps: int, seconds: float, settings: Checkpoints, cluster: Cluster, gpus: int) -> Saving:
    """Checkpoints of a stage of so many steps and seconds, by the recipe's settings."""
    writing = state.total / cluster.storage(gpus)
    hashing = state.total / min(gpus * HASHED_BYTES_PER_SECOND, cluster.storage(gpus))
    copying = state.total / gpus / COPIED_BYTES_PER_SECOND
    if settings.steps is not None:
        return Saving(copying, writing, hashing, -(-steps // settings.steps))
    between = max(settings.seconds, copying / SAVING_SHARE, writing + hashing)
    return Saving(copying, writing, hashing, 1 + int(seconds / between))


def growing(parent: State, child: State, cluster: Cluster, carries: bool, gpus: int) -> Growing:
    """A growth with the optimizer's state (`carries`) or without, by a process for each GPU."""
    read = parent.total if carries else parent.weights
    together = cluster.storage(gpus)
    hashed = (parent.total + child.total) / min(gpus * HASHED_BYTES_PER_SECOND, together)
    return Growing(
        read=read + parent.total,
        written=child.total,
        seconds=hashed + (read + child.total) / together + GROWING_SECONDS * child.total / 4 / gpus,
        process_bytes=GROWING_PROCESS + GROWING_THREADS * GROWING_BLOCKS * GROWING_BLOCK_BYTES,
    )
