import copy
import math

import pytest
import torch

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.growth.verify import copy_in


def sequences(rows=11, length=20, vocab=61):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(2))


def brute_force(small, large, inputs):
    with torch.no_grad():
        p, q = (model(inputs).logits.double().softmax(-1).flatten(0, 1) for model in (small, large))
    return {
        "kl_small_to_large": (p * (p / q).log()).sum(-1).mean().item(),
        "kl_large_to_small": (q * (q / p).log()).sum(-1).mean().item(),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
        "tokens": inputs.numel(),
    }


@pytest.mark.parametrize("vocab", [61, 2**14])  # the larger one needs several chunks
def test_equals_brute_force(tiny, vocab):
    small, large = tiny(0, vocab), tiny(1, vocab, hidden=32)
    tokens = sequences(vocab=vocab)
    expected = brute_force(small, large, tokens[:, :-1])
    assert adjacent_kl(small, large, tokens, "cpu").to_dict() == pytest.approx(expected, rel=1e-5)
    doubles = (copy_in(small, torch.float64), copy_in(large, torch.float64))
    expected = brute_force(*doubles, tokens[:, :-1])
    assert adjacent_kl(*doubles, tokens, "cpu").to_dict() == pytest.approx(expected, rel=1e-11)


def test_a_model_agrees_with_itself(tiny):
    result = adjacent_kl(tiny(), copy.deepcopy(tiny()), sequences(), "cpu")
    assert (result.kl_small_to_large, result.kl_large_to_small, result.top1_agreement) == (0.0, 0.0, 1.0)


def test_refusals(tiny):
    with pytest.raises(KinfolkError, match="vocabularies of 61 and 62 tokens"):
        adjacent_kl(tiny(), tiny(vocab=62), sequences(), "cpu")
    with pytest.raises(KinfolkError, match=r"shape \(20,\)"):
        adjacent_kl(tiny(), tiny(), sequences()[0, :20], "cpu")
    with pytest.raises(KinfolkError, match="the models have 61"):
        adjacent_kl(tiny(), tiny(), sequences() + 61, "cpu")
    with pytest.raises(KinfolkError, match="longer than the 64"):
        adjacent_kl(tiny(), tiny(), sequences(length=66), "cpu")
    diverged = tiny()
    diverged.lm_head.weight.data[3] = math.nan
    with pytest.raises(KinfolkError, match="not finite"):
        adjacent_kl(tiny(), diverged, sequences(), "cpu")
