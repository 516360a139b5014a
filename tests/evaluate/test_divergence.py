"""Divergences against brute force in float64, identities and inequalities at every position, and bounded memory."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kinfolk.evaluate.divergence import Divergences, Head, divergences

FIELDS = tuple(Divergences.__dataclass_fields__)


def heads(positions=37, vocab=300, width=8, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def one():
        states = torch.randn(positions, width, generator=generator, dtype=torch.float64)
        weight = scale * torch.randn(vocab, width, generator=generator, dtype=torch.float64)
        return Head(states.to(dtype), weight.to(dtype))

    return one(), one()


def brute_force(first, second, entries):
    p, q = ((head.states.double() @ head.weight.double()[:entries].T).softmax(1) for head in (first, second))
    middle = (p + q) / 2

    def kl(a, b):
        return torch.where(a > 0, a * (a / b).log(), 0).sum(1)

    return Divergences(
        kl(p, q),
        kl(q, p),
        (kl(p, middle) + kl(q, middle)) / 2,
        (p.argmax(1) == q.argmax(1)).double(),
        torch.minimum(p, q).sum(1),
    )


@pytest.mark.parametrize("entries_at_once", [7, 64, 300])
def test_equals_brute_force_in_float64(entries_at_once):
    first, second = heads(dtype=torch.float64)
    found = divergences(first, second, 290, entries_at_once, 500)
    expected = brute_force(first, second, 290)
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_float32_in_chunks_equals_unchunked_and_float64(scale):
    first, second = heads(scale=scale)
    whole = divergences(first, second, 300, 300)
    expected = brute_force(first, second, 300)
    for entries_at_once in (1, 13, 299):
        chunked = divergences(first, second, 300, entries_at_once, 400)
        for name in FIELDS:
            torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-6, atol=1e-6)
    for name in FIELDS:
        torch.testing.assert_close(getattr(whole, name), getattr(expected, name), rtol=1e-4, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 5.0]), st.integers(2, 60), st.integers(1, 70))
def test_inequalities_at_every_position(seed, scale, vocab, entries_at_once):
    first, second = heads(11, vocab, 4, torch.float64, scale, seed)
    found = divergences(first, second, vocab, entries_at_once)
    for divergence in (found.forward, found.backward):
        # Pinsker: TV <= sqrt(KL / 2), and TV = 1 - acceptance.
        assert bool((1 - found.acceptance <= (divergence / 2).sqrt() + 1e-12).all())
        assert bool((divergence >= 0).all())
    assert bool((found.jensen_shannon <= math.log(2) + 1e-12).all())
    assert bool((found.jensen_shannon <= (found.forward + found.backward) / 4 + 1e-12).all())
    # JS lies between TV^2 / 2 and ln 2 TV.
    assert bool((found.jensen_shannon >= (1 - found.acceptance) ** 2 / 2 - 1e-12).all())
    assert bool((found.jensen_shannon <= math.log(2) * (1 - found.acceptance) + 1e-12).all())
    assert bool(((found.acceptance >= 0) & (found.acceptance <= 1)).all())
    swapped = divergences(second, first, vocab, entries_at_once)
    torch.testing.assert_close(swapped.forward, found.backward, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(swapped.jensen_shannon, found.jensen_shannon, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("entries_at_once", [17, 300])
def test_a_distribution_and_itself(entries_at_once):
    first, _ = heads()
    found = divergences(first, first, 300, entries_at_once)
    for name, expected in zip(FIELDS, (0.0, 0.0, 0.0, 1.0, 1.0), strict=True):
        assert bool((getattr(found, name) == expected).all()), name


def test_distributions_far_apart_stay_finite():
    one = torch.tensor([[200.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 200.0, 0.0]])
    found = divergences(Head(one, None), Head(other, None), 3, 2)
    assert float(found.forward) == pytest.approx(200)
    assert float(found.jensen_shannon) == pytest.approx(math.log(2))
    assert float(found.acceptance) == pytest.approx(0, abs=1e-6)
    assert float(found.agreement) == 0


def test_acceptance_is_that_of_simulated_speculative_sampling():
    first, second = heads(1, 12, 4, torch.float64, 0.5, seed=4)
    p, q = ((head.states @ head.weight.T).softmax(1)[0].numpy() for head in (first, second))
    generator = np.random.default_rng(0)
    draws = 200_000
    drafted = generator.choice(12, size=draws, p=p)
    accepted = (generator.random(draws) < q[drafted] / p[drafted]).mean()
    expected = float(divergences(first, second, 12).acceptance)
    assert 0.2 < expected < 0.8
    assert accepted == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws))


class _Memory(TorchDispatchMode):
    """Counts the elements of the results of operations that live at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        if storage.data_ptr() in self.seen:
            return
        self.seen.add(storage.data_ptr())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage.data_ptr(), storage.nbytes())

    def _forget(self, pointer, size):
        self.seen.discard(pointer)
        self.live -= size


def peak_bytes(vocab):
    first, second = heads(64, vocab, 4)
    with _Memory() as memory:
        # What is there before must not count: views of it are results too.
        memory.seen |= {t.untyped_storage().data_ptr() for head in (first, second) for t in (head.states, head.weight)}
        divergences(first, second, vocab, 2**10, 2**14)
    return memory.peak


def test_memory_does_not_grow_with_the_vocabulary():
    small, large = peak_bytes(2**12), peak_bytes(2**15)
    assert large <= small * 1.01
    assert small <= 4 * 2**14 * 20, "a few arrays of one chunk of float32"
