import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from kinfolk.train import objective
from kinfolk.train.objective import TokenLoss, linear_cross_entropy


def sample(positions: int, hidden: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions)
    return (
        torch.randn(positions, hidden, generator=generator).requires_grad_(),
        torch.randn(vocab, hidden, generator=generator).requires_grad_(),
        torch.randint(vocab, (positions,), generator=generator),
    )


# Chunks are of max(16, budget // vocab) positions: 16 here, so 1 and 15 are below one, 33 and 50 are not multiples.
@pytest.mark.parametrize("positions", [1, 15, 16, 33, 50])
def test_equals_torch_with_both_gradients(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_LOGITS_IN_CACHE", 1)
    hidden, weight, targets = sample(positions, 12, 37)
    double_hidden, double_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    expected = functional.cross_entropy(double_hidden @ double_weight.T, targets, reduction="sum")
    (expected * 0.25).backward()
    loss = linear_cross_entropy(hidden, weight, targets).minimised
    (loss * 0.25).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden.grad, double_hidden.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, double_weight.grad.float(), rtol=1e-5, atol=1e-6)


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = sample(20, 12, 37)
    expected = functional.cross_entropy((hidden * 1e4) @ weight.T, targets, reduction="sum")
    assert linear_cross_entropy(hidden * 1e4, weight, targets).cross_entropy.item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_bfloat16_products_with_a_float32_value() -> None:
    hidden, weight, targets = sample(512, 64, 4096)
    expected = functional.cross_entropy(hidden @ weight.T * 0.1, targets, reduction="sum").item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden * 0.1, weight, targets, torch.bfloat16).minimised
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    # A sum of this size has a spacing of 2 to the 5 in bfloat16; float32 resolves it.
    assert loss.item() != loss.bfloat16().item()
    loss.backward()
    exact = torch.autograd.grad(functional.cross_entropy(hidden @ weight.T * 0.1, targets, reduction="sum"), weight)[0]
    assert torch.linalg.norm(weight.grad - exact) < 0.01 * torch.linalg.norm(exact)


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    hidden, weight, targets = sample(16, 12, 37)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets).minimised
    assert not loss.requires_grad
    calls = []
    real = torch.Tensor.scatter_add_
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.Tensor, "scatter_add_", lambda *arguments: calls.append(1) or real(*arguments))
        linear_cross_entropy(hidden, weight, targets)
    assert not calls


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_loss_of_transformers_as_a_sum(tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    sequences = torch.randint(97, (3, 11))
    theirs = model(input_ids=sequences, labels=sequences).loss * 3 * 10
    theirs.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    ours = TokenLoss(model)(sequences).minimised
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    assert ("lm_head.weight" in gradients) != tied
    parts = sum(TokenLoss(model)(row[None]).cross_entropy.item() for row in sequences)
    assert ours.item() == pytest.approx(parts, rel=1e-5)
