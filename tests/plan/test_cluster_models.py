"""The plan's counts against real models: built, sharded and grown on the meta device, where nothing is allocated."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
from fake_cluster import LADDERS, MEMBERS, fake_engine, held_bytes, member, meta_model

from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Family
from kinfolk.growth.depth import layer_map
from kinfolk.growth.grow import origins_of
from kinfolk.plan.cluster.storage import state_of
from kinfolk.plan.layouts import engine_layout
from kinfolk.plan.memory import Portion, memory_by_part
from kinfolk.plan.stages import Grow, Token
from kinfolk.plan.strategies import plan_family
from kinfolk.plan.tensors import model_tensors
from kinfolk.train.objective import stage_loss
from kinfolk.train.optimizer import make_optimizer, optimizer_tensors

Matrices = Literal["adamw", "muon"]

MOST_RESIDENT = 150e6
"""Bytes by which the process may grow: the smallest of these models would take 4.4 GB."""


@pytest.fixture(autouse=True, scope="module")
def nothing_allocated() -> Iterator[None]:
    """However large the models of this file are, the process never grows beyond a bound."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak begins anew
    before = psutil.Process().memory_info().rss
    yield
    if clear.exists():
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) * 1024 - before < MOST_RESIDENT
    assert psutil.Process().memory_info().rss - before < MOST_RESIDENT


@pytest.mark.parametrize(("ladder", "name"), MEMBERS)
def test_tensors_are_those_of_transformers(ladder: str, name: str) -> None:
    family, shape = member(ladder, name)
    tensors = model_tensors(shape, family.embedding_rows, "llama")
    real = sorted(tuple(parameter.shape) for parameter in meta_model(family, shape).parameters())
    assert sorted([*tensors.block * tensors.layers, *tensors.outside]) == real
    assert tensors.count == len(real)
    assert tensors.parameters == sum(torch.Size(size).numel() for size in real)


def test_tensors_of_qwen3_and_of_tied_embeddings() -> None:
    family = LADDERS["paper-1b-8b"]
    family = family.model_copy(update={"model": family.model.model_copy(update={"architecture": "qwen3"})})
    shape = Shape(
        num_hidden_layers=2, hidden_size=96, num_attention_heads=6, num_key_value_heads=2, intermediate_size=200
    )
    tensors = model_tensors(shape, family.embedding_rows, "qwen3")
    real = sorted(tuple(parameter.shape) for parameter in meta_model(family, shape).parameters())
    assert sorted([*tensors.block * tensors.layers, *tensors.outside]) == real


SHARDED = [
    ("paper-1b-8b", "1b", 1024, "muon"),
    ("paper-1b-8b", "2b", 8, "muon"),
    ("paper-1b-8b", "4b", 8, "adamw"),
    ("paper-1b-8b", "8b", 8, "muon"),
    ("ladder-8b-70b", "8b", 1024, "adamw"),
    ("ladder-8b-70b", "16b", 8, "adamw"),
    ("ladder-8b-70b", "32b", 8, "adamw"),
    ("ladder-8b-70b", "70b", 64, "adamw"),
]


@pytest.mark.parametrize(("ladder", "name", "gpus", "matrices"), SHARDED)
def test_shards_and_optimizer_state_are_those_of_fsdp(ladder: str, name: str, gpus: int, matrices: Matrices) -> None:
    family, shape = member(ladder, name)
    layout, load = engine_layout(gpus), Portion(2048)
    planned = memory_by_part(shape, family.embedding_rows, "llama", layout, load, muon=matrices == "muon")
    weights, moments = sharded_bytes(family, shape, gpus, 0, matrices)
    assert (weights, moments) == (planned["weights"], planned["optimizer"])
    assert planned["gradients"] == planned["weights"]


def test_no_process_has_more_than_the_first() -> None:
    """Where rows do not divide among the processes, the last have least, and all have everything together."""
    family, _ = member("paper-1b-8b", "1b")
    shape = Shape(
        num_hidden_layers=2, hidden_size=40, num_attention_heads=5, num_key_value_heads=1, intermediate_size=100
    )
    held = [sharded_bytes(family, shape, 16, rank, "adamw")[0] for rank in range(16)]
    tensors = model_tensors(shape, family.embedding_rows, "llama")
    assert held[0] == 4 * tensors.shard(16) == max(held) > held[15]
    assert sum(held) == 4 * tensors.parameters


def sharded_bytes(family: Family, shape: Shape, gpus: int, rank: int, matrices: Matrices) -> tuple[int, int]:
    """Bytes of weights and moments that one process of FSDP2 holds."""
    model = meta_model(family, shape)
    with fake_engine(gpus, rank) as engine:
        engine.distribute(stage_loss(model, Token(), torch.bfloat16))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        state = optimizer_tensors(model, make_optimizer(model, Optimizer(matrices=matrices)))
        moments = [tensor for key, tensor in state.items() if not key.startswith("step")]
        return held_bytes(model.parameters()), held_bytes(moments)


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_checkpoint_holds_the_whole_state(matrices: Matrices) -> None:
    family, shape = member("paper-1b-8b", "1b")
    model = meta_model(family, shape)
    state = optimizer_tensors(model, make_optimizer(model, Optimizer(matrices=matrices)))
    planned = state_of(model_tensors(shape, family.embedding_rows, "llama"), muon=matrices == "muon")
    assert planned.weights == held_bytes(model.parameters())
    assert planned.moments == held_bytes(state.values())


@pytest.mark.parametrize("ladder", LADDERS)
def test_growth_maps_every_tensor_of_the_child(ladder: str) -> None:
    """Names, shapes and index maps of a growth, for shapes that nobody could hold here."""
    family = LADDERS[ladder]
    grown = [stage.source for stage in plan_family(family).stages if isinstance(stage.source, Grow)]
    assert len(grown) == 3
    models = [(each.shape, meta_model(family, each.shape)) for each in family.members if each.shape]
    for source, ((parent, before), (child, after)) in zip(grown, pairwise(models), strict=True):
        held, wanted = dict(before.named_parameters()), dict(after.named_parameters())
        origins = dict(origins_of(list(held), "llama", parent, child, source.operator))
        assert list(origins) == list(wanted)
        layers = layer_map(parent.num_hidden_layers, child.num_hidden_layers, source.operator.depth)
        assert sum(layer.is_new for layer in layers) == child.num_hidden_layers - parent.num_hidden_layers
        checked: set[Any] = set()
        for name, origin in origins.items():
            size = tuple(held[origin.name].shape)
            origin.width.axes.check(size, origin.axes, name)
            assert origin.width.axes.child_size(size, origin.axes) == tuple(wanted[name].shape), name
            for axis, units in zip(origin.axes, size, strict=True):
                growth = origin.width.axes.axis(axis)
                if growth is not None and (axis, units) not in checked:
                    checked.add((axis, units))
                    assert set(growth.index.tolist()) <= set(range(units))
