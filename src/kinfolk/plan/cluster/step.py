"""One optimizer step of a stage on a cluster: what each GPU works on, holds, sends and waits for."""

from dataclasses import dataclass
from functools import cached_property

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.plan.cluster.communication import Traffic, traffic, waiting
from kinfolk.plan.cluster.description import Cluster
from kinfolk.plan.costs import matmul_flops_per_token
from kinfolk.plan.layouts import Layout
from kinfolk.plan.memory import Portion, memory_by_part
from kinfolk.plan.tensors import ModelTensors, model_tensors

NEWTON_SCHULZ_STEPS = 5
"""Of Muon (`kinfolk.train.muon`)."""


@dataclass(frozen=True)
class Work:
    """What a stage computes in a step, wherever it does."""

    shape: Shape
    vocab_size: int
    architecture: Architecture
    context_length: int
    """Positions in a row."""
    rows: int
    """Rows in a step: sequences of tokens, or of patches."""
    muon: bool

    @cached_property
    def tensors(self) -> ModelTensors:
        return model_tensors(self.shape, self.vocab_size, self.architecture)

    @cached_property
    def row_flops(self) -> float:
        """FLOPs of training on one row, recomputation not counted."""
        per_position = matmul_flops_per_token(self.shape, self.vocab_size, self.context_length)
        return float(per_position * self.context_length)


@dataclass(frozen=True)
class Step:
    """A step on a layout, every GPU with the same number of rows."""

    layout: Layout
    rows_at_once: int
    """Rows in a micro-batch of a GPU."""
    portion: Portion
    memory: dict[str, float]
    fits: bool
    traffic: Traffic
    compute_seconds: float
    """At the share of the peak that kernels reach, recomputation and Muon's products included."""
    seconds: float
    utilisation: float
    """Of the GPUs' peak by the FLOPs of the model (MFU)."""

    @property
    def waiting_seconds(self) -> float:
        """Communication that no computation hides."""
        return self.seconds - self.compute_seconds


def step_on(work: Work, layout: Layout, cluster: Cluster, rows_at_once: int, efficiency: float) -> Step:
    """The step with micro-batches of `rows_at_once` rows, where kernels reach `efficiency` of the GPUs' peak.

    Communication of all blocks but the first to compute is taken to overlap with computation, as FSDP2's prefetching
    does it: a pass takes whichever of both is longer. The first gathering, the last reduction and Muon's are bare.
    Backward costs twice forward; a checkpointed layer computes its forward pass twice.
    """
    rows = work.rows // layout.gpus
    at_once = min(rows_at_once, rows)
    portion = Portion(at_once * work.context_length, -(-rows // at_once))
    memory = memory_by_part(work.shape, work.vocab_size, work.architecture, layout, portion, work.muon)
    speed = cluster.peak * efficiency
    forward = work.row_flops * rows / 3 / portion.micro_batches / speed
    backward = (3 if layout.checkpointing else 2) * forward
    waits = waiting(work.tensors, layout, cluster, work.muon)
    reductions = portion.micro_batches if layout.reduces_each else 1
    seconds = portion.micro_batches * (waits.bare + max(forward, waits.forward))
    seconds += (portion.micro_batches - reductions) * max(backward, waits.backward)
    seconds += reductions * (max(backward, waits.backward + waits.reducing) + waits.bare_end)
    orthogonal = _muon_flops(work.tensors) / layout.group / speed if work.muon else 0.0
    seconds += waits.muon + orthogonal
    return Step(
        layout=layout,
        rows_at_once=at_once,
        portion=portion,
        memory=memory,
        fits=memory["total"] <= cluster.memory,
        traffic=traffic(work.tensors, layout, portion.micro_batches, work.muon),
        compute_seconds=portion.micro_batches * (forward + backward) + orthogonal,
        seconds=seconds,
        utilisation=work.row_flops * rows / (seconds * cluster.peak),
    )


def _muon_flops(tensors: ModelTensors) -> float:
    """FLOPs that make all matrices of the layers orthogonal; a group's GPUs share the matrices.

    An (m, n) matrix, m at most n, takes 4 m^2 n + 2 m^3 in each step: two products of m x n, one of m x m.
    """
    flops = 0
    for rows, columns in tensors.hidden_matrices:
        m, n = min(rows, columns), max(rows, columns)
        flops += NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3)
    return float(tensors.layers * flops)
