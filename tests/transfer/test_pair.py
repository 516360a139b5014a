"""The pair as a model: causal, frozen where it must be, saved and loaded, refused where it cannot work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import PROMPT, added_up, model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.transfer import Pair, PairConfig, load_pair, save_pair, zero_head


def a_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(53)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0", pad_token="w0")


def a_pair(**settings: Any) -> Pair:
    return Pair.of(model("llama", 1), model("llama tied", 2), **settings)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("origin", ["adopted", "built", "loaded", "adopted twice"])
def test_the_causal_mask_is_kept(origin: str, attention: str, tmp_path: Path) -> None:
    base, value = model("llama", 1), model("qwen3", 2)
    for one in (base, value):
        one.set_attn_implementation(attention)
    pair = Pair.of(base, value)
    if origin == "built":
        config = PairConfig(base=base.config.to_dict(), value=value.config.to_dict(), attn_implementation=attention)
        pair = Pair(config).eval()
    elif origin == "loaded":
        pair.save_pretrained(tmp_path)
        pair = Pair.from_pretrained(tmp_path, attn_implementation=attention)
    elif origin == "adopted twice":
        Pair.of(model("llama", 3), value)
    assert [one.config._attn_implementation for one in (pair.base, pair.value)] == [attention, attention]
    assert pair.config.base is pair.base.config and pair.config.value is pair.value.config
    other = PROMPT.clone()
    other[0, -1] = 50
    with torch.no_grad():
        change = (pair(PROMPT).logits - pair(other).logits).abs()[0].amax(-1)
    assert float(change[:-1].max()) < 1e-5 < float(change[-1])


def test_attention_can_be_changed_later() -> None:
    pair = a_pair()
    with torch.no_grad():
        before = pair(PROMPT).logits
        pair.set_attn_implementation("eager")
        after = pair(PROMPT).logits
    assert [one.config._attn_implementation for one in (pair, pair.base, pair.value)] == ["eager"] * 3
    assert torch.allclose(before, after, atol=1e-5)


def test_a_cropped_cache_is_that_of_the_shorter_text() -> None:
    pair = a_pair()
    with torch.no_grad():
        cache = pair(PROMPT, use_cache=True).past_key_values
        cache.crop(-3)  # negative: how many tokens to remove
        lengths = {layer.get_seq_length() for layer in cache.layers}
        logits = pair(PROMPT[:, 4:], past_key_values=cache, use_cache=True).logits
    assert lengths == {PROMPT.shape[1] - 3} and len(cache.layers) == 4
    assert torch.allclose(logits, added_up(pair.base, pair.value, PROMPT)[:, 4:], atol=1e-5)


def test_the_config_joins_the_layers_of_both() -> None:
    config = Pair.of(model("llama", 1), model("gemma3_text", 2, sliding_window=4)).config
    assert config.num_hidden_layers == 4
    assert config.layer_types == ["full_attention"] * 2 + list(config.value.layer_types)
    assert "sliding_attention" in config.layer_types and config.sliding_window == 4
    assert config.get_text_config(decoder=True) is config


def test_continuous_batching_is_refused() -> None:
    pair = a_pair()
    with pytest.raises(KinfolkError, match="continuous batching"):
        pair.generate_batch([[1, 2, 3]])
    with pytest.raises(KinfolkError, match="continuous batching"):
        pair.init_continuous_batching()


@pytest.mark.parametrize("names", [("llama", "llama tied"), ("llama tied", "gemma3_text"), ("mixtral", "gpt2")])
def test_a_saved_pair_is_the_same_pair(names: tuple[str, str], tmp_path: Path) -> None:
    pair = Pair.of(model(names[0], 1), model(names[1], 2), alpha=0.75)
    pair.generation_config.eos_token_id = 9
    save_pair(pair, a_tokenizer(), tmp_path)
    loaded, tokenizer = load_pair(tmp_path)
    by_name = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(by_name, Pair) and not loaded.training
    with torch.no_grad():
        wanted = pair(PROMPT).logits
        assert torch.equal(loaded(PROMPT).logits, wanted) and torch.equal(by_name(PROMPT).logits, wanted)
    assert loaded.alpha == 0.75 and loaded.generation_config.eos_token_id == 9
    assert tokenizer("w3 w5")["input_ids"] == [3, 5]
    assert load_pair(tmp_path, alpha=0.25)[0].alpha == 0.25
    for one, kept in ((loaded.base, pair.base), (loaded.value, pair.value)):
        tied = one.get_output_embeddings().weight is one.get_input_embeddings().weight
        assert tied == bool(kept.config.tie_word_embeddings)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, PairConfig) and config.base.model_type == pair.base.config.model_type


def test_a_pair_can_be_loaded_in_bfloat16_and_still_adds_up_in_float32(tmp_path: Path) -> None:
    save_pair(a_pair(), a_tokenizer(), tmp_path)
    pair, _ = load_pair(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pair.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        logits = pair(PROMPT).logits
        assert torch.equal(logits, pair.base(PROMPT).logits.float() + pair.value(PROMPT).logits.float())
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "llama tied", "gemma3_text", "gpt2"])
def test_a_zeroed_head_starts_at_the_base(name: str, tmp_path: Path) -> None:
    base, value = model("llama", 1), model(name, 2)
    embedding = value.get_input_embeddings().weight.detach().clone()
    pair = Pair.of(base, zero_head(value))
    with torch.no_grad():
        wanted = base(PROMPT).logits
        assert torch.equal(pair(PROMPT).logits, wanted)
    assert torch.equal(value.get_input_embeddings().weight, embedding)
    value.init_weights()  # ties again whatever it takes for tied
    pair.tie_weights()
    pair.save_pretrained(tmp_path)
    loaded = Pair.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(pair(PROMPT).logits, wanted)
        assert torch.equal(loaded(PROMPT).logits, wanted)
    assert torch.equal(loaded.value.get_input_embeddings().weight, embedding)
    torch.nn.functional.cross_entropy(pair(PROMPT).logits[0, :-1], PROMPT[0, 1:]).backward()
    gradients = {
        key for key, one in value.named_parameters() if one.grad is not None and float(one.grad.abs().max()) > 0
    }
    assert gradients == {"lm_head.weight"}


def test_no_gradient_reaches_the_base_and_it_stays_in_evaluation_mode() -> None:
    base, value = model("llama", 1), model("gpt2", 2)
    pair = Pair.of(base, value).train()
    assert pair.training and value.training and not any(module.training for module in base.modules())
    pair(PROMPT).logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(parameter.grad is not None for parameter in value.parameters())


def test_one_change_of_logits_serves_several_bases() -> None:
    value = model("qwen3", 2)
    pairs = [Pair.of(model("llama", seed), value, alpha=0.5) for seed in (1, 3)]
    with torch.no_grad():
        change = pairs[0].value_logits(PROMPT)
        for pair in pairs:
            assert torch.equal(pair.combined(pair.base(PROMPT).logits, change), pair(PROMPT).logits)


@pytest.mark.parametrize("rows", [50, 64])
def test_padding_of_the_vocabulary_may_differ(rows: int) -> None:
    base, value = model("llama", 1), model("llama", 2, vocab_size=rows)
    common = min(rows, 53)
    with torch.no_grad():
        wanted = base(PROMPT % 50).logits
        wanted[..., :common] += value(PROMPT % 50).logits[..., :common]
        assert torch.equal(Pair.of(base, value)(PROMPT % 50).logits, wanted)


def test_what_is_no_pair_is_refused() -> None:
    base, value = model("llama", 1), model("llama", 2)
    with pytest.raises(KinfolkError, match="same model"):
        Pair.of(base, base)
    with pytest.raises(KinfolkError, match="scheme"):
        Pair.of(base, value, scheme="parallel")
    with pytest.raises(KinfolkError, match="vocabulary of 2000"):
        Pair.of(base, model("llama", 2, vocab_size=2000))
    with pytest.raises(KinfolkError, match="not a decoder"):
        Pair.of(Pair.of(base, value), model("llama", 3))
    with pytest.raises(KinfolkError, match="one vocabulary"):
        PairConfig(base=base.config, value=value.config, scheme="cascade", vocabulary="vocabulary.safetensors")
    with pytest.raises(KinfolkError, match="configs of both"):
        PairConfig()
    with pytest.raises(KinfolkError, match="base's logits"):
        Pair.of(base, value, scheme="cascade").value_logits(PROMPT)
    with pytest.raises(KinfolkError, match="resized"):
        Pair.of(base, value).resize_token_embeddings(60)
    offloaded = DynamicCache()  # one that transformers makes so itself wants a stream of the machine's
    offloaded.offloading = True
    with pytest.raises(KinfolkError, match="offloaded"):
        Pair.of(base, value)(PROMPT, past_key_values=offloaded, use_cache=True)


def test_a_pair_of_what_is_no_language_model_yet_says_so() -> None:
    value = model("llama", 2)
    value.config.token_ready = False
    assert Pair.of(model("llama", 1), value).config.token_ready is False


def test_any_command_that_loads_checkpoints_loads_pairs(tmp_path: Path) -> None:
    pair = a_pair()
    save_pair(pair, a_tokenizer(), tmp_path)
    loaded, _ = load_checkpoint(tmp_path, "cpu")
    assert isinstance(loaded, Pair)
    windows = torch.arange(24).reshape(2, 12)
    assert adjacent_kl(loaded, pair, windows, "cpu").kl_small_to_large == pytest.approx(0, abs=1e-9)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    save_pair(a_pair(), a_tokenizer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["value"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(KinfolkError, match="lack"):
        load_pair(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(KinfolkError, match="cannot be loaded"):
        load_pair(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(KinfolkError, match="no weights"):
        load_pair(tmp_path)
    plain = tmp_path / "plain"
    model("llama", 1).save_pretrained(plain)
    with pytest.raises(KinfolkError, match="not a pair"):
        load_pair(plain)
    kept = (plain / "config.json").read_bytes()
    with pytest.raises(KinfolkError, match="something else"):
        save_pair(a_pair(), a_tokenizer(), plain)
    assert (plain / "config.json").read_bytes() == kept


def test_a_pair_replaces_a_pair_as_a_whole(tmp_path: Path) -> None:
    save_pair(a_pair(), a_tokenizer(), tmp_path)
    (tmp_path / "left over").write_text("")
    save_pair(a_pair(alpha=0.5), a_tokenizer(), tmp_path)
    assert load_pair(tmp_path)[0].alpha == 0.5 and not (tmp_path / "left over").exists()
