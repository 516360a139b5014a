"""Models on the meta device, and process groups that exist on paper only, for tests of plans."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM

from kinfolk.family.load import load_family
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Family
from kinfolk.train.engine import Engine
from kinfolk.train.layout import Layout
from kinfolk.train.model import config_for

LADDERS = {name: load_family(name).family for name in ("paper-1b-8b", "ladder-8b-70b")}
MEMBERS = [(ladder, member.name) for ladder, family in LADDERS.items() for member in family.members]


def member(ladder: str, name: str) -> tuple[Family, Shape]:
    family = LADDERS[ladder]
    shape = next(member.shape for member in family.members if member.name == name)
    assert shape is not None
    return family, shape


def meta_model(family: Family, shape: Shape) -> Any:
    """A model of transformers without any numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_for(shape, family.model, family.embedding_rows))


@contextmanager
def fake_engine(gpus: int, rank: int = 0, replicas: int = 1) -> Iterator[Engine]:
    """kinfolk's engine as one of many processes, the others of which do not exist: nothing is really sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    try:
        names = {"mesh_dim_names": ("replicate", "shard")} if replicas > 1 else {}
        mesh = init_device_mesh("cpu", (replicas, gpus // replicas) if replicas > 1 else (gpus,), **names)
        yield Engine(torch.device("cpu"), rank, gpus, mesh, Layout(replicas))
    finally:
        dist.destroy_process_group()


def held_bytes(tensors: Any) -> int:
    """Bytes that this process holds of tensors, sharded or not."""
    local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)
