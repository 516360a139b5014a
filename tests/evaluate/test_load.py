import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint, read_text, separator_of


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A complete checkpoint, in bfloat16."""
    folder = tmp_path_factory.mktemp("saved")
    tiny().to(torch.bfloat16).save_pretrained(folder)
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:60]]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_loads_in_float32_and_silently(saved, tiny, capfd):
    model, tokenizer = load_checkpoint(saved, "cpu")
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = tiny().to(torch.bfloat16).float().state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    assert tokenizer.decode(tokenizer("ABC")["input_ids"]) == "ABC"
    assert capfd.readouterr() == ("", "")


def test_separator_is_what_the_model_says(saved):
    model, tokenizer = load_checkpoint(str(saved), "cpu")
    model.config.bos_token_id = 7
    assert separator_of(model, tokenizer) == 7
    model.config.bos_token_id = None
    assert separator_of(model, tokenizer) == 0
    tokenizer.eos_token = None
    assert separator_of(model, tokenizer) is None


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def remote_code(folder):
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    (folder / "mine.py").write_text("raise SystemExit('remote code was run')")


def lost_shard(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "no config.json"),
        (write("config.json", b"{"), "config.json: not valid JSON"),
        (write("config.json", b"[]"), "config.json: not a JSON object"),
        (remove("model.safetensors"), "holds no weights"),
        (pickle_only, "are a pickle.*no safetensors"),
        (cut_weights, "weights cannot be loaded"),
        (write("model.safetensors", b""), "weights cannot be loaded"),
        (write("model.safetensors", b"\xff" * 1000), "weights cannot be loaded"),
        (drop_a_tensor, "lack 1 tensors of the model, first model.norm.weight"),
        (lost_shard, "weights cannot be loaded"),
        (lambda folder: edit_config(folder, hidden_size=32), "weights cannot be loaded"),
        (lambda folder: edit_config(folder, hidden_size="wide"), "config.json cannot be used"),
        (lambda folder: edit_config(folder, model_type="nonesuch"), "does not know this architecture"),
        (lambda folder: edit_config(folder, model_type="t5"), "not a causal language model"),
        (remote_code, "own Python code"),
        (remove("tokenizer.json"), "no tokenizer"),
        (write("tokenizer.json", b"{}"), "tokenizer cannot be loaded"),
        (write("tokenizer.json", b"\xff"), "tokenizer cannot be loaded"),
    ],
)
def test_damaged_folders(folder, damage, message, capfd):
    damage(folder)
    with pytest.raises(KinfolkError, match=message) as caught:
        load_checkpoint(folder, "cpu")
    assert str(folder) in str(caught.value) and caught.value.fix
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "runs/a/members/b", "runs/"])
def test_folders_that_are_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KinfolkError, match="no such folder"):
        load_checkpoint(name, "cpu")


def test_a_missing_folder_in_a_folder_is_not_a_hub_name(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    with pytest.raises(KinfolkError, match="there is no such folder\n"):
        load_checkpoint(f"{folder.parent.name}/other", "cpu")


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(KinfolkError, match="no such folder"):
        load_checkpoint(folder / "config.json", "cpu")


def test_hub_names_without_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KinfolkError, match="cannot be had from the Hugging Face hub"):
        load_checkpoint("kinfolk-tests/nonesuch", "cpu")


def test_text_is_read_byte_for_byte(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("a\r\nné\n".encode())
    assert read_text(path) == "a\r\nné\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"good\nna\xefve", r"text.txt: byte 7 \(0xef\) is not UTF-8"), (b"", "no text"), (b" \n", "no text")],
)
def test_faulty_text(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(KinfolkError, match=message):
        read_text(path)


def test_text_that_cannot_be_read(tmp_path):
    with pytest.raises(KinfolkError, match="no such file"):
        read_text(tmp_path / "absent.txt")
    with pytest.raises(KinfolkError, match="cannot be read"):
        read_text(tmp_path)
