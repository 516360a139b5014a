"""Every way of decoding gives what an uncached loop over the two models gives."""

from typing import Any

import pytest
import torch
from pairs import MASK, PADDED, PROMPT, added_up, continued, model
from transformers import DynamicCache, PreTrainedModel

from kinfolk.transfer import Pair

STEPS = 14
Models = tuple[PreTrainedModel, PreTrainedModel]

UNLIKE_WINDOWS = {"sliding_window": 5}, {"sliding_window": 3, "tie_word_embeddings": False}
COUPLES: dict[str, tuple[Any, ...]] = {
    "llama and tied llama": ("llama", {}, "llama tied", {}),
    "unlike architectures": ("qwen3", {}, "gpt2", {}),
    "windows of unlike size": ("gemma3_text untied", UNLIKE_WINDOWS[0], "gemma2", UNLIKE_WINDOWS[1]),
    "a window and none": ("llama", {}, "gemma3_text untied", UNLIKE_WINDOWS[1]),
}


@pytest.fixture(params=COUPLES.values(), ids=COUPLES.keys())
def models(request: pytest.FixtureRequest) -> Models:
    base, of_base, value, of_value = request.param
    return model(base, 1, **of_base), model(value, 2, **of_value)


def generate(pair: Pair, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    how = {"max_new_tokens": STEPS, "attention_mask": torch.ones_like(ids), "do_sample": False, "top_k": 0, **how}
    return pair.generate(ids, **how)


def test_one_forward_pass_adds_the_logits_up(models: Models) -> None:
    logits = Pair.of(*models, alpha=0.7)(PADDED, attention_mask=MASK, position_ids=(MASK.cumsum(1) - 1).clamp(0)).logits
    wanted = added_up(*models, PADDED, MASK, alpha=0.7)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits[MASK.bool()], wanted[MASK.bool()], atol=1e-5)


def test_greedy(models: Models) -> None:
    wanted = continued(*models, PROMPT, STEPS)
    assert len(set(wanted[0, PROMPT.shape[1] :].tolist())) > 3, "the tokens must vary for the comparison to mean much"
    assert torch.equal(generate(Pair.of(*models), PROMPT), wanted)


def test_left_padded_batch(models: Models) -> None:
    assert torch.equal(
        generate(Pair.of(*models, alpha=0.5), PADDED, attention_mask=MASK),
        continued(*models, PADDED, STEPS, MASK, alpha=0.5),
    )


def test_sampling_with_the_same_seed(models: Models) -> None:
    torch.manual_seed(5)
    drawn = generate(Pair.of(*models), PADDED, attention_mask=MASK, do_sample=True)
    assert torch.equal(drawn, continued(*models, PADDED, STEPS, MASK, seed=5))


def test_beams(models: Models) -> None:
    pair = Pair.of(*models)
    how = {"attention_mask": MASK, "num_beams": 3, "num_return_sequences": 2}
    with_cache, without = (generate(pair, PADDED, use_cache=use, **how) for use in (True, False))
    assert torch.equal(with_cache, without)
    # One beam of width 3 and two steps, by brute force: the best of the pairs that begin with the three best tokens.
    first = added_up(*models, PROMPT)[0, -1].log_softmax(-1)
    scores = {
        (start, token): first[start] + after[token]
        for start in first.topk(3).indices.tolist()
        for after in [added_up(*models, torch.cat([PROMPT, torch.tensor([[start]])], 1))[0, -1].log_softmax(-1)]
        for token in range(len(after))
    }
    best = max(scores, key=lambda key: float(scores[key]))
    assert tuple(generate(pair, PROMPT, num_beams=3, max_new_tokens=2)[0, -2:].tolist()) == best


def test_static_cache(models: Models) -> None:
    pair = Pair.of(*models)
    found = generate(pair, PADDED, attention_mask=MASK, cache_implementation="static")
    assert torch.equal(found, continued(*models, PADDED, STEPS, MASK))


def test_static_cache_with_a_prompt_in_chunks(models: Models) -> None:
    pair = Pair.of(*models)
    found = generate(pair, PROMPT, cache_implementation="static", prefill_chunk_size=3)
    assert torch.equal(found, continued(*models, PROMPT, STEPS))


def test_prompt_lookup(models: Models) -> None:
    found = generate(Pair.of(*models), PROMPT, prompt_lookup_num_tokens=3)
    assert torch.equal(found, continued(*models, PROMPT, STEPS))


