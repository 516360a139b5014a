"""Muon's momentum over a growth: by the map of a first moment, and zero where the policy says so."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import random_model, shape
from torch import Tensor, nn

from kinfolk.family.recipe import Optimizer
from kinfolk.growth.dynamics import spread, stage_rates
from kinfolk.growth.grow import grow_moments
from kinfolk.growth.optimizer import grow_optimizer
from kinfolk.plan.stages import Dynamics, Grow, Operator, Plan, Rate, Scratch, Stage, Token
from kinfolk.train.muon import orthogonalised, scale_of
from kinfolk.train.optimizer import MOMENTS, make_optimizer, optimizer_tensors
from kinfolk.train.update import make_update

PARENT, CHILD = shape(), shape(hidden=22, heads=6, groups=3, ffn=31, layers=3)
OPERATOR = Operator(width="zero_pad", noise=0.0, block="drawn")
MUON = Optimizer(matrices="muon", weight_decay=0.2, momentum=0.9)
RATE, STEPS = 0.05, 3


def plan(dynamics: Dynamics) -> Plan:
    common: dict[str, Any] = {"parameters": 1.0, "objective": Token(), "tokens": STEPS, "steps": STEPS}
    rate = Rate(RATE, 0, 0, "linear")
    parent = Stage("parent", PARENT, source=Scratch(0), rate=rate, **common)
    child = Stage("child", CHILD, source=Grow("parent", OPERATOR, dynamics), rate=rate, **common)
    return Plan("tiny", "chain", (parent, child))


def gradient(name: str, parameter: Tensor) -> Tensor:
    """The same at every step; that of the parent is a corner of that of the child."""
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    largest = torch.randn([64] * parameter.dim(), generator=draw, dtype=torch.float64)
    return largest[tuple(slice(size) for size in parameter.shape)].clone()


def train(model: nn.Module, update: Any, steps: int) -> None:
    for step in range(steps):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(name, parameter)
        update(RATE, step)


def grown(
    dynamics: Dynamics, operator: Operator = OPERATOR
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """State of the trained parent, and of the child, by key and parameter."""
    model = random_model("llama", PARENT)
    optimizer = make_optimizer(model, MUON)
    train(model, make_update(model, optimizer, None), STEPS)
    tensors = optimizer_tensors(model, optimizer)
    keys = (*MOMENTS, "step")
    before = {
        key: {name.removeprefix(f"{key}."): value for name, value in tensors.items() if name.startswith(f"{key}.")}
        for key in keys
    }
    after = grow_optimizer(*(before[key] for key in keys), "llama", PARENT, CHILD, operator, dynamics)
    return before, dict(zip(keys, after, strict=True))


@pytest.mark.parametrize("width", ["zero_pad", "energy_split"])
@pytest.mark.parametrize("optimizer", ["carry", "asymmetric", "reset"])
def test_the_momentum_follows_the_first_moment(optimizer: Any, width: Any) -> None:
    operator = replace(OPERATOR, width=width)
    before, after = grown(Dynamics(optimizer=optimizer), operator)
    if optimizer == "reset":
        assert after == {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}
        return
    second = {name: torch.ones_like(value) for name, value in before["exp_avg"].items()}
    expected, _ = grow_moments(before["exp_avg"], second, "llama", PARENT, CHILD, operator)
    names = {name for name, _ in random_model("llama", CHILD).named_parameters()}
    assert set(after["exp_avg"]) == set(after["step"]) == names
    assert set(after["exp_avg_sq"]) == {name for name in names if "norm" in name or ".layers." not in name}
    name = "model.layers.0.mlp.up_proj.weight"
    old = before["exp_avg"][name]
    kept, mapped = after["exp_avg"][name], expected[name]
    corner = slice(old.shape[0]), slice(old.shape[1])
    assert kept[corner].all() and torch.equal(kept[corner], mapped[corner])
    assert width == "energy_split" or torch.equal(kept[corner], old)
    assert bool(mapped[old.shape[0] :].any()) == (width == "energy_split")
    if optimizer == "carry":
        assert all(torch.equal(after["exp_avg"][each], expected[each]) for each in names)
    else:
        assert not kept[old.shape[0] :].any() and not kept[:, old.shape[1] :].any()
    assert float(after["step"][name]) == STEPS and not after["exp_avg"]["model.layers.2.mlp.up_proj.weight"].any()


@pytest.mark.parametrize("rates", ["uniform", "rewarm_new"])
@pytest.mark.parametrize("optimizer", ["carry", "asymmetric"])
def test_young_coordinates_are_as_large_as_old_ones(optimizer: Any, rates: Any) -> None:
    """Under a gradient that never changes, the corrected momentum is that gradient, whatever began when."""
    dynamics = Dynamics(optimizer=optimizer, rates=rates, rewarm_factor=1.5, rewarm_steps=4)
    _, state = grown(dynamics)
    model = random_model("llama", CHILD)
    optimiser = make_optimizer(model, MUON)
    tensors = optimizer_tensors(model, optimiser)
    for key, values in state.items():
        for name, value in values.items():
            tensors[f"{key}.{name}"].copy_(value)
    found = stage_rates(plan(dynamics), "child", "llama", [name for name, _ in model.named_parameters()])
    assert found is not None
    update = make_update(model, optimiser, found)
    for step in range(3):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(name, parameter)
        update(RATE, step)
        pace_of_new = 1.5 * (step + 1) / 4 if rates == "rewarm_new" else 1.0
        for name, parameter in model.named_parameters():
            # Growth rescales the gradients of writers (o and down), and the ones made up here it does not.
            if not any(reader in name for reader in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
                continue
            is_old = torch.ones_like(parameter)
            for factor in spread(found.coordinates[name].is_old):
                is_old = is_old * factor
            if found.coordinates[name].in_new_layer:
                is_old = torch.zeros_like(parameter)
            pace = torch.where(is_old == 1, 1.0, pace_of_new).double()
            change = orthogonalised(gradient(name, parameter)) * scale_of(parameter.shape)
            expected = before[name] * (1 - 0.2 * RATE * pace) - RATE * pace * change
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-9, msg=name)
    new = "model.layers.0.mlp.up_proj.weight"
    assert rates == "uniform" or not spread(found.coordinates[new].is_old)[0].all()
