"""The patch objective against independent truths: float64, soft labels, transformers' own loss, brute force."""

from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCAB, random_model
from counted_flops import counted_flops
from torch.nn import functional

from kinfolk.plan.costs import matmul_flops_per_token
from kinfolk.plan.stages import Patch, Token
from kinfolk.train import objective
from kinfolk.train.objective import (
    PatchLoss,
    TokenLoss,
    into_patches,
    linear_cross_entropy,
    patch_embeddings,
    slot_weights,
    stage_loss,
)

NAMES = list(CONFIGS)


def sequences(tokens: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model: Any, rows: torch.Tensor, size: int, weights: torch.Tensor) -> torch.Tensor:
    """The definition, with loops over patches and slots, on the logits that the model itself gives."""
    patches = rows.view(len(rows), -1, size)
    lookup = model.get_input_embeddings()
    means = torch.stack(
        [sum(lookup(patches[:, i, k]) for k in range(size)) / size for i in range(patches.shape[1] - 1)], 1
    )
    logits = model(inputs_embeds=means, use_cache=False).logits
    total = torch.zeros(())
    for i in range(patches.shape[1] - 1):
        for k in range(size):
            total = total + weights[k] * functional.cross_entropy(logits[:, i], patches[:, i + 1, k], reduction="sum")
    return total


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_learns_what_the_definition_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_LOGITS_IN_CACHE", 1)  # chunks of 16 positions: two, and a rest
    model, rows, patch = random_model(name), sequences(4 * 13), Patch(4, slot_exponent=1.0)
    expected = by_hand(model, rows, 4, slot_weights(4, 1.0))
    expected.backward()
    right = gradients(model)
    model.zero_grad()
    loss = PatchLoss(model, patch)(rows).minimised
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, right[parameter], rtol=1e-3, atol=2e-4, msg=parameter)


@pytest.mark.parametrize("name", NAMES)
def test_patches_of_one_token_are_tokens(name: str) -> None:
    """The general loss at K = 1 is the next-token loss of transformers, and so is that of evaluation mode."""
    model, rows = random_model(name), sequences(12)
    theirs = model(input_ids=rows, labels=rows).loss.item()
    for loss in (PatchLoss(model, Patch(1)), PatchLoss(model, Patch(4)).eval(), TokenLoss(model)):
        assert loss(rows).cross_entropy.item() / (3 * 11) == pytest.approx(theirs, rel=1e-6)
    model.zero_grad()
    PatchLoss(model.train(), Patch(1))(rows).minimised.backward()
    patched = gradients(model)
    model.zero_grad()
    TokenLoss(model)(rows).minimised.backward()
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(patched[parameter], gradient, rtol=1e-5, atol=1e-5, msg=parameter)


def test_a_stage_of_patches_of_one_token_takes_the_ordinary_path() -> None:
    model, rows = random_model("llama"), sequences(9)
    ordinary, dispatched = (stage_loss(model, which) for which in (Token(), Patch(1)))
    assert type(ordinary) is type(dispatched) is TokenLoss
    assert torch.equal(ordinary(rows).minimised, dispatched(rows).minimised)
    assert isinstance(stage_loss(model, Patch(2)), PatchLoss)


def test_gemma_scales_the_mean_as_it_scales_a_token() -> None:
    """Its embeddings are sqrt(hidden size) times their rows; a patch of equal tokens is that token."""
    model = random_model("gemma3_text")
    token = torch.tensor([[7]])
    patch = patch_embeddings(model, token.expand(1, 4).unsqueeze(1))  # (1, 1, 4) to (1, 1, hidden)
    torch.testing.assert_close(patch, model.get_input_embeddings()(token))
    torch.testing.assert_close(patch, 4.0 * model.get_input_embeddings().weight[7].expand(1, 1, -1))
    same = model(inputs_embeds=patch).logits
    torch.testing.assert_close(same, model(input_ids=token).logits)


