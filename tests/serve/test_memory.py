"""What a full context is said to take, against the cache that transformers makes."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import a_model, ready
from torch.profiler import ProfilerActivity, profile

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


def peak(model: Any, tokens: int, trace: Path) -> int:
    """Most bytes that were allocated at once in a forward pass, as torch's profiler tells."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True, logits_to_keep=1)
    profiled.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text("utf-8"))["traceEvents"] if event["name"] == "[memory]"]
    return max(itertools.accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_scores_of_eager_attention_are_counted_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    model = a_model(max_position_embeddings=1024).to(dtype)  # type: ignore[arg-type]
    model.set_attn_implementation("eager")
    measured = peak(model, 1024, tmp_path / "trace.json")
    assert measured == pytest.approx(request_bytes(model.config, 1024, dtype.itemsize), rel=0.05)


def test_a_context_that_would_not_fit_is_refused_with_one_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(max_position_embeddings=1024)
    free = memory.MARGIN + request_bytes(model.config, 300, 4)
    monkeypatch.setattr(memory, "_free_bytes", lambda _: free)
    with pytest.raises(KinfolkError) as caught:
        ready(model)
    assert caught.value.fix is not None and "--context 256" in caught.value.fix
    assert ready(model, context=256).context == 256


@pytest.mark.parametrize("context", [3, 128])
def test_no_context_is_advised_where_none_fits(monkeypatch: pytest.MonkeyPatch, context: int) -> None:
    model = a_model()
    free = memory.MARGIN + request_bytes(model.config, 2, 4) - 1
    monkeypatch.setattr(memory, "_free_bytes", lambda _: free)
    with pytest.raises(KinfolkError) as caught:
        ready(model, context=context)
    assert caught.value.fix == "free memory"
    monkeypatch.setattr(memory, "_free_bytes", lambda _: free + 1)
    assert ready(model, context=2).context == 2
