"""Drawing a token, against probabilities in float64."""

import math

import pytest
import torch
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.serve.draw import LEAST_LOGPROB, Draw, generator_of

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, 9.0]])
"""The last entry is padding: the tokenizer has five tokens."""

NO_IDS = torch.zeros(1, 0, dtype=torch.long)
CPU = torch.device("cpu")


def draws(temperature: float, top_p: float, count: int, logits: Tensor = LOGITS) -> list[int]:
    draw = Draw(5, temperature, top_p, generator_of(7, 0, CPU), None)
    return [int(draw(NO_IDS, logits).argmax()) for _ in range(count)]


def expected(temperature: float, top_p: float) -> list[float]:
    """The smallest set of likeliest tokens that reaches top_p, by its definition."""
    weights = [math.exp(float(z) / temperature) for z in LOGITS[0, :5]]
    probabilities = [weight / sum(weights) for weight in weights]
    kept: dict[int, float] = {}
    for index in sorted(range(5), key=lambda each: -probabilities[each]):
        if sum(kept.values()) < top_p:
            kept[index] = probabilities[index]
    return [kept.get(index, 0) / sum(kept.values()) for index in range(5)]


@pytest.mark.parametrize(("temperature", "top_p"), [(1, 1), (0.5, 1), (2, 1), (1, 0.8), (2, 0.9), (1, 0.01)])
def test_tokens_come_as_often_as_they_should(temperature: float, top_p: float) -> None:
    count = 800
    found = draws(temperature, top_p, count)
    for index, probability in enumerate(expected(temperature, top_p)):
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert abs(found.count(index) / count - probability) <= 5 * deviation
    assert 5 not in found


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-9])
def test_without_temperature_the_likeliest_token_comes(temperature: float) -> None:
    assert set(draws(temperature, 1, 20)) == set(draws(temperature, 0.5, 20)) == {4}
    huge = 1e30 * LOGITS
    assert set(draws(temperature, 1, 5, huge)) == set(draws(2, 0, 5)) == {4}


def test_draws_depend_on_seed_and_answer_alone_and_leave_the_process_its_own() -> None:
    before = torch.get_rng_state()
    streams = {}
    for seed, answer in ((1, 0), (1, 0), (1, 1), (2, 0), (-1, 0), (2**63 - 1, 0)):
        draw = Draw(5, 2, 1, generator_of(seed, answer, CPU), None)
        torch.rand(seed % 5)  # another request that draws
        ids = tuple(int(draw(NO_IDS, LOGITS).argmax()) for _ in range(30))
        assert streams.setdefault((seed, answer), ids) == ids
    assert len(set(streams.values())) == 5
    torch.set_rng_state(before)
    draws(1, 1, 5)
    assert torch.equal(before, torch.get_rng_state())


def test_logprobs_are_those_before_temperature_and_top_p() -> None:
    draw = Draw(5, 0.1, 0.1, generator_of(0, 0, CPU), 2)
    assert int(draw(NO_IDS, LOGITS).argmax()) == 4
    total = sum(math.exp(float(z)) for z in LOGITS[0])
    assert draw.last is not None
    assert draw.last.logprob == pytest.approx(3 - math.log(total), abs=1e-6)
    assert [index for index, _ in draw.last.top] == [5, 4]
    draw(NO_IDS, torch.tensor([[1.0, -torch.inf, 0, 0, 0, -torch.inf]]))
    wide = Draw(5, 0, 1, generator_of(0, 0, CPU), 20)
    wide(NO_IDS, torch.tensor([[1.0, -torch.inf, 0, 0, 0, -torch.inf]]))
    assert wide.last is not None and len(wide.last.top) == 6 and wide.last.top[-1][1] == LEAST_LOGPROB


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(KinfolkError, match="no numbers"):
        draws(1, 1, 1, torch.full((1, 6), torch.nan))
