"""How fast this machine is: measured in a second or two, for estimates only."""

import time

import torch

from kinfolk.train.engine import Engine, Precision

TRAINING_SHARE = 0.35
"""Share of the measured matmul rate that training of a small model reaches; larger ones reach up to twice that."""


def matmul_rate(engine: Engine, precision: Precision, seconds: float = 0.4) -> float:
    """FLOP/s of square matrix products (1,024 on a CPU, 4,096 on a GPU), all threads of this process."""
    size = 4096 if engine.device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.randn(size, size, device=engine.device, dtype=dtype)
    right = torch.randn(size, size, device=engine.device, dtype=dtype)
    repetitions, began = 0, time.perf_counter()
    _product(left, right, engine)  # the first one sets up threads and kernels
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        _product(left, right, engine)
        repetitions += 1
    return repetitions * 2 * size**3 / (time.perf_counter() - began)


def _product(left: torch.Tensor, right: torch.Tensor, engine: Engine) -> None:
    left @ right
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
