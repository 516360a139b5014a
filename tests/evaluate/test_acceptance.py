import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.acceptance import decode_with_draft, prompts_of, tokens_per_pass
from kinfolk.evaluate.flips import prediction_flips

PROMPTS = [[0, 5, 7], [0, 9, 9, 3]]


def alike(tiny):
    """A target, and a draft that is it with noise: they agree often, and not always."""
    target, draft = tiny(0), tiny(0)
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(1)
        for parameter in draft.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return draft, target


@pytest.mark.parametrize("sample", [True, False])
def test_measured_acceptance_is_the_expected_one(tiny, sample):
    draft, target = alike(tiny)
    before = draft.generation_config, target.generation_config
    state = torch.random.get_rng_state()
    found = decode_with_draft(
        draft, target, PROMPTS, new_tokens=40, draft_tokens=3, sample=sample, seed=0, device="cpu"
    )
    assert 0.2 < found.expected < 0.99, "neither trivial"
    if sample:
        assert abs(found.measured - found.expected) < 4 * found.standard_error
        assert found.standard_error < 0.06
    else:
        assert found.measured == found.expected
    assert 1 < found.tokens_per_pass <= 4
    assert (draft.generation_config, target.generation_config) == before
    assert "_get_candidate_generator" not in vars(target)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_accepts_all_of_itself(tiny):
    found = decode_with_draft(
        tiny(0), tiny(0), PROMPTS[:1], new_tokens=13, draft_tokens=3, sample=True, seed=0, device="cpu"
    )
    assert (found.measured, found.expected, found.standard_error) == (1.0, 1.0, 0.0)
    assert found.tokens_per_pass == pytest.approx(13 / 4)


def test_refusals(tiny):
    arguments = {"new_tokens": 40, "draft_tokens": 3, "sample": True, "seed": 0, "device": "cpu"}
    with pytest.raises(KinfolkError, match="the draft has 60 rows and the target 61"):
        decode_with_draft(tiny(vocab=60), tiny(), PROMPTS, **arguments)
    with pytest.raises(KinfolkError, match="longer than the 64"):
        decode_with_draft(tiny(), tiny(), PROMPTS, **arguments | {"new_tokens": 62})
    with pytest.raises(KinfolkError, match="no document has 9 tokens"):
        prompts_of([(np.arange(1, 9), 8)], 0, 10, 3)


def test_prompts_are_spread_over_the_documents():
    documents = [(np.arange(1, 10), 9), (np.arange(20, 22), 2), (np.arange(30, 36), 6)]
    assert prompts_of(documents, 0, 4, 99) == [
        [0, 1, 2, 3],
        [0, 4, 5, 6],
        [0, 7, 8, 9],
        [0, 30, 31, 32],
        [0, 33, 34, 35],
    ]
    assert prompts_of(documents, None, 4, 2) == [[1, 2, 3, 4], [30, 31, 32, 33]]


@given(st.floats(0, 1), st.integers(1, 6), st.integers(7, 20))
def test_tokens_per_pass_of_a_constant_acceptance(acceptance, drafted, length):
    found = tokens_per_pass([np.full(length, acceptance)], drafted)
    closed = drafted + 1 if acceptance == 1 else (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
    assert found["independent"] == pytest.approx(closed)
    assert found["in_place"] == pytest.approx(closed)


def test_tokens_per_pass_in_place_equals_the_sum_by_hand():
    documents = [np.array([0.9, 0.2, 0.8, 1.0]), np.array([0.5]), np.array([0.0, 1.0])]
    by_hand = [1 + a + a * b for a, b in ((0.9, 0.2), (0.2, 0.8), (0.8, 1.0), (0.0, 1.0))]
    assert tokens_per_pass(documents, 2)["in_place"] == pytest.approx(sum(by_hand) / 4)
    assert tokens_per_pass(documents[1:2], 2)["in_place"] is None


def test_flips_by_hand():
    before = [True, True, False, False, True, False]
    after = [True, False, True, False, False, True]
    found = prediction_flips(before, after)
    shares = {name: getattr(found, name).share for name in ("flips", "negative_flips", "positive_flips")}
    assert shares == {"flips": 4 / 6, "negative_flips": 2 / 6, "positive_flips": 2 / 6}
    assert found.right_before.share == found.right_after.share == 0.5, "which equal accuracy hides"
    assert found.flips.low < 4 / 6 < found.flips.high
    assert prediction_flips(before[:4], after[:4]).flips.low is None
    with pytest.raises(KinfolkError, match="2 and of 1 items"):
        prediction_flips([True, False], [True])
    with pytest.raises(KinfolkError, match="0 items"):
        prediction_flips([], [])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_flips_add_up(items):
    before, after = zip(*items, strict=True)
    found = prediction_flips(before, after)
    assert found.flips.share == pytest.approx(found.negative_flips.share + found.positive_flips.share)
    gained = found.positive_flips.share - found.negative_flips.share
    assert math.isclose(found.right_after.share - found.right_before.share, gained, abs_tol=1e-12)