@pytest.fixture(scope="module")
def windowed_draft_fails() -> str:
    """Why a stock model with a window cannot draft in this version of transformers, or nothing (5.17 cannot)."""
    base = model("gemma3_text untied", 1, sliding_window=3)
    try:
        base.generate(PROMPT, max_new_tokens=STEPS, assistant_model=model("gemma3_text untied", 1, sliding_window=3))
    except RuntimeError as error:
        return str(error)
    return ""


def skip_windowed_draft(draft: Pair, why: str) -> None:
    if why and "sliding_attention" in draft.config.layer_types:
        pytest.skip(f"a stock model with a window fails as a draft in this transformers: {why}")


@pytest.mark.parametrize("draft", ["a model", "a pair", "a pair with the same value network"])
def test_assisted(models: Models, draft: str, windowed_draft_fails: str) -> None:
    base, value = models
    small = model("llama", 3)
    drafts = {"a model": small, "a pair": Pair.of(small, model("llama tied", 4))}
    assistant = drafts.get(draft) or Pair.of(small, value)
    if isinstance(assistant, Pair):
        skip_windowed_draft(assistant, windowed_draft_fails)
    found = generate(Pair.of(base, value), PROMPT, assistant_model=assistant)
    assert torch.equal(found, continued(base, value, PROMPT, STEPS))


def test_assisted_by_a_draft_that_is_always_right(models: Models, windowed_draft_fails: str) -> None:
    """The draft is the target itself, so that every draft is accepted and no token comes from a rejection."""
    pair = Pair.of(*models)
    skip_windowed_draft(pair, windowed_draft_fails)
    found = generate(pair, PROMPT, assistant_model=Pair.of(*models))
    assert torch.equal(found, continued(*models, PROMPT, STEPS))


def test_assisted_needs_one_text_and_a_cache_that_grows(models: Models) -> None:
    pair = Pair.of(*models)
    with pytest.raises(ValueError, match="batch_size"):
        generate(pair, PADDED, attention_mask=MASK, assistant_model=models[0])
    with pytest.raises(ValueError, match="Static"):
        generate(pair, PROMPT, assistant_model=models[0], cache_implementation="static")


def test_alpha_zero_gives_the_base(models: Models) -> None:
    pair = Pair.of(*models)
    pair.alpha = 0.0
    assert torch.equal(generate(pair, PADDED, attention_mask=MASK), generate(models[0], PADDED, attention_mask=MASK))


def test_a_lazy_cache_that_is_passed_in_and_kept(models: Models) -> None:
    """A DynamicCache without a config has no layers yet: what the children append must not be lost."""
    pair = Pair.of(*models)
    cache = DynamicCache()
    with torch.no_grad():
        pair(PROMPT[:, :4], past_key_values=cache, use_cache=True)
        rest = pair(PROMPT[:, 4:], past_key_values=cache, use_cache=True).logits
    assert len(cache.layers) == pair.config.num_hidden_layers
    assert torch.allclose(rest, added_up(*models, PROMPT)[:, 4:], atol=1e-5)


@pytest.mark.parametrize("scheme", ["cascade", "cascade_without_text"])
@pytest.mark.parametrize("names", [("llama", "llama tied"), ("qwen3", "gpt2")])
def test_cascades(scheme: str, names: tuple[str, str]) -> None:
    models = model(names[0], 1), model(names[1], 2)
    pair = Pair.of(*models, scheme=scheme)
    how: dict[str, Any] = {"scheme": scheme}
    with torch.no_grad():
        assert torch.allclose(pair(PROMPT).logits, added_up(*models, PROMPT, **how), atol=1e-5)
        assert torch.allclose(
            pair(PROMPT, logits_to_keep=2).logits, added_up(*models, PROMPT, **how)[:, -2:], atol=1e-5
        )
    wanted = continued(*models, PADDED, STEPS, MASK, **how)
    assert torch.equal(generate(pair, PADDED, attention_mask=MASK), wanted)
    one = continued(*models, PROMPT, STEPS, **how)
    assert torch.equal(generate(pair, PROMPT, assistant_model=models[0]), one)
    assert torch.equal(generate(pair, PROMPT, cache_implementation="static"), one)


def test_expected_embedding_under_an_embedding_that_scales() -> None:
    """Gemma 3 multiplies its embeddings by the root of the hidden size inside the embedding module."""
    base, value = model("gemma3_text", 1), model("gemma3_text", 2)
    with torch.no_grad():
        logits = base(PROMPT).logits.float()
        every = value.get_input_embeddings()(torch.arange(logits.shape[-1]))
        wanted = logits + value(inputs_embeds=logits.softmax(-1) @ every).logits
        found = Pair.of(base, value, scheme="cascade_without_text")(PROMPT).logits
    assert torch.allclose(found, wanted, atol=1e-5)