def test_a_patch_embedding_is_the_mean_of_its_rows_in_float32() -> None:
    model = random_model("llama").bfloat16()
    patches = into_patches(sequences(12), 4)
    mean = patch_embeddings(model, patches)
    rows = model.get_input_embeddings().weight[patches].double()
    assert mean.dtype == torch.bfloat16 and mean.shape == (3, 3, 16)
    assert torch.equal(mean, rows.mean(2).float().bfloat16())


def test_a_sequence_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="13 tokens is not a whole number of patches of 4"):
        PatchLoss(random_model("llama"), Patch(4))(sequences(13))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_no_patch_sees_a_later_one_and_the_first_is_never_a_target(name: str) -> None:
    model, rows = random_model(name).eval(), sequences(24, rows=1)
    patches = into_patches(rows, 4)

    def states(of: torch.Tensor) -> torch.Tensor:
        embedded = patch_embeddings(model, of)
        return model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    before = states(patches)
    for changed in range(6):
        other = patches.clone()
        other[0, changed, 2] = (other[0, changed, 2] + 1) % VOCAB
        after = states(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.equal(after[:, changed], before[:, changed])
    # Targets only reach the loss through the gather: swapping slots within a target patch alone changes nothing.
    loss = PatchLoss(model, Patch(4)).train()
    swapped = rows.clone()
    swapped[0, -4:] = swapped[0, -4:].flip(0)
    assert loss(swapped).cross_entropy.item() == pytest.approx(loss(rows).cross_entropy.item(), rel=1e-6)


@pytest.mark.parametrize("positions", [1, 15, 33])
@pytest.mark.parametrize("left_out", [False, True])
def test_chunks_equal_soft_labels_and_slot_averages(
    positions: int, left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: cross-entropy against counts / K, the mean over slots, and the chunked form, with gradients."""
    monkeypatch.setattr(objective, "_LOGITS_IN_CACHE", 1)
    draw, slots = torch.Generator().manual_seed(positions), 4
    hidden, weight = (torch.randn(rows, 12, generator=draw).requires_grad_() for rows in (positions, 37))
    targets = torch.randint(37, (positions, slots), generator=draw)
    counted = torch.ones(positions, slots)
    if left_out:
        counted[:, 1] = 0
        counted[-1] = 0  # a position all of whose targets are left out
    double_hidden, double_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits = double_hidden @ double_weight.T
    soft = torch.zeros(positions, 37, dtype=torch.float64).scatter_add_(1, targets, counted.double())
    expected = -(soft * logits.log_softmax(1)).sum()
    if not left_out:
        by_slot = [functional.cross_entropy(logits, targets[:, k], reduction="sum") for k in range(slots)]
        assert sum(by_slot).item() == pytest.approx(expected.item(), rel=1e-12)
        labels = functional.cross_entropy(logits, soft / slots, reduction="sum") * slots
        assert labels.item() == pytest.approx(expected.item(), rel=1e-12)
    (expected * 0.25).backward()
    loss = linear_cross_entropy(hidden, weight, targets, target_weights=counted).minimised
    (loss * 0.25).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden.grad, double_hidden.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, double_weight.grad.float(), rtol=1e-5, atol=1e-6)


def test_slot_weights() -> None:
    assert slot_weights(4, 0.0).tolist() == [1.0] * 4
    weights = slot_weights(8, 1.0)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[0] / weights).tolist() == pytest.approx(range(1, 9))


def test_a_patch_costs_what_a_token_costs() -> None:
    from kinfolk.family.shapes import Shape
    from kinfolk.family.spec import Model
    from kinfolk.train.model import config_for, new_model

    shape = Shape(num_hidden_layers=2, hidden_size=24, num_attention_heads=2, head_dim=4, intermediate_size=40)
    config = config_for(shape, Model(context_length=16), 37)
    config._attn_implementation = "eager"
    model = new_model(config, seed=0)
    loss, tokens = PatchLoss(model, Patch(4)), torch.randint(37, (2, 4 * 17))
    found = counted_flops(model, 16, lambda: loss(tokens).minimised.backward())
    assert found == matmul_flops_per_token(shape, 37, 16) * 2 * 16
