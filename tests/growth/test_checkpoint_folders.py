"""Growth of checkpoint folders: streamed, proven, refused when damaged, never half-written."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stories260k
import torch
from checkpoints import VOCABULARY, WIDER, changes_of, contents, logits, model, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.evaluate.loss import encode_documents, score
from kinfolk.growth import product, rows, safetensors_writer
from kinfolk.growth.compare import compare
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.live import grow_model
from kinfolk.growth.precision import computing_in
from kinfolk.growth.product import GrowthFailedError, grow_checkpoint
from kinfolk.growth.safetensors import Weights
from kinfolk.growth.sizes import sizes_of_config
from kinfolk.growth.streamed import streamed_model
from kinfolk.growth.tables import architectures
from kinfolk.plan.stages import Operator

NOISY, PLAIN = Operator(), Operator(noise=0.0)
TOKENS = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("architecture", architectures())
def test_every_architecture_is_grown_proven_and_loaded_by_transformers(architecture: str, tmp_path: Path) -> None:
    for tied in (False, True):
        source, target = save(tmp_path / f"source {tied}", architecture, tied), tmp_path / f"target {tied}"
        growth = grow_checkpoint(source, target, changes_of(architecture), NOISY, verify_dtype=torch.float64)
        assert growth.passed
        assert growth.comparison is not None
        assert growth.comparison.max_abs_logit > 3
        assert growth.comparison.max_residual_difference is not None
        before, after = logits(source, TOKENS), logits(target, TOKENS)
        assert (before - after).abs().max() < 1e-5 * before.abs().max()
        assert growth.parameters_before == sum(p.numel() for p in model(architecture, tied).parameters())
        assert growth.parameters_after == sum(tensor.numel() for tensor in stored(target).values())
        assert [path.name for path in tmp_path.glob("*.unfinished")] == []


@pytest.mark.parametrize("architecture", architectures())
def test_a_streamed_model_computes_what_transformers_computes(architecture: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", architecture, tied=architecture in ("gpt2", "gpt_neox", "gemma2"))
    original: Any = model(architecture, architecture in ("gpt2", "gpt_neox", "gemma2"))
    with Weights(source) as weights:
        streamed = streamed_model(original.config, weights, torch.float32)
        assert all(p.device.type == "meta" for p in streamed.parameters())
        with torch.no_grad(), computing_in(torch.float32):
            found = streamed(TOKENS).logits
    wanted = logits(original, TOKENS)
    if architecture == "gemma2":  # sdpa, transformers' default here, leaves the soft cap of attention out
        original.set_attn_implementation("eager")
        wanted = logits(original, TOKENS)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("architecture", "operator"),
    [
        ("llama", NOISY),
        ("llama", Operator(width="lemon", seed=3)),
        ("llama", Operator(width="aki", depth="interpolate")),
        ("llama", Operator(width="fpi", snr=10.0)),
        ("llama", Operator(width="zero_pad")),
        ("gemma2", Operator(placement="even")),
        ("mixtral", NOISY),
        ("gpt2", Operator(width="lemon")),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_growth_is_growth_in_memory(
    architecture: str, operator: Operator, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = save(tmp_path / "source", architecture, False, dtype), tmp_path / "target"
    changes = changes_of(architecture) | {"vocab_size": 70}
    config = model(architecture).config
    parent = sizes_of_config(config)
    child = product.prepare.__globals__["child_sizes"](config, changes, operator)
    whole = grow_weights(stored(source), architecture, parent, child, operator)
    # Blocks of a few rows each, so that a tensor has many of them.
    monkeypatch.setattr(rows, "ELEMENTS_PER_BLOCK", 200)
    grow_checkpoint(source, target, changes, operator, verify=False)
    streamed = stored(target)
    assert streamed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert tensor.dtype == dtype
        assert torch.equal(streamed[name], tensor), name


def test_a_live_model_is_grown_as_its_checkpoint_is(tmp_path: Path) -> None:
    for architecture in ("llama", "mixtral"):
        source, target = save(tmp_path / f"{architecture}-source", architecture), tmp_path / architecture
        grow_checkpoint(source, target, WIDER, NOISY, verify=False)
        live = grow_model(model(architecture), WIDER, NOISY)
        assert torch.equal(logits(live, TOKENS), logits(target, TOKENS))


def test_the_same_command_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        grow_checkpoint(source, tmp_path / name, WIDER, NOISY)
    grow_checkpoint(source, tmp_path / "other", WIDER, replace(NOISY, seed=1))
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one["model.safetensors"] != other["model.safetensors"]
    lineage = json.loads(one["growth.json"])
    assert lineage["operator"]["seed"] == 0
    assert lineage["claims_preservation"] is True
    assert lineage["verification"]["max_abs_logit_difference"] > 0
    assert lineage["maps_sha256"] == json.loads(other["growth.json"])["maps_sha256"]
    assert lineage["parent"]["sha256"].keys() == {"config.json", "model.safetensors"}
    assert str(tmp_path) not in one["growth.json"].decode() + one["README.md"].decode()
    assert lineage["maps_sha256"] in one["README.md"].decode()


def test_several_shards_and_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        source, target = save(tmp_path / f"{dtype}", dtype=dtype), tmp_path / f"{dtype} grown"
        monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 20_000)
        growth = grow_checkpoint(source, target, WIDER, NOISY)
        assert growth.passed
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 3
        for name, file in index["weight_map"].items():
            with safe_open(target / file, "pt") as opened:
                assert opened.get_tensor(name).dtype == dtype
        again = tmp_path / f"{dtype} again"
        assert grow_checkpoint(target, again, {"num_hidden_layers": 4}, NOISY, dtype=torch.float32).passed
        assert json.loads((again / "config.json").read_text())["dtype"] == "float32"
        assert json.loads((again / "growth.json").read_text())["parent"]["growth"]["kind"] == "growth"
        assert {tensor.dtype for tensor in stored(again).values()} == {torch.float32}


def test_a_larger_vocabulary_keeps_the_logits_of_the_old_tokens(source: Path, tmp_path: Path) -> None:
    growth = grow_checkpoint(source, tmp_path / "target", {"vocab_size": 80}, NOISY)
    assert growth.passed
    assert growth.comparison is not None
    before, after = logits(source, TOKENS), logits(tmp_path / "target", TOKENS)
    assert (before - after[..., :VOCABULARY]).abs().max() < 1e-5
    tokens, _ = product_tokens(source)
    mass = logits(tmp_path / "target", tokens).double().softmax(-1)[..., VOCABULARY:].sum(-1).mean()
    assert growth.comparison.new_token_mass == pytest.approx(float(mass), rel=1e-4)
    assert growth.comparison.new_token_mass < 19 / 80


def product_tokens(source: Path) -> tuple[torch.Tensor, str]:
    from kinfolk.growth.checkpoint import open_parent
    from kinfolk.growth.proof import tokens_for

    with open_parent(source) as parent:
        return tokens_for(parent, None)


def test_stories260k_tells_the_same_stories(tmp_path: Path) -> None:
    if not stories260k.MODEL.exists():
        pytest.skip(f"needs {stories260k.MODEL}")
    source, target = tmp_path / "source", tmp_path / "target"
    stories260k.load_model().save_pretrained(source)
    stories260k.load_tokenizer().save_pretrained(source)
    text = tmp_path / "stories.txt"
    text.write_text(stories260k.stories()[0], "utf-8")
    changes: Any = {
        "hidden_size": 96,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "intermediate_size": 300,
        "num_hidden_layers": 7,
    }
    growth = grow_checkpoint(source, target, changes, NOISY, text=text, verify_dtype=torch.float64)
    assert growth.passed
    assert growth.comparison is not None
    assert growth.comparison.loss_before == pytest.approx(growth.comparison.loss_after, abs=1e-6)
    assert growth.text is not None and growth.text.endswith("of stories.txt")
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    for folder in (source, target):
        loaded, tokenizer = load_checkpoint(folder, "cpu")
        documents = encode_documents(tokenizer, stories260k.stories()[:60])
        # The documented loss of stories260K on these.
        assert score(loaded, documents, 1, 512, "cpu").loss == pytest.approx(1.3174, abs=5e-4)


# faults


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])


def no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))


def endless_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(b'"shape":[', b'"shape":[1e999,', 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def lose_the_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.lora_A": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})


def wrong_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=56)


def other_model_type(folder: Path) -> None:
    change_config(folder, model_type="bloom")


def quantized(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq"})


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def nameless_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 32}')


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: each.to(torch.int8) for name, each in tensors.items()}, folder / "model.safetensors")


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "b.safetensors").unlink()


def swap_shards(folder: Path) -> None:
    shard(folder)
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated"),
        (truncate_header, "truncated in its header"),
        (no_safetensors, "is no safetensors file"),
        (empty, "is no safetensors file"),
        (damage_header, "header is damaged"),
        (endless_shape, "header is damaged"),
        (pickle_only, "pickle"),
        (lose_a_tensor, "layer 1 lacks the tensor mlp.up_proj.weight"),
        (lose_the_head, "lacks the tensor lm_head.weight"),
        (add_a_tensor, "has no parameter 'model.layers.0.lora_A'"),
        (wrong_shape, "the parent's shape says"),
        (other_model_type, "no table of parameter axes"),
        (quantized, "quantized"),
        (broken_config, "not valid JSON"),
        (nameless_config, "no model_type"),
        (no_config, "no config.json"),
        (integers, "no floating-point numbers"),
        (lose_a_shard, "the file is missing"),
        (swap_shards, "lacks the tensor"),
        (not_finite, "not finite"),
    ],
)
def test_a_damaged_source_is_refused_and_left_alone(damage: Any, message: str, source: Path, tmp_path: Path) -> None:
    damage(source)
    before = contents(source)
    with pytest.raises(KinfolkError, match=message) as caught:
        grow_checkpoint(source, tmp_path / "target", WIDER, NOISY)
    assert caught.value.fix
    assert contents(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "nothing is left behind"


@pytest.mark.parametrize(
    ("changes", "message", "fix"),
    [
        ({"hidden_size": 16}, "cannot shrink", "32"),
        ({"hidden_sise": 64}, "nothing that grows", "did you mean hidden_size"),
        ({"max_position_embeddings": 4096}, "nothing that grows", "known: head_dim, hidden_size"),
        ({"hidden_size": 49, "num_attention_heads": 4}, "no multiple", "hidden_size 52"),
        ({"num_attention_heads": 5}, "KV heads", "query heads"),
        ({"vocab_size": 60}, "cannot shrink", "61"),
        ({"num_local_experts": 2}, "no experts", "leave"),
        ({"model_type": "qwen3"}, "architecture", "same"),
    ],
)
def test_shapes_that_cannot_be_reached_name_the_nearest(
    changes: Any, message: str, fix: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(KinfolkError, match=message) as caught:
        grow_checkpoint(source, tmp_path / "target", changes, NOISY)
    assert fix in str(caught.value.fix)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_targets_that_must_not_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for target, message in (
        (tmp_path / "full", "there already"),
        (source, "there already"),
        (source / "inside", "lies in the source"),
    ):
        with pytest.raises(KinfolkError, match=message):
            grow_checkpoint(source, target, WIDER, NOISY)
    assert (tmp_path / "full" / "thesis.tex").exists()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(KinfolkError, match="1,000 are free"):
        grow_checkpoint(source, tmp_path / "target", WIDER, NOISY)


def test_a_disk_that_fills_up_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.pwrite, 0

    def fills_up(handle: int, data: Any, at: int) -> int:
        nonlocal written
        written += len(data)
        if written > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data, at)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(KinfolkError, match="disk is full"):
        grow_checkpoint(source, tmp_path / "target", WIDER, NOISY)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("place", ["kinfolk.growth.compare._States.put", "kinfolk.growth.lineage.write"])
def test_a_disk_that_fills_up_late_leaves_nothing(
    place: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills_up(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, fills_up)
    with pytest.raises(KinfolkError, match="disk is full"):
        grow_checkpoint(source, tmp_path / "target", WIDER, NOISY)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_killed_in_the_middle_nothing_looks_finished(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    child = os.fork()
    if not child:
        write = os.pwrite

        def killed(handle: int, data: Any, at: int) -> int:
            if at > 5000:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(handle, data, at)

        os.pwrite = killed
        grow_checkpoint(source, target, WIDER, NOISY)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not target.exists()
    assert grow_checkpoint(source, target, WIDER, NOISY).passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


# verification that fails


def corrupt(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Change the child's tensors after they were grown."""
    write = product.write_weights

    def corrupted(job: Any, folder: Path, progress: Any) -> None:
        write(job, folder, progress)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(product, "write_weights", corrupted)


