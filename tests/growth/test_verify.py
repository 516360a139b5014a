import json
from typing import Any

import pytest
import torch
from tiny_models import empty_model, gradients, grown_model, load, random_model, random_tokens, shape

from kinfolk.errors import KinfolkError
from kinfolk.family.shapes import Architecture
from kinfolk.growth.claims import claims_preservation, describe
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.precision import computing_in
from kinfolk.growth.verify import copy_in, verify
from kinfolk.plan.stages import Operator

NOISY = Operator(noise=0.3)
PARENT, CHILD = shape(), shape(hidden=22, heads=9, groups=3, ffn=31, layers=3)


def stock(model: Any, architecture: Architecture, sizes: Any, dtype: torch.dtype) -> Any:
    """The same weights in transformers' own, unpatched model."""
    fresh = empty_model(architecture, sizes, double=False).to(dtype)
    return load(fresh, dict(model.named_parameters()))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stock_models_pass(architecture: Architecture, dtype: torch.dtype) -> None:
    parent = stock(random_model(architecture, PARENT), architecture, PARENT, dtype)
    parameters = grow_weights(dict(parent.named_parameters()), architecture, PARENT, CHILD, NOISY)
    child = load(empty_model(architecture, CHILD, double=False).to(dtype), parameters)
    claims = claims_preservation(NOISY, PARENT, CHILD)
    result = verify(parent, child, random_tokens(), claims, describe(NOISY, PARENT, CHILD))
    assert result.passed is True
    limits = (1e-12, 1e-5) if dtype == torch.float64 else (1e-5, 1e-5)
    for measured, limit in zip((result.float64, result.float32), limits, strict=True):
        assert measured.max_abs_logit > 1.5
        assert measured.mean_abs_logit_difference <= measured.max_abs_logit_difference
        assert measured.max_abs_logit_difference < limit * measured.max_abs_logit
        assert 0 <= measured.kl < limit
        assert measured.loss_after == pytest.approx(measured.loss_before, abs=limit)
    assert result.float64.tolerance == (1e-9 if dtype == torch.float64 else 1e-4)
    assert json.loads(json.dumps(result.to_dict()))["float64"]["kl"] == result.float64.kl


def test_models_are_left_as_they_are() -> None:
    parent = stock(random_model("llama", PARENT), "llama", PARENT, torch.float32).train()
    for layer in parent.model.layers:
        layer.self_attn.attention_dropout = 0.5
    gradients(parent, random_tokens())
    before = {name: (p.data_ptr(), p.clone(), p.grad.clone()) for name, p in parent.named_parameters()}
    modules = [type(module) for module in parent.modules()]
    assert verify(parent, parent, random_tokens(), True).passed, "evaluated without dropout"
    assert parent.training
    assert modules == [type(module) for module in parent.modules()]
    for name, p in parent.named_parameters():
        pointer, value, gradient = before[name]
        assert p.requires_grad
        assert p.data_ptr() == pointer
        assert torch.equal(p, value)
        assert torch.equal(p.grad, gradient)


def test_copies_keep_ties() -> None:
    model = random_model("llama", PARENT)
    twin: Any = copy_in(model, torch.float32)
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert twin.lm_head.weight.dtype == torch.float32


def wrong_gammas(parameters: dict[str, torch.Tensor]) -> None:
    """Copied unscaled, as a plain copy with uneven copy counts would."""
    ratio = 22 / 16
    for name in parameters:
        if "layernorm" in name:
            copies = 1 + (torch.arange(22) % 16 < 6).double()
            parameters[name] *= (ratio / copies).sqrt()


def wrong_final_norm(parameters: dict[str, torch.Tensor]) -> None:
    """Logits of a tied head that are too large by D/d."""
    parameters["model.norm.weight"] *= 22 / 16


def wrong_heads(parameters: dict[str, torch.Tensor]) -> None:
    """Query heads tiled past their group."""
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        parameters[name] = parameters[name].view(9, 4, 22).roll(1, 0).reshape(36, 22)


def slightly_wrong(parameters: dict[str, torch.Tensor]) -> None:
    """An error of one part in ten thousand in one tensor, invisible in float32's tolerance."""
    parameters["model.norm.weight"] *= 1 + 1e-5


@pytest.mark.parametrize("mistake", [wrong_gammas, wrong_final_norm, wrong_heads, slightly_wrong])
def test_a_wrong_operator_fails(mistake: Any) -> None:
    parent = random_model("llama", PARENT)
    parameters = grow_weights(dict(parent.named_parameters()), "llama", PARENT, CHILD, NOISY)
    mistake(parameters)
    child = load(empty_model("llama", CHILD), parameters)
    assert verify(parent, child, random_tokens(), True).passed is False


def test_nan_fails() -> None:
    parent = random_model("llama", PARENT)
    child = grown_model(parent, "llama", PARENT, CHILD, NOISY)
    with torch.no_grad():
        child.model.norm.weight[0] = float("nan")
    assert verify(parent, child, random_tokens(), True).passed is False


def test_stacking_is_measured_but_not_judged() -> None:
    stack, child = Operator(depth="stack"), shape(layers=4)
    parent = random_model("llama", PARENT)
    grown = grown_model(parent, "llama", PARENT, child, stack)
    result = verify(parent, grown, random_tokens(), claims_preservation(stack, PARENT, child))
    assert result.passed is None
    assert result.float64.max_abs_logit_difference > 0.1
    assert result.float64.kl > 1e-3
    assert verify(parent, grown, random_tokens(), True).passed is False


def test_kl_and_loss_are_those_of_the_definition() -> None:
    parent, child = random_model("llama", PARENT, seed=0), random_model("llama", PARENT, seed=1)
    tokens = random_tokens(3, 7)
    measured = verify(parent, child, tokens, False).float64
    with torch.no_grad(), computing_in(torch.float64):
        p, q = (model(tokens).logits.log_softmax(-1) for model in (parent, child))
    assert measured.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-9)
    for log, loss in ((p, measured.loss_before), (q, measured.loss_after)):
        picked = log[:, :-1].gather(-1, tokens[:, 1:, None])
        assert loss == pytest.approx(-float(picked.mean()), rel=1e-9)


def test_refusals() -> None:
    parent = random_model("llama", PARENT)
    with pytest.raises(KinfolkError, match="batch, time"):
        verify(parent, parent, torch.zeros(5, dtype=torch.long), True)
