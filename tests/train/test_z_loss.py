"""The z-loss against autograd in float64, and that without it nothing changes."""

from typing import Any

import pytest
import torch
from architectures import VOCAB, random_model
from torch.nn import functional

from kinfolk.plan.stages import Patch, Token
from kinfolk.train import objective
from kinfolk.train.objective import linear_cross_entropy, stage_loss


@pytest.mark.parametrize("coefficient", [1e-5, 0.1, 0.9])
@pytest.mark.parametrize("positions", [1, 15, 33])
@pytest.mark.parametrize("slots", [1, 3])
def test_chunks_equal_autograd_in_float64(
    coefficient: float, positions: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the softmax's logarithm is negative, and where targets are left out or weighted."""
    monkeypatch.setattr(objective, "_LOGITS_IN_CACHE", 1)
    draw = torch.Generator().manual_seed(positions)
    hidden, weight = (torch.randn(rows, 12, generator=draw).requires_grad_() for rows in (positions, 37))
    targets = torch.randint(37, (positions, slots), generator=draw)
    weights = torch.rand(positions, slots, generator=draw) * (torch.rand(positions, slots, generator=draw) > 0.2)
    bias = torch.cat([torch.full((positions, 1), -6.0), torch.zeros(positions, 11)], 1)  # pulls every logit down
    with torch.no_grad():
        hidden[::2] += bias[::2]
        weight[:, 0] = weight[:, 0].abs() + 2
    double_hidden, double_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = double_hidden @ double_weight.T
    normaliser = logits.logsumexp(1, keepdim=True)
    assert (normaliser < 0).any()
    z_loss = coefficient * (normaliser.square() * weights).sum()
    by_slot = [functional.cross_entropy(logits, targets[:, k], reduction="none") for k in range(slots)]
    cross_entropy = (torch.stack(by_slot, 1) * weights).sum()
    ((cross_entropy + z_loss) * 0.25).backward()
    losses = linear_cross_entropy(hidden, weight, targets, target_weights=weights, z_coefficient=coefficient)
    (losses.minimised * 0.25).backward()
    assert losses.cross_entropy.item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    assert losses.z_loss.item() == pytest.approx(z_loss.item(), rel=1e-4)
    assert losses.minimised.item() == pytest.approx((cross_entropy + z_loss).item(), rel=1e-5)
    assert not losses.cross_entropy.requires_grad and not losses.z_loss.requires_grad
    torch.testing.assert_close(hidden.grad, double_hidden.grad.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight.grad, double_weight.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", [Token(), Patch(4, slot_exponent=1.0)])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # in chunks, and by the model's own logits
def test_both_objectives_add_it(name: str, which: Any) -> None:
    """Autograd through the logits that the model itself gives; in evaluation mode there is none."""
    size = which.size if isinstance(which, Patch) else 1
    model = random_model(name)
    rows = torch.randint(VOCAB, (3, 6 * size), generator=torch.Generator().manual_seed(4))
    patches = rows.view(3, -1, size)
    inputs = model.get_input_embeddings()(patches[:, :-1]).mean(2)
    logits = model(inputs_embeds=inputs, use_cache=False).logits
    z_loss = 0.03 * size * logits.logsumexp(2).square().sum()  # slot weights have the mean 1
    plain = stage_loss(model, which)(rows)
    expected = torch.autograd.grad(plain.minimised + z_loss, list(model.parameters()))
    losses = stage_loss(model, which, z_coefficient=0.03)(rows)
    assert losses.cross_entropy.item() == plain.cross_entropy.item() == plain.minimised.item()
    assert losses.z_loss.item() == pytest.approx(z_loss.item(), rel=1e-5) and plain.z_loss.item() == 0
    assert losses.minimised.item() == pytest.approx(plain.minimised.item() + z_loss.item(), rel=1e-6)
    found = torch.autograd.grad(losses.minimised, list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
    assert stage_loss(model, which, z_coefficient=0.03).eval()(rows[:, :6]).z_loss.item() == 0
