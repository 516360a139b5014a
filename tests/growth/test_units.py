"""Head size, groups of query heads, vocabulary and experts: axes that grow by rules of their own; and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from zoo import (
    KINDS,
    VOCABULARY,
    Float64,
    Kind,
    checkpoint_of,
    child_config,
    child_of,
    difference,
    empty_model,
    logits_of,
    parent_config,
    parent_model,
    randomise,
    some_tokens,
)

from kinfolk.errors import KinfolkError
from kinfolk.growth.claims import obstacles, what_breaks
from kinfolk.growth.grow import grow_moments, grow_weights
from kinfolk.growth.sizes import config_fields, sizes_of_config, with_fields
from kinfolk.plan.stages import Operator

NOISY = Operator(noise=0.5)
EXACT_WIDTHS = ("energy_split", "lemon", "zero_pad")
LARGER_HEADS = ("llama", "llama biases", "llama scaled rotary", "mistral", "qwen2", "gemma2", "gpt2", "phi3", "mixtral")


def larger_heads(kind: str, times: int) -> list[dict[str, Any]]:
    if kind == "gpt2":
        return [{"hidden_size": 16 * times, "head_dim": 4 * times}]
    more = {"hidden_size": 27, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 31}
    return [{"head_dim": 4 * times}, {"head_dim": 4 * times, **more}]


@pytest.mark.parametrize("kind", LARGER_HEADS)
def test_larger_heads(kind: str) -> None:
    model = parent_model(kind)
    for width in EXACT_WIDTHS:
        for changes in larger_heads(kind, 2 if width == "lemon" else 3):
            assert difference(model, child_of(model, changes, Operator(width, noise=0.5))) < 1e-11, changes


def test_fpi_and_aki_of_larger_heads_alone_are_exact() -> None:
    model = parent_model("llama")
    for width in ("fpi", "aki"):
        assert difference(model, child_of(model, {"head_dim": 8}, Operator(width))) < 1e-11


def scaled(kind: str, rope_type: str) -> Kind:
    rope = {"rope_type": rope_type, "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 128}
    return Kind(KINDS[kind].architecture, KINDS[kind].config | {"rope_parameters": rope})


def test_larger_heads_with_scaled_rotary_positions() -> None:
    model = randomise(empty_model(parent_config(scaled("llama", "linear"))))
    assert difference(model, child_of(model, {"head_dim": 12}, NOISY)) < 1e-11
    model = randomise(empty_model(parent_config(scaled("llama", "yarn"))))
    with pytest.raises(KinfolkError, match="yarn"):
        child_of(model, {"head_dim": 12}, NOISY)
    assert difference(model, child_of(model, {"num_attention_heads": 8}, NOISY)) < 1e-11


def test_yarn_is_refused_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfolk.growth.claims._SCALED_BY_FREQUENCY", ("yarn",))
    model = randomise(empty_model(parent_config(scaled("llama", "yarn"), head_dim=16)))
    assert difference(model, child_of(model, {"head_dim": 48}, NOISY)) > 1e-3


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "olmo2", "gpt_neox", "qwen3_moe"])
def test_heads_that_cannot_grow(kind: str) -> None:
    changes = {"head_dim": 8, "hidden_size": 32}
    with pytest.raises(KinfolkError, match=r"head size of .* cannot grow"):
        child_of(parent_model(kind), changes, NOISY)


def test_partly_rotated_heads_cannot_grow() -> None:
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
    config = parent_config(Kind("phi3", KINDS["phi3"].config | {"rope_parameters": rope}))
    parent = sizes_of_config(config)
    found = obstacles(NOISY, parent, with_fields(parent, {"head_dim": 8}), "phi3")
    assert [misfit.field for misfit in found] == ["head_dim"]
    assert "part of every head" in found[0].problem


@pytest.mark.parametrize("kind", ["llama", "olmo2", "phi3", "qwen3_moe"])
@pytest.mark.parametrize("width", [*EXACT_WIDTHS, "fpi"])
def test_groups_of_query_heads(kind: str, width: Any) -> None:
    for heads, groups, more in (
        (4, 1, [(4, 2), (4, 4), (8, 4), (16, 4), (8, 1), (6, 3)]),
        (8, 2, [(8, 4), (8, 8), (12, 4), (20, 5)]),
    ):
        sizes = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": 48}
        model = randomise(empty_model(parent_config(KINDS[kind], **sizes)))
        for new_heads, new_groups in more[: 6 if kind == "llama" else 2]:
            changes = {"num_attention_heads": new_heads, "num_key_value_heads": new_groups}
            if kind == "llama" and 48 % new_heads:
                changes["hidden_size"] = 60
                if width == "fpi":
                    continue
            assert difference(model, child_of(model, changes, Operator(width, noise=0.5))) < 1e-11, changes


@pytest.mark.parametrize("kind", ["llama", "llama untied", "gemma3_text", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("width", EXACT_WIDTHS)
def test_vocabulary(kind: str, width: Any) -> None:
    model = parent_model(kind)
    wider = {} if kind.startswith("gpt") else {"hidden_size": 24}
    child = child_of(model, {"vocab_size": VOCABULARY + 9, **wider}, Operator(width))
    assert difference(model, child) < 1e-11
    logits = logits_of(child, some_tokens())
    mean = logits[..., :VOCABULARY].mean(-1, keepdim=True)
    assert (logits[..., VOCABULARY:] - mean).abs().max() < 1e-11


def test_moments_of_new_tokens_are_zero() -> None:
    model = parent_model("llama")
    parent = sizes_of_config(model.config)
    child = with_fields(parent, {"vocab_size": VOCABULARY + 9})
    tensors = checkpoint_of(model)
    for grown in grow_moments(tensors, tensors, "llama", parent, child, NOISY):
        moments = grown["model.embed_tokens.weight"]
        assert torch.equal(moments[:VOCABULARY], tensors["model.embed_tokens.weight"])
        assert not moments[VOCABULARY:].any()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen3_moe normed"])
def test_experts(kind: str) -> None:
    model = parent_model(kind)
    before = sizes_of_config(model.config)
    assert before.experts and before.experts_per_token
    wider = {"hidden_size": 24, "intermediate_size": 31}
    for times, width, more in (
        (2, "energy_split", {}),
        (3, "energy_split", wider),
        (2, "lemon", wider),
        (2, "zero_pad", wider),
        (2, "fpi", {"intermediate_size": 31}),
    ):
        experts = {
            "num_local_experts": times * before.experts,
            "num_experts_per_tok": times * before.experts_per_token,
        }
        for operator in (Operator(width, noise=0.5), Operator(width, snr=5.0)):  # type: ignore[arg-type]
            assert difference(model, child_of(model, experts | more, operator)) < 1e-11, (times, width)
    for changes in (
        {"num_local_experts": 2 * before.experts},
        {"num_local_experts": before.experts + 1, "num_experts_per_tok": before.experts_per_token + 1},
        {"num_experts_per_tok": before.experts_per_token + 1},
    ):
        assert what_breaks(NOISY, before, with_fields(before, changes), model.config.model_type)
        assert difference(model, child_of(model, changes, NOISY)) > 1e-3, changes
    for changes, match in (({"num_experts_per_tok": 9}, "experts per token"), ({"num_local_experts": 2}, "shrink")):
        with pytest.raises(KinfolkError, match=match):
            child_of(model, changes, NOISY)


@pytest.mark.parametrize("kind", KINDS)
def test_through_files(kind: str, tmp_path: Path) -> None:
    model = parent_model(kind)
    model.save_pretrained(tmp_path / "parent")
    tensors = load_file(tmp_path / "parent" / "model.safetensors")
    parent = sizes_of_config(model.config)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32}
    changes: dict[str, Any] = {"num_hidden_layers": 3, **heads}
    if KINDS[kind].architecture.startswith("gpt"):
        changes["num_key_value_heads"] = 8
    if parent.experts and parent.experts_per_token:
        changes |= {"num_local_experts": 2 * parent.experts, "num_experts_per_tok": 2 * parent.experts_per_token}
    child = with_fields(parent, changes)
    operator = Operator(placement="even")
    grown = grow_weights(tensors, KINDS[kind].architecture, parent, child, operator)
    (tmp_path / "child").mkdir()
    save_file(grown, tmp_path / "child" / "model.safetensors", {"format": "pt"})
    config = child_config(model.config, child, operator)
    config.save_pretrained(tmp_path / "child")
    assert sizes_of_config(config) == child
    keywords = {"experts_implementation": "eager"} if parent.experts else {}
    attention = model.config._attn_implementation
    with Float64():
        loaded, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "child", output_loading_info=True, attn_implementation=attention, **keywords
        )
    assert not any(info.values()), info
    assert loaded.dtype == torch.float64
    exact_scale(loaded)
    assert difference(model, loaded.eval()) < 1e-11


def exact_scale(model: Any) -> None:
    """Gemma keeps the square root of its hidden size in the default dtype at the time of loading."""
    for module in model.modules():
        if hasattr(module, "embed_scale"):
            module.embed_scale = torch.tensor(model.config.hidden_size**0.5, dtype=torch.float64)


def test_configs_that_transformers_refuses() -> None:
    config = parent_config(KINDS["llama"])
    child = with_fields(sizes_of_config(config), {"hidden_size": 22, "num_attention_heads": 8})
    with pytest.raises(KinfolkError, match="multiple"):
        config_fields(child, config, (0, 1))
    config = parent_config(KINDS["qwen3"])
    assert config_fields(child, config, (0, 1))["hidden_size"] == 22
