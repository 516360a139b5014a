"""What a full context is said to take, against the cache that transformers makes."""

from typing import Any

import pytest
import torch
from serving import a_model, ready

from kinfolk.errors import KinfolkError
from kinfolk.serve import memory
from kinfolk.serve.memory import cache_bytes, request_bytes
from kinfolk.transfer import Pair


def made_by(model: Any, tokens: int) -> int:
    """Bytes of keys and values after a forward pass."""
    with torch.no_grad():
        cache = model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    return sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))


def test_the_cache_is_counted_exactly() -> None:
    model = a_model()
    assert cache_bytes(model.config, 50, 4) == made_by(model, 50)
    pair = Pair.of(a_model(1), a_model(2))
    assert request_bytes(pair.config, 50, 4) > made_by(pair, 50) == 2 * made_by(model, 50)
    cascade = Pair.of(a_model(1), a_model(2), scheme="cascade")
    assert request_bytes(cascade.config, 50, 4) - request_bytes(pair.config, 50, 4) == 49 * 12 * 290


def test_a_context_that_would_not_fit_is_refused_with_one_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(max_position_embeddings=1024)
    free = memory.MARGIN + request_bytes(model.config, 300, 4)
    monkeypatch.setattr(memory, "_free_bytes", lambda _: free)
    with pytest.raises(KinfolkError) as caught:
        ready(model)
    assert caught.value.fix is not None and "--context 256" in caught.value.fix
    assert ready(model, context=256).context == 256
