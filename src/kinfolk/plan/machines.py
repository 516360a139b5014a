"""What GPUs can do, hold and draw, and so what FLOPs take in time, money and energy."""

from dataclasses import asdict, dataclass
from typing import Any, TypedDict

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

GPU_MEMORY = {"A100": 80e9, "H100": 80e9, "H200": 141e9, "B200": 180e9, "RTX4090": 24e9, "L40S": 48e9}
"""Bytes, by the same data sheets (the larger A100)."""

GPU_WATTS = {"A100": 400, "H100": 700, "H200": 700, "B200": 1000, "RTX4090": 450, "L40S": 350}
"""Board power, by the same data sheets."""

ENERGY_OVERHEAD = 1.5
"""Drawn from the grid for each watt of a GPU: processors, network, cooling. An assumption."""


class Cost(TypedDict):
    """What FLOPs take; money is None without a price."""

    gpu_hours: float
    hours: float
    money: float | None
    kilowatt_hours: float


@dataclass(frozen=True)
class Machines:
    """GPUs of one kind at a stated utilisation; `price` is money for one of them for an hour."""

    gpu: str
    utilisation: float
    gpus: int = 1
    price: float | None = None

    def __post_init__(self) -> None:
        check_gpu(self.gpu, self.utilisation)
        if not 1 <= self.gpus <= 10**7:
            raise KinfolkError(f"{self.gpus} GPUs are not a number of them", where="--gpus", fix="use 1 or more")
        if self.price is not None and not 0 < self.price < 1e6:
            raise KinfolkError(f"{self.price:g} is no price", where="--price", fix="give money for a GPU-hour, as in 2")

    @property
    def flops_per_hour(self) -> float:
        """What one GPU does in an hour."""
        return GPU_PEAK_FLOPS[self.gpu] * self.utilisation * 3600

    def seconds(self, flops: float) -> float:
        """Seconds that FLOPs take on one of these GPUs."""
        return 3600 * flops / self.flops_per_hour

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "energy_overhead": ENERGY_OVERHEAD}

    def cost(self, flops: float) -> Cost:
        """GPU-hours, hours, money and kilowatt-hours of matmul FLOPs."""
        hours = flops / self.flops_per_hour
        return {
            "gpu_hours": hours,
            "hours": hours / self.gpus,
            "money": None if self.price is None else hours * self.price,
            "kilowatt_hours": hours * GPU_WATTS[self.gpu] * ENERGY_OVERHEAD / 1000,
        }


def check_gpu(gpu: str, utilisation: float) -> None:
    """KinfolkError for a GPU that is not known, and for a utilisation that is no share."""
    if gpu not in GPU_PEAK_FLOPS:
        raise KinfolkError(f"unknown GPU {gpu!r}", where="--gpu", fix=f"use one of {', '.join(GPU_PEAK_FLOPS)}")
    check_utilisation(utilisation)


def check_utilisation(utilisation: float) -> None:
    """KinfolkError for what is no share."""
    if not 0 < utilisation <= 1:
        raise KinfolkError(f"{utilisation} is not a share", where="--utilisation", fix="use for example 0.4")
