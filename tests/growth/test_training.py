"""What a grown model does when it trains on: carried moments, rescaled rates, the symmetry lock and its breaker."""

from typing import Any

import pytest
import torch
from tiny_models import gradients, grown_model, random_model, random_tokens, shape
from torch import Tensor

from kinfolk.family.shapes import Architecture, Shape
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.plan.stages import Operator

PLAIN = Operator(noise=0.0)
PARENT, CHILD = shape(), shape(hidden=22, heads=9, groups=3, ffn=31)
EPS = 1e-8


def adamw(model: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=EPS, weight_decay=0.1)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        gradients(model, random_tokens(seed=step))
        optimizer.step()


def moments(model: Any, optimizer: torch.optim.AdamW) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    named = dict(model.named_parameters())
    first, second = (
        {name: optimizer.state[parameter][key].clone() for name, parameter in named.items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    return first, second


def value_factor(parameters: dict[str, Tensor], architecture: Architecture, parent: Shape, child: Shape) -> Any:
    """The s of growth spec section 4, per coordinate: how much every entry was rescaled."""
    ones = {name: torch.ones_like(tensor) for name, tensor in parameters.items()}
    return grow_weights(ones, architecture, parent, child, PLAIN)


@pytest.mark.parametrize("tied", [True, False])
def test_moments_of_a_step_of_the_child_are_the_grown_ones(tied: bool) -> None:
    parent, child = shape(tied=tied), shape(hidden=22, heads=9, groups=3, ffn=31, tied=tied)
    model = random_model("qwen3", parent)
    twin = grown_model(model, "qwen3", parent, child, PLAIN)
    optimizers = adamw(model), adamw(twin)
    for one, optimizer in zip((model, twin), optimizers, strict=True):
        train(one, optimizer, 1)
    grown = grow_moments(*moments(model, optimizers[0]), "qwen3", parent, child, PLAIN)
    for wanted, measured in zip(grown, moments(twin, optimizers[1]), strict=True):
        for name, tensor in wanted.items():
            assert (tensor - measured[name]).abs().max() <= 1e-12 * tensor.abs().max(), name


@pytest.mark.parametrize("rescaled", [True, False])
def test_growing_and_training_commute_when_rates_are_rescaled(rescaled: bool) -> None:
    """Weights and moments carried over, LR x s, decay x 1/s, eps x gradient factor: the child repeats the parent."""
    model = random_model("llama", PARENT)
    optimizer = adamw(model)
    train(model, optimizer, 3)
    twin = grown_model(model, "llama", PARENT, CHILD, PLAIN)
    first, second = grow_moments(*moments(model, optimizer), "llama", PARENT, CHILD, PLAIN)
    names = dict(model.named_parameters())
    scale = value_factor(names, "llama", PARENT, CHILD)
    ones = {name: torch.ones_like(tensor) for name, tensor in names.items()}
    eps_scale, _ = grow_moments(ones, ones, "llama", PARENT, CHILD, PLAIN)
    for step in range(3, 7):
        gradient = gradients(twin, random_tokens(seed=step - 3))
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                first[name].lerp_(gradient[name], 0.1)
                second[name].lerp_(gradient[name] ** 2, 0.05)
                rate = 3e-3 * (scale[name] if rescaled else 1)
                parameter.sub_(3e-3 * 0.1 * parameter)
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
                parameter.sub_(rate * mean / (square.sqrt() + EPS * eps_scale[name]))
    train(model, optimizer, 4)
    wanted = grow_weights(names, "llama", PARENT, CHILD, PLAIN)
    distance = max(float((wanted[name] - tensor.detach()).abs().max()) for name, tensor in twin.named_parameters())
    assert distance < 1e-11 if rescaled else distance > 1e-4


def asymmetry(model: Any, name: str, old: int) -> float:
    """Largest difference between copies along the columns, relative to the tensor's deviation."""
    tensor = dict(model.named_parameters())[name].detach()
    copies = torch.arange(old, tensor.shape[1])
    return float((tensor[:, copies] - tensor[:, copies % old]).abs().max() / tensor.std())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_copies_stay_locked_without_noise_and_part_with_it(dtype: torch.dtype) -> None:
    model = random_model("llama", PARENT)
    places = {"model.layers.0.self_attn.q_proj.weight": 16, "model.layers.1.mlp.down_proj.weight": 24}
    places["model.embed_tokens.weight"] = 16
    for operator in (PLAIN, Operator(noise=0.3)):
        twin = grown_model(model, "llama", PARENT, CHILD, operator).to(dtype)
        train(twin, adamw(twin), 10)
        apart = {name: asymmetry(twin, name, old) for name, old in places.items()}
        if operator is PLAIN:
            assert max(apart.values()) < (1e-9 if dtype == torch.float64 else 1e-3)
        else:
            # The embedding gets no noise: its copies part by their gradients.
            assert apart.pop("model.embed_tokens.weight") > 0.02
            assert min(apart.values()) > 0.5
