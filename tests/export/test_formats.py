"""GGUF and quantised exports: read back by transformers, and what they cost."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stub import metadata_faults
from huggingface_hub import ModelCard
from micro import write_corpus
from tiny_checkpoints import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint, separator_of
from kinfolk.evaluate.measure import measure
from kinfolk.evaluate.text import Text
from kinfolk.export import gguf
from kinfolk.export.export import export_models
from kinfolk.export.formats import FORMATS

TEXT = "The abcd raven's façade 学校  \n\n x12345 can't <b>"
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 270,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama-biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "tie_word_embeddings": False}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 24, "tie_word_embeddings": True}),
}

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
needs_compressed = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)


def checkpoint(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A random model whose biases and norms are not what they begin as, with a byte-level tokenizer of 265 entries."""
    make, config, more = MODELS[kind]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = make(config(**(SIZES | more | changes))).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    byte_tokenizer(8).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        return model.eval()(ids).logits  # type: ignore[no-any-return]


@needs_gguf
@pytest.mark.parametrize("kind", list(MODELS))
def test_a_gguf_is_read_back_by_transformers(tmp_path: Path, kind: str) -> None:
    plan = gguf.plan_gguf(checkpoint(tmp_path / "model", kind))
    original = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32))
    errors, sizes = [], []
    for precision in ("f32", "f16", "q8_0", "q4_0"):
        folder = tmp_path / precision
        folder.mkdir()
        assert gguf.write_gguf(plan, folder / "model.gguf", precision, lambda done, of: None) == 0
        gguf.copy_config(tmp_path / "model", folder)
        model, tokenizer = load_checkpoint(folder, "cpu")
        errors.append(float((logits(model) - original).abs().max()))
        sizes.append((folder / "model.gguf").stat().st_size)
        ours = byte_tokenizer(8)
        assert tokenizer(TEXT)["input_ids"] == ours(TEXT)["input_ids"]
        assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
        # transformers 5.17 takes no BOS of these tokenizers from a GGUF; what begins documents is found all the same.
        assert separator_of(model, tokenizer) == ours.bos_token_id
        assert tokenizer.eos_token_id == ours.eos_token_id
        assert tokenizer("<|endoftext|>")["input_ids"] == [0]
    assert errors[0] == 0  # to the last bit
    assert 0 < errors[1] < 0.05 and errors[1] < errors[2] < 1 and errors[2] < errors[3]
    assert sizes == sorted(sizes, reverse=True) and sizes[3] < 0.3 * sizes[0]


