import pytest
import torch
from micro import LARGE, SMALL

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model
from kinfolk.train.model import config_for, empty_model, load_parameters, new_model, parameters_of
from kinfolk.train.optimizer import make_optimizer, optimizer_tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_weight_decay_is_for_matrices_only(architecture: str, tied: bool) -> None:
    shape = Shape(**SMALL, tie_word_embeddings=tied)
    model = new_model(config_for(shape, Model(architecture=architecture), 300), 0)
    decayed, free = make_optimizer(model, Optimizer(weight_decay=0.3, betas=(0.8, 0.9))).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == free["betas"] == (0.8, 0.9)
    inside = {id(parameter) for parameter in decayed["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in inside) != ("norm" in name), name
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def step(model: torch.nn.Module, optimizer: torch.optim.AdamW, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_optimizer_tensors_hold_all_of_its_state() -> None:
    config = config_for(Shape(**SMALL), Model(), 300)
    model, twin = new_model(config, 0), new_model(config, 0)
    optimizer, other = make_optimizer(model, Optimizer()), make_optimizer(twin, Optimizer())
    step(model, optimizer, 1)
    step(model, optimizer, 2)
    for name, value in optimizer_tensors(twin, other).items():  # fresh: zeros that become the state when filled
        assert not value.any()
        value.copy_(optimizer_tensors(model, optimizer)[name])
    load_parameters(twin, parameters_of(model))
    step(model, optimizer, 3)
    step(twin, other, 3)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True))


def test_zero_state_is_that_of_an_optimizer_that_has_not_stepped() -> None:
    config = config_for(Shape(**SMALL), Model(), 300)
    model, twin = new_model(config, 0), new_model(config, 0)
    optimizer, other = make_optimizer(model, Optimizer()), make_optimizer(twin, Optimizer())
    optimizer_tensors(model, optimizer)
    step(model, optimizer, 1)
    step(twin, other, 1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True))


def test_new_models_are_functions_of_the_seed_and_leave_the_random_state_alone() -> None:
    config = config_for(Shape(**SMALL), Model(), 300)
    before = torch.get_rng_state()
    first, again, other = (parameters_of(new_model(config, seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.embed_tokens.weight"
    assert not torch.equal(first[name], other[name])
    assert first[name].std().item() == pytest.approx((2 / (5 * 16)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_an_empty_model_computes_as_a_new_one_once_it_is_filled(architecture: str, tied: bool) -> None:
    """Buffers and ties, which no checkpoint holds, must not need the initialisation that is left out."""
    config = config_for(Shape(**LARGE, tie_word_embeddings=tied), Model(architecture=architecture), 300)
    model, twin = new_model(config, 3), empty_model(config)
    load_parameters(twin, parameters_of(model))
    tokens = torch.randint(300, (2, 9))
    assert torch.equal(model(tokens).logits, twin(tokens).logits)
    assert parameters_of(twin).keys() == parameters_of(model).keys()
    assert list(dict(twin.named_buffers())) == list(dict(model.named_buffers()))


def test_tensors_that_do_not_fit_are_named() -> None:
    model = new_model(config_for(Shape(**SMALL), Model(), 300), 0)
    with pytest.raises(KinfolkError, match="extra"):
        load_parameters(model, parameters_of(model) | {"extra": torch.zeros(1)})