def one_wrong_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.self_attn.q_proj.weight"][:8] *= 1.01


def new_block_that_speaks(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.2.mlp.down_proj.weight"] += 1e-3


def cancelling_copies(tensors: dict[str, torch.Tensor]) -> None:
    """Two copies of hidden unit 3 go apart by as much: their readers, who share them evenly, see their sum alone."""
    tensors["model.embed_tokens.weight"][:, 3] += 1e-3
    tensors["model.embed_tokens.weight"][:, 35] -= 1e-3


@pytest.mark.parametrize("change", [one_wrong_head, new_block_that_speaks, cancelling_copies])
def test_a_corrupted_tensor_fails_and_nothing_is_kept(
    change: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(monkeypatch, change)
    with pytest.raises(GrowthFailedError, match="does not") as caught:
        grow_checkpoint(source, tmp_path / "target", WIDER, PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    measured = caught.value.comparison
    assert measured.max_residual_difference is not None and measured.max_residual_difference > 1e-4
    if change is cancelling_copies:
        assert measured.worst_layer == -1
        assert measured.max_abs_logit_difference < 1e-4 * measured.max_abs_logit, "logits alone do not tell"


def test_what_claims_nothing_is_measured_only_when_asked(source: Path, tmp_path: Path) -> None:
    stack = Operator(depth="stack")
    quiet = grow_checkpoint(source, tmp_path / "one", {"num_hidden_layers": 4}, stack)
    assert quiet.comparison is None and quiet.passed is None and quiet.breaks
    loud = grow_checkpoint(source, tmp_path / "two", {"num_hidden_layers": 4}, stack, verify=True)
    assert loud.passed is None and loud.comparison is not None
    assert loud.comparison.max_abs_logit_difference > 0.1
    assert loud.comparison.max_residual_difference is None
    before, after = (logits(path, product_tokens(source)[0]).double() for path in (source, tmp_path / "two"))
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    assert loud.comparison.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def test_a_nan_is_not_within_tolerance(source: Path) -> None:
    with Weights(source) as weights:
        good = streamed_model(model().config, weights, torch.float32)
        bad = streamed_model(model().config, weights, torch.float32)
        bad.lm_head.forward = lambda inputs: torch.full((*inputs.shape[:-1], VOCABULARY), float("nan"))
        assert not compare(good, bad, TOKENS, torch.float32, 1e-4).within_tolerance
        assert compare(good, good, TOKENS, torch.float32, 1e-4).within_tolerance


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"kind": NaN}'])
def test_a_damaged_record_of_an_earlier_growth(source: Path, tmp_path: Path, content: str) -> None:
    (source / "growth.json").write_text(content)
    with pytest.raises(KinfolkError, match="how the parent was grown is damaged"):
        grow_checkpoint(source, tmp_path / "target", WIDER, NOISY)
    assert not (tmp_path / "target").exists()