@needs_gguf
def test_the_same_figures_in_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp itself, where a binding of it is installed (xllamacpp, which has wheels)."""
    llama_cpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    for kind in MODELS:
        folder = tmp_path / kind
        plan = gguf.plan_gguf(checkpoint(folder, kind))
        gguf.write_gguf(plan, tmp_path / f"{kind}.gguf", "f32", lambda done, of: None)
        parameters = llama_cpp.CommonParams()
        parameters.model.path = str(tmp_path / f"{kind}.gguf")
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = 64, 1, False
        parameters.cpuparams.n_threads = 1
        parameters.cache_type_k = parameters.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        server = llama_cpp.Server(parameters)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        compared = 0
        for length in (1, 3, 9, 20, 40):
            ids = (torch.arange(length) * 7 + length) % 250 + 1
            question = {"prompt": ids.tolist(), "n_predict": 1, "n_probs": 270, "temperature": -1}
            logprobs = server.handle_completions(question)["choices"][0]["logprobs"]
            if logprobs is None:  # the model ended the text
                continue
            with torch.no_grad():
                wanted = model(ids[None]).logits[0, -1].log_softmax(-1)
            for each in logprobs["content"][0]["top_logprobs"]:
                assert each["logprob"] == pytest.approx(float(wanted[each["id"]]), abs=1e-4)
                compared += 1
        assert compared > 500
        usage = server.handle_completions({"prompt": TEXT, "n_predict": 1})["usage"]
        assert usage["prompt_tokens"] == len(byte_tokenizer(8)(TEXT)["input_ids"])


@needs_gguf
@needs_torchao
@needs_compressed
def test_every_format_of_a_member(finished: Path, tmp_path: Path) -> None:
    model = finished / "members" / "large"
    text = Text(run=finished)
    made = [export_models([model], [each], tmp_path / each, text, False, lambda *_: None)[0] for each in FORMATS]
    original = measure(str(model), text=None, run=finished)
    for each in made:
        cost = each.cost
        assert cost.tokens == original.tokens
        assert cost.loss_difference == pytest.approx(cost.loss - original.loss, abs=1e-9)
        assert cost.bits_per_byte_difference == pytest.approx(cost.bits_per_byte - original.bits_per_byte, abs=1e-9)
        assert cost.bits_per_byte_low is not None and cost.bits_per_byte_high is not None
        assert cost.bits_per_byte_low <= cost.bits_per_byte_difference <= cost.bits_per_byte_high
        weights = [path for path in each.folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
        assert cost.weight_bytes == sum(path.stat().st_size for path in weights)
        assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in each.folder.iterdir())
        card = (each.folder / "README.md").read_text()
        assert metadata_faults(card) == [] and ModelCard(card).data.license == "cc-by-4.0"
        values = {result.metric_type: result.metric_value for result in ModelCard(card).data.eval_results}
        assert values == {"loss": cost.loss, "bits_per_byte": cost.bits_per_byte}
        code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(each.folder))
        loaded: dict[str, Any] = {}
        exec(code, loaded)
        assert torch.isfinite(logits(loaded["model"])).all() and loaded["tokenizer"]("a")["input_ids"]
        assert json.loads((each.folder / "export.json").read_text())["cost"]["loss"] == cost.loss
    by_format = {each.format: each for each in made}
    for form in ("gguf-q4_0", "int8", "int4"):
        again = measure(str(by_format[form].folder), text=None, run=finished)
        assert (by_format[form].cost.loss, by_format[form].cost.bits_per_byte) == (again.loss, again.bits_per_byte)
    assert by_format["gguf-f32"].cost.loss_difference == 0
    assert abs(by_format["gguf-f16"].cost.loss_difference) < 1e-3
    assert 0 < abs(by_format["int8"].cost.loss_difference) < 0.05
    assert abs(by_format["int8"].cost.loss_difference) < abs(by_format["int4"].cost.loss_difference) < 0.5
    assert by_format["int4"].cost.weight_bytes < by_format["int8"].cost.weight_bytes
    assert not list(tmp_path.glob("*.unfinished"))


@needs_torchao
def test_int8_is_what_it_says(tmp_path: Path) -> None:
    """A scale a row and whole numbers from -127 to 127, by the definition."""
    folder = checkpoint(tmp_path / "model")
    write_corpus(tmp_path / "texts", 6)
    text = Text(files=tuple(sorted((tmp_path / "texts").iterdir())))
    export_models([folder], ["int8"], None, text, False, lambda *_: None)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "model-int8", dtype=torch.float32)
    weight = original.model.layers[1].mlp.down_proj.weight
    found = quantised.model.layers[1].mlp.down_proj.weight.dequantize()
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    assert float(((found - weight).abs() / scale).detach().max()) < 1.01  # half a step, but for the largest value
    assert torch.equal(original.model.embed_tokens.weight, quantised.model.embed_tokens.weight)


@needs_gguf
def test_the_command_and_its_table(finished: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    line = ["export", str(finished / "members" / "small"), "--format", "gguf", "--output", str(tmp_path / "out")]
    shown = runner.invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert "gguf-f16" in shown.stdout and "bits per byte" in shown.stdout
    (answer,) = json.loads(runner.invoke(app, [*line, "--json"]).stdout)  # ours may be replaced
    assert answer["folder"] == str(tmp_path / "out") and math.isfinite(answer["cost"]["bits_per_byte_difference"])
    evaluated = runner.invoke(app, ["evaluate", str(tmp_path / "out"), "--run", str(finished), "--json"])
    assert json.loads(evaluated.stdout)["bits_per_byte"] == answer["cost"]["bits_per_byte"]


@needs_gguf
@needs_compressed
def test_refusals_write_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(run=finished)
    small = finished / "members" / "small"
    gemma = tmp_path / "gemma"
    GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=16)).save_pretrained(gemma)
    byte_tokenizer(8).save_pretrained(gemma)
    scaled = checkpoint(
        tmp_path / "scaled", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    )
    spaced = checkpoint(tmp_path / "spaced")
    content = json.loads((spaced / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (spaced / "tokenizer.json").write_text(json.dumps(content))
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("mine")
    before = sorted(tmp_path.iterdir())

    def refused(model: Path, form: str, problem: str, output: Path | None = None) -> None:
        with pytest.raises(KinfolkError, match=problem):
            export_models([model], [form], output, text, False, lambda *_: None)
        assert sorted(tmp_path.iterdir()) == before and not (finished / "exports").exists()

    refused(gemma, "gguf-f16", "knows no gemma")
    refused(scaled, "gguf-f16", "rope_type linear")
    refused(spaced, "gguf-f16", "way of splitting text")
    refused(small, "int4", "rows of 16, 24 are no whole groups")
    refused(small, "gguf-f16", "something else here", occupied)
    refused(small, "gguf-f16", "the checkpoint itself|something else", small)
    refused(tmp_path / "nowhere", "gguf-f16", "no such folder")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(small, "gguf-f16", "gguf is not installed")
    for line in (["export", str(small)], ["export", str(finished), "large", "--format", "int8"]):
        assert isinstance(CliRunner().invoke(app, line).exception, KinfolkError)
    wrong = CliRunner().invoke(app, ["export", str(small), "--format", "int3"])
    assert "no format 'int3'" in str(wrong.exception)
