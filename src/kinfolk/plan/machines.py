"""How long a plan takes on a named GPU, from its peak rate and a stated utilisation."""

from kinfolk.errors import KinfolkError

GPU_PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "RTX4090": 165e12,
    "L40S": 362e12,
}
"""Dense bfloat16 matrix FLOP/s of the makers' data sheets (SXM versions), without sparsity."""


def gpu_seconds(flops: float, gpu: str, utilisation: float) -> float:
    """Seconds that `flops` take on one GPU that reaches `utilisation` of its peak; KinfolkError for an unknown GPU."""
    if gpu not in GPU_PEAK_FLOPS:
        raise KinfolkError(f"unknown GPU {gpu!r}", where="--gpu", fix=f"use one of {', '.join(GPU_PEAK_FLOPS)}")
    if not 0 < utilisation <= 1:
        raise KinfolkError(f"{utilisation} is not a share", where="--utilisation", fix="use for example 0.4")
    return flops / (GPU_PEAK_FLOPS[gpu] * utilisation)
