"""Memory of one GPU while a model trains, by part."""

from kinfolk.family.shapes import Shape

WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 4, 8
"""Of each parameter: kinfolk keeps weights, gradients and Adam's two averages in float32, 16 bytes together."""

ACTIVATION_BYTES = 34
"""Of each token, layer and hidden unit, without recomputation and with attention in one kernel (Korthikanti et al.,
arXiv 2205.05198, equation 2 without its attention term)."""


def memory_by_part(parameters: float, shape: Shape, context_length: int, gpus: int) -> dict[str, float]:
    """Bytes on each of `gpus` GPUs that shard one model, with one sequence of `context_length` on each.

    More sequences at once multiply the activations.
    """
    parts = {
        "weights": WEIGHT_BYTES * parameters / gpus,
        "gradients": GRADIENT_BYTES * parameters / gpus,
        "optimizer": OPTIMIZER_BYTES * parameters / gpus,
        "activations": float(ACTIVATION_BYTES * context_length * shape.hidden_size * shape.num_hidden_layers),
    }
    return {**parts, "total": sum(parts.values())}
