"""Acceptance, expected and counted, and the draft that shares the target's value network."""

from typing import Any

import pytest
import torch
from pairs import PADDED, PROMPT, continued, model

from kinfolk.errors import KinfolkError
from kinfolk.transfer import Pair
from kinfolk.transfer.acceptance import acceptance, counted_drafts, expected_acceptance
from kinfolk.transfer.shared_draft import generate_with_shared_value


def test_acceptance_is_what_speculative_sampling_does() -> None:
    torch.manual_seed(0)
    target, draft = torch.randn(2, 1, 11)
    p, q = target[0].softmax(-1), draft[0].softmax(-1)
    drawn = torch.multinomial(q, 200_000, replacement=True)
    taken = (torch.rand(len(drawn)) < (p / q)[drawn]).double().mean()
    assert float(acceptance(target, draft)) == pytest.approx(float(taken), abs=0.005)
    assert float(acceptance(target, target)) == pytest.approx(1)
    assert float(acceptance(target, draft)) == pytest.approx(1 - float((p - q).abs().sum()) / 2, abs=1e-6)


def test_expected_acceptance_of_a_shared_value_network() -> None:
    """log p - log q is the two bases' difference plus a constant, whatever the value network is."""
    large, small, value = model("llama", 1), model("llama", 3), model("qwen3", 2)
    target, draft = Pair.of(large, value), Pair.of(small, value)
    with torch.no_grad():
        found = expected_acceptance(target, draft, PADDED)
        logits = [base(PADDED).logits + value(PADDED).logits for base in (large, small)]
    assert torch.allclose(found, acceptance(*logits), atol=1e-6) and found.shape == PADDED.shape
    with pytest.raises(KinfolkError, match="vocabularies"):
        expected_acceptance(target, model("llama", 3, vocab_size=60), PADDED)


def test_drafts_are_counted() -> None:
    target, draft = model("llama", 1), model("llama", 1)
    small = model("llama", 3)
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    with counted_drafts(target) as counts:
        found = target.generate(PROMPT, assistant_model=draft, **how)
    assert counts.rate == 1 and sum(counts.accepted) + len(counts.accepted) == 12
    assert counts.tokens_per_pass == 12 / len(counts.accepted)
    with counted_drafts(target) as refused:
        same = target.generate(PROMPT, assistant_model=small, **how)
    assert torch.equal(found, same) and refused.rate < 0.5
    assert "_get_candidate_generator" not in vars(target)


def test_the_counted_rate_of_sampling_approaches_the_expected_one() -> None:
    """Teacher-forced on the target's own samples; the draft is the target with a little noise."""
    target, draft = model("llama", 1), model("llama", 1)
    with torch.no_grad():
        draft.lm_head.weight.add_(
            0.3 * torch.randn(draft.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    taken = judged = 0
    expected = []
    for seed in range(12):
        torch.manual_seed(seed)
        with counted_drafts(target) as counts:
            found = target.generate(
                PROMPT, assistant_model=draft, max_new_tokens=20, do_sample=True, top_k=0, temperature=1.0
            )
        taken += sum(counts.accepted)
        judged += len(counts.judged)
        expected.append(expected_acceptance(target, draft, found)[0, PROMPT.shape[1] - 1 : -1].mean())
    mean = float(torch.stack(expected).mean())
    assert 0.3 < mean < 0.95
    assert taken / judged == pytest.approx(mean, abs=0.1)


@pytest.mark.parametrize("drafted", [1, 2, 4])
@pytest.mark.parametrize("close", [True, False])
def test_a_shared_value_network_gives_the_same_tokens_for_fewer_passes(drafted: int, close: bool) -> None:
    base, value = model("llama", 1), model("qwen3", 2)
    small = model("llama", 1 if close else 3)
    if close:
        with torch.no_grad():
            small.lm_head.weight.add_(0.05)
            small.lm_head.weight[::7].mul_(1.5)
    passes = []
    value.register_forward_hook(lambda *_: passes.append(1))
    target, draft = Pair.of(base, value), Pair.of(small, value, alpha=0.9)
    found, counts = generate_with_shared_value(target, draft, PROMPT, 14, drafted)
    used = len(passes)
    assert torch.equal(found, continued(base, value, PROMPT, 14))
    assert used == sum(made + 1 for made in counts.drafted), "one pass a drafted token, and one more a cycle"
    assert sum(counts.accepted) + len(counts.accepted) == 14
    assert all(made <= drafted for made in counts.drafted)
    passes.clear()
    draft.generation_config.num_assistant_tokens = drafted
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    target.generate(PROMPT, max_new_tokens=14, do_sample=False, assistant_model=draft)
    assert used <= len(passes), "the assistant's own passes, and one of the target's for each cycle"


def test_every_position_is_read_once_where_all_drafts_are_taken_over() -> None:
    base, value = model("llama", 1), model("qwen3", 2)
    read = {"value": 0}
    value.register_forward_hook(
        lambda _, inputs, named, __: read.update(value=read["value"] + named["input_ids"].shape[1]), with_kwargs=True
    )
    pair = Pair.of(base, value)
    found, counts = generate_with_shared_value(pair, Pair.of(model("llama", 1), value), PROMPT, 15, 4)
    assert counts.rate == 1 and counts.accepted == [4, 4, 4] and counts.tokens_per_pass == 5
    assert read["value"] == found.shape[1] - 1


def test_a_shared_value_network_with_a_window() -> None:
    base, value, small = model("llama", 1), model("gemma3_text untied", 2, sliding_window=3), model("llama", 3)
    found, _ = generate_with_shared_value(Pair.of(base, value), Pair.of(small, value), PROMPT, 14, 4)
    assert torch.equal(found, continued(base, value, PROMPT, 14))


def test_it_stops_at_the_end_of_text() -> None:
    base, value, small = model("llama", 1), model("qwen3", 2), model("llama", 3)
    target, draft = Pair.of(base, value), Pair.of(small, value)
    whole = continued(base, value, PROMPT, 14)[0].tolist()
    end = whole[PROMPT.shape[1] + 4]
    wanted = whole[: whole.index(end, PROMPT.shape[1]) + 1]
    for other in (draft, Pair.of(model("llama", 1), value)):
        assert generate_with_shared_value(target, other, PROMPT, 14, 4, end=[end])[0][0].tolist() == wanted


def test_drafts_that_cannot_share_are_refused() -> None:
    base, value, small = model("llama", 1), model("qwen3", 2), model("llama", 3)
    target = Pair.of(base, value)
    with pytest.raises(KinfolkError, match="of its own"):
        generate_with_shared_value(target, Pair.of(small, model("qwen3", 2)), PROMPT, 3)
    with pytest.raises(KinfolkError, match="text alone"):
        generate_with_shared_value(target, Pair.of(small, value, scheme="cascade"), PROMPT, 3)
    with pytest.raises(KinfolkError, match="batch"):
        generate_with_shared_value(target, Pair.of(small, value), PADDED, 3)
    with pytest.raises(KinfolkError, match="drafted"):
        generate_with_shared_value(target, Pair.of(small, value), PROMPT, 3, drafted=0)
