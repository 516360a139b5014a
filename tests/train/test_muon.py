"""Muon against the singular value decomposition and torch's own, and what decays under a cautious weight decay."""

from typing import Any

import pytest
import torch
from micro import LARGE
from torch import nn

from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model
from kinfolk.train import muon
from kinfolk.train.model import config_for, new_model
from kinfolk.train.optimizer import MuonWithAdamW, make_optimizer, optimizer_tensors
from kinfolk.train.update import make_update

MUON = Optimizer(matrices="muon", weight_decay=0.3, betas=(0.8, 0.9), momentum=0.9)
SHAPES = [(5, 5), (3, 11), (11, 3), (1, 4), (4, 1)]


def model_of(architecture: Any = "llama", tied: bool = True) -> nn.Module:
    return new_model(config_for(Shape(**LARGE, tie_word_embeddings=tied), Model(architecture=architecture), 300), 0)


def push(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype)


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_acts_on_singular_values_alone(shape: tuple[int, int]) -> None:
    """In float64: U p(S) V^T, where p is the polynomial taken five times, on numbers; near U V^T for all of them."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(muon.orthogonalised(matrix), left @ values.diag() @ right, rtol=1e-9, atol=1e-9)
    assert values.min() > 0.68 and values.max() < 1.14


def test_its_scale_is_no_matter_and_zeros_stay_zeros() -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(muon.orthogonalised(matrix * 1e4), muon.orthogonalised(matrix), rtol=1e-4, atol=1e-5)
    assert not muon.orthogonalised(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("shape", [(64, 64), (48, 128), (128, 48)])
def test_an_update_is_as_large_as_one_of_adam(shape: tuple[int, int]) -> None:
    """Root mean square of about 0.2, whatever the shape and the gradient's scale."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 1e-6
    update = muon.orthogonalised(matrix) * muon.scale_of(shape)
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its products in bfloat16, as torch takes them everywhere."""
    real = muon.orthogonalised
    monkeypatch.setattr(muon, "orthogonalised", lambda matrix: real(matrix.bfloat16()).to(matrix.dtype))
    ours, theirs = model_of(), model_of()
    optimizer = make_optimizer(ours, MUON)
    matrices = [p for name, p in theirs.named_parameters() if ".layers." in name and p.dim() == 2]
    rest = [(name, p) for name, p in theirs.named_parameters() if not (".layers." in name and p.dim() == 2)]
    one = torch.optim.Muon(matrices, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for name, p in rest if "norm" not in name], "weight_decay": 0.3},
        {"params": [p for name, p in rest if "norm" in name], "weight_decay": 0.0},
    ]
    other = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-8)
    update = make_update(ours, optimizer, None)
    before = copy_of(ours)
    for step in range(4):
        rate = 0.1 / (step + 1)
        for model in (ours, theirs):
            push(model, step)
        for group in (*one.param_groups, *other.param_groups):
            group["lr"] = rate
        one.step()
        other.step()
        update(rate, step)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        assert (parameter - before[name]).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_only_the_matrices_of_layers_are_muons(architecture: str, tied: bool) -> None:
    model = model_of(architecture, tied)
    optimizer = make_optimizer(model, MUON)
    assert isinstance(optimizer, MuonWithAdamW)
    matrices = {id(parameter) for parameter in optimizer.matrices["params"]}
    of_muon = [name for name, parameter in model.named_parameters() if id(parameter) in matrices]
    assert len(of_muon) == 2 * 7 and all(name.split(".")[2].isdigit() and "norm" not in name for name in of_muon)
    decayed, free = optimizer.adamw.param_groups
    assert len(decayed["params"]) == (1 if tied else 2)
    assert {p.dim() for p in free["params"]} == {1} and (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0)
    assert len(decayed["params"]) + len(free["params"]) + len(matrices) == len(list(model.parameters()))
    kept = optimizer_tensors(model, optimizer).keys()
    for name, _ in model.named_parameters():
        assert {f"step.{name}", f"exp_avg.{name}"} <= kept
        assert (f"exp_avg_sq.{name}" in kept) == (name not in of_muon)


def test_optimizer_tensors_hold_all_of_its_state() -> None:
    model, twin = model_of(), model_of()
    optimizer, other = make_optimizer(model, MUON), make_optimizer(twin, MUON)
    updates = [make_update(model, optimizer, None), make_update(twin, other, None)]
    tensors = optimizer_tensors(model, optimizer)
    for step in range(3):
        push(model, step)
        updates[0](0.1, step)
    for name, value in optimizer_tensors(twin, other).items():
        assert not value.any()
        value.copy_(tensors[name])
    twin.load_state_dict(model.state_dict())
    for each, update in zip((model, twin), updates, strict=True):
        push(each, 3)
        update(0.1, 3)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(float(value) == 4 for name, value in tensors.items() if name.startswith("step."))


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_a_cautious_decay_spares_what_the_update_moves_away_from_zero(matrices: Any) -> None:
    """Coordinate by coordinate: the update alone (from a twin without decay), and the decay where signs agree."""
    rate, decay = 0.05, 0.4
    settings = [
        Optimizer(matrices=matrices, weight_decay=wd, weight_decay_rule=rule)
        for wd, rule in ((0.0, "everywhere"), (decay, "cautious"), (decay, "everywhere"))
    ]
    models = [model_of() for _ in settings]
    updates = [
        make_update(each, make_optimizer(each, setting), None) for each, setting in zip(models, settings, strict=True)
    ]
    kept = total = 0
    for step in range(3):
        before = [copy_of(model) for model in models]
        for model, update in zip(models, updates, strict=True):
            push(model, step)
            update(rate, step)
        for name in before[0]:
            alone, cautious, everywhere = (
                old[name] - dict(model.named_parameters())[name].detach()
                for old, model in zip(before, models, strict=True)
            )
            if "norm" in name:
                decays = [torch.zeros_like(alone)] * 2
            else:
                agree = alone * before[1][name] >= 0
                kept, total = kept + int((~agree).sum()), total + agree.numel()
                decays = [rate * decay * before[1][name] * agree, rate * decay * before[2][name]]
            torch.testing.assert_close(cautious, alone + decays[0], rtol=1e-3, atol=1e-6, msg=name)
            torch.testing.assert_close(everywhere, alone + decays[1], rtol=1e-3, atol=1e-6, msg=name)
    assert 0.3 < kept / total < 0.7
