"""A grown child under rate transfer: its own factors are those with which a tiled copy repeats its parent."""

from typing import Any

import pytest
import torch
from test_dynamics import CHILD, PARENT, RATE, REWARM, Trainee, chain, distance
from tiny_models import empty_model, load, random_model, shape

from kinfolk.family.rate_transfer import Factors, parameter_factors
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Architecture, Shape
from kinfolk.growth.dynamics import stage_rates
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.optimizer import grow_optimizer
from kinfolk.plan.stages import Dynamics, Operator
from kinfolk.train.model import new_model, rescale_new_model
from kinfolk.train.optimizer import MOMENTS, make_optimizer, optimizer_tensors
from kinfolk.train.update import make_update

TILE = Operator(width="tile", noise=0.0)
SETTINGS = Optimizer(eps=1e-3)


class Transferred(Trainee):
    """A model that trains with the factors of rate transfer, and with an eps of the size of its gradients."""

    def __init__(self, model: Any, architecture: Architecture, factors: dict[str, Factors] | None) -> None:
        self.model, self.architecture = model, architecture
        self.optimizer = make_optimizer(model, SETTINGS, factors)
        self.tensors = optimizer_tensors(model, self.optimizer)
        self._update = make_update(model, self.optimizer, None)

    def tiled(self, parent: Shape, child: Shape, factors: dict[str, Factors] | None) -> "Transferred":
        weights = grow_weights(self.weights(), self.architecture, parent, child, TILE)
        keys = (*MOMENTS, "step")
        state = grow_optimizer(*(self.part(key) for key in keys), self.architecture, parent, child, TILE, Dynamics())
        twin = Transferred(load(empty_model(self.architecture, child), weights), self.architecture, factors)
        for key, values in zip(keys, state, strict=True):
            for parameter, value in values.items():
                twin.tensors[f"{key}.{parameter}"].copy_(value)
        return twin


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_tiled_child_repeats_its_parent(architecture: Architecture, tied: bool) -> None:
    """Hidden size x 2, heads x 3, feed-forward x 4: every axis has its own ratio, and every factor its part."""
    parent, child = shape(tied=tied), shape(hidden=32, heads=12, groups=6, ffn=96, tied=tied)
    factors = parameter_factors(child, parent, "completep", architecture)
    first = Transferred(random_model(architecture, parent), architecture, None)
    first.train(3)
    twin, other = (first.tiled(parent, child, each) for each in (factors, None))
    assert distance(first, twin) < 1e-13
    before = first.logits()
    for trainee in (first, twin, other):
        trainee.train(20, first=3)
    assert float((first.logits() - before).abs().max()) > 1
    assert distance(first, twin) < 1e-11
    assert distance(first, other) > 0.1


@pytest.mark.parametrize("width", ["energy_split", "zero_pad", "tile"])
def test_growth_divides_the_final_gamma_as_a_new_child_has_it(width: Any) -> None:
    parent, child = shape(), shape(hidden=32, heads=8, groups=4, ffn=48)
    factors = parameter_factors(child, parent, "mup", "llama")
    fresh = new_model(empty_model("llama", child, double=False).config, 0)
    rescale_new_model(fresh, factors, parent)
    plain = {name: value.detach() for name, value in empty_model("llama", parent).named_parameters()}  # gammas of 1
    grown = grow_weights(plain, "llama", parent, child, Operator(width=width))
    wanted = dict(fresh.named_parameters())["model.norm.weight"].double()
    assert torch.equal(grown["model.norm.weight"], wanted)
    assert wanted.unique().tolist() == [0.5]


def test_rewarmed_coordinates_keep_the_factors_of_their_parameter() -> None:
    """The rates of growth multiply those of rate transfer."""
    plan = chain([PARENT, CHILD], 3, REWARM)
    factors = parameter_factors(CHILD, PARENT, "mup", "llama")
    moved = []
    for own in (None, factors):
        model = random_model("llama", CHILD)
        optimizer = make_optimizer(model, Optimizer(weight_decay=0.0, eps=1e-30), own)
        optimizer_tensors(model, optimizer)
        update = make_update(model, optimizer, stage_rates(plan, "1", "llama", dict(model.named_parameters())))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for step in range(2):
            for name, parameter in model.named_parameters():
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(len(name) + step), dtype=torch.float64
                )
            update(RATE, step)
        moved.append({name: parameter.detach() - before[name] for name, parameter in model.named_parameters()})
    for name, change in moved[0].items():
        factor = factors[name.split(".")[-2]].rate
        assert torch.allclose(moved[1][name], factor * change, rtol=1e-9, atol=0), name
        assert change.abs().max() > 1e-4
    assert {factors[name].rate for name in ("embed_tokens", "q_proj", "norm")} == {1.0, 16 / 22}
