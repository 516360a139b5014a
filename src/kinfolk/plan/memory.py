"""Memory of one GPU while a model trains, by part.

The sum of the parts is an upper bound: gradients grow while activations are freed.
"""

from dataclasses import dataclass

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.plan.activations import head_bytes, layer_bytes, layer_input_bytes, outside_bytes, product_bytes
from kinfolk.plan.layouts import Layout
from kinfolk.plan.tensors import ModelTensors, elements, model_tensors, shard_elements

FLOAT32_BYTES = 4
"""kinfolk keeps weights, gradients and the optimizer's averages in float32."""

RESERVE_SHARE = 0.05
"""Of everything else: what the allocator cannot hand out for want of one piece. An assumption."""

RESERVE_BYTES = 2e9
"""CUDA's context, kernels and the buffers of NCCL and cuBLAS. An assumption."""


@dataclass(frozen=True)
class Portion:
    """What a GPU works on in one step."""

    positions: int
    """Positions in its micro-batch: tokens, or patches."""
    micro_batches: int = 1
    """How many of them its share of a step is taken in."""


def memory_by_part(
    shape: Shape,
    vocab_size: int,
    architecture: Architecture,
    layout: Layout,
    portion: Portion,
    muon: bool = False,
) -> dict[str, float]:
    """Bytes on the fullest GPU of a layout.

    weights           float32, 4 bytes of each parameter of its shard (`kinfolk.plan.tensors`)
    gradients         as much
    optimizer         AdamW's two averages, 8 bytes; of the matrices of the layers under Muon its momentum alone, 4
    gathered          whole parameters: two blocks, the one that computes and the one that is fetched ahead (FSDP2,
                      Zhao et al., arXiv 2304.11277, section 3.3.2), and what lies outside the blocks, which stays
    cast_weights      on one GPU, bfloat16 copies of all matrices of the layers, 2 bytes of each parameter: what
                      autocast hands to a product is kept for the backward pass
    whole_gradients   of two blocks and of what lies outside, before they are reduced; of the whole model where the
                      gradients of several micro-batches are summed before that
    optimizer_work    under Muon, one whole matrix: gathered, as momentum, as update, and four in bfloat16
    activations       `kinfolk.plan.activations`; with checkpointing the inputs of all layers, and one layer
    head              `kinfolk.plan.activations.head_bytes`
    reserve           `RESERVE_SHARE` of all this and `RESERVE_BYTES`
    """
    tensors = model_tensors(shape, vocab_size, architecture)
    shard = tensors.shard(layout.group)
    momenta = tensors.layers * shard_elements(tensors.hidden_matrices, layout.group) if muon else 0
    parts = {
        "weights": FLOAT32_BYTES * shard,
        "gradients": FLOAT32_BYTES * shard,
        "optimizer": FLOAT32_BYTES * (2 * shard - momenta),
        "gathered": _gathered(tensors, layout),
        "cast_weights": _cast_weights(tensors, layout),
        "whole_gradients": _whole_gradients(tensors, layout, portion),
        "optimizer_work": _muon_work(tensors) if muon else 0,
        "activations": portion.positions * _activations(shape, architecture, layout),
        "head": head_bytes(shape, vocab_size, portion.positions, layout.precision),
    }
    reserve = RESERVE_SHARE * sum(parts.values()) + RESERVE_BYTES
    found = {name: float(value) for name, value in parts.items()} | {"reserve": reserve}
    return {**found, "total": sum(found.values())}


def _gathered(tensors: ModelTensors, layout: Layout) -> int:
    if layout.group == 1:
        return 0
    blocks = layout.block_bytes * min(2, tensors.layers) * elements(tensors.block)
    return blocks + layout.outside_bytes * elements(tensors.outside)


def _cast_weights(tensors: ModelTensors, layout: Layout) -> int:
    if layout.precision != "autocast":
        return 0
    return product_bytes(layout.precision) * tensors.layers * elements(tensors.hidden_matrices)


def _whole_gradients(tensors: ModelTensors, layout: Layout, portion: Portion) -> int:
    if layout.group == 1:
        return 0
    if portion.micro_batches > 1 and not layout.reduces_each:
        return FLOAT32_BYTES * tensors.parameters
    return FLOAT32_BYTES * (min(2, tensors.layers) * elements(tensors.block) + elements(tensors.outside))


def _muon_work(tensors: ModelTensors) -> int:
    largest = max(elements([size]) for size in tensors.hidden_matrices)
    return largest * (3 * FLOAT32_BYTES + 4 * 2)


def _activations(shape: Shape, architecture: Architecture, layout: Layout) -> int:
    """Bytes of one position."""
    layer = layer_bytes(shape, architecture, layout.precision)
    outside = outside_bytes(shape, layout.precision)
    if not layout.checkpointing:
        return shape.num_hidden_layers * layer + outside
    return shape.num_hidden_layers * layer_input_bytes(shape, layout.precision) + layer + outside
