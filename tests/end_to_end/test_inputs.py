"""Hostile input: no name leaves the run directory, no pickle is loaded, no code of a checkpoint runs."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz import TARGETS, Fuzzed, fuzz
from micro import RecordingView, family, in_child

import kinfolk
from kinfolk.build.build import build
from kinfolk.build.snapshot import export_stage
from kinfolk.data.tokenizer import load_tokenizer
from kinfolk.data.tokens import open_store
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.family.load import load_family
from kinfolk.growth.configs import read_config
from kinfolk.growth.safetensors import Weights
from kinfolk.report.run import read_run
from kinfolk.train import checkpoint
from kinfolk.transfer.chat import prompt_ids

Uninterrupted = tuple[Path, dict[str, bytes]]
PATHS = ["..", ".", "", "../x", "../../../etc/x", "/etc/x", "/", "a/b", "a/../../x", "~", "~root", "-x", ".hidden", "*"]
WINDOWS = [
    "a\\b",
    "..\\x",
    "C:\\x",
    "C:x",
    "\\\\host\\x",
    "CON",
    "con.txt",
    "NUL",
    "Aux",
    "COM1",
    "lpt9.log",
    "a.",
    "a:b",
]
STRANGE = [
    "a\0b",
    "\0",
    "a\nb",
    "a\n",
    "x" * 65,
    "x" * 100_000,
    "ａ",
    "a\u202eb",
    "a b",
    "x.unfinished",
    "$HOME",
    "$(id)",
]
NAMES = [*PATHS, *WINDOWS, *STRANGE]


@pytest.mark.parametrize("field", ["name", "members.0.name", "version"])
def test_no_name_of_a_family_file_leaves_the_run_directory(tmp_path: Path, field: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    document = yaml.safe_load(Path(family(inside).origin).read_text())
    before = sorted(path for path in tmp_path.rglob("*"))
    for name in NAMES:
        if field == "version":
            document["data"]["versions"] = [{"name": name, "train": [{"path": "corpus"}]}]
        elif field == "name":
            document["name"] = name
        else:
            document["members"][0]["name"] = name
        (inside / "family.yaml").write_text(json.dumps(document))
        with pytest.raises(KinfolkError) as caught:
            load_family(str(inside / "family.yaml"))
        assert "name" in str(caught.value.where) and len(str(caught.value)) < 500
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_no_name_of_a_stage_on_the_command_line_leaves_it(uninterrupted: Uninterrupted) -> None:
    for name in NAMES:
        with pytest.raises(KinfolkError, match="the plan has no stage"):
            export_stage(uninterrupted[0] / "run", name, None, False)


def test_a_link_in_the_place_of_what_will_be_written_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("mine")
    run = tmp_path / "run"
    (run / "members").mkdir(parents=True)
    (run / "members" / "small.unfinished").symlink_to(tmp_path / "outside")
    (run / "plan.json.unfinished").symlink_to(tmp_path / "outside" / "kept")
    with pytest.raises((KinfolkError, OSError)):
        build(family(tmp_path), run, RecordingView())
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept"]
    assert (tmp_path / "outside" / "kept").read_text() == "mine"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture
def checkpoint_folder(uninterrupted: Uninterrupted, tmp_path: Path) -> Path:
    return shutil.copytree(uninterrupted[0] / "run" / "members" / "small", tmp_path / "checkpoint")


READERS: list[Callable[[Path], Any]] = [lambda folder: load_checkpoint(folder, "cpu"), lambda folder: Weights(folder)]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_a_pickle_is_refused_with_a_way_out(
    checkpoint_folder: Path, tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    (checkpoint_folder / "model.safetensors").unlink()
    (checkpoint_folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(KinfolkError, match="the weights are a pickle") as caught:
        read(checkpoint_folder)
    assert caught.value.fix is not None and "save_pretrained" in caught.value.fix
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_safetensors_is_not_opened(checkpoint_folder: Path, tmp_path: Path) -> None:
    (checkpoint_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    load_checkpoint(checkpoint_folder, "cpu")
    assert not (tmp_path / "marker").exists()


def test_code_that_comes_with_a_checkpoint_never_runs(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Neither of a known architecture nor of its own, even where somebody would answer yes when asked."""
    marker = tmp_path / "marker"
    (checkpoint_folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\nTokenizer = None\n"
    )
    classes: dict[str, Any] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    classes["AutoTokenizer"] = ["evil.Tokenizer", None]
    for model_type in ("llama", "evil"):
        for file in ("config.json", "tokenizer_config.json"):
            content = json.loads((checkpoint_folder / file).read_text()) | {"auto_map": classes}
            content |= {"model_type": model_type} if file == "config.json" else {"tokenizer_class": "Tokenizer"}
            (checkpoint_folder / file).write_text(json.dumps(content))

        def read() -> None:
            answers, typed = os.pipe()
            os.write(typed, b"y\n" * 20)
            os.dup2(answers, 0)
            for reader in (*READERS, read_config, lambda folder: load_tokenizer(str(folder), folder, "here")):
                try:
                    reader(checkpoint_folder)
                except KinfolkError as error:
                    print(error)

        assert in_child(read, tmp_path / "log") == 0, (tmp_path / "log").read_text()
        assert not marker.exists()


def test_no_call_leaves_it_open_whether_remote_code_is_trusted() -> None:
    """transformers asks on the terminal where nothing is said."""
    for path in Path(kinfolk.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr == "from_pretrained":
                assert isinstance(node, ast.Call)
                said = {keyword.arg for keyword in node.keywords}
                is_super = isinstance(called.value, ast.Call)  # a class of its own, which hands on what it was given
                assert is_super or "trust_remote_code" in said, (path, node.lineno)


def test_nothing_in_the_package_runs_or_unpickles_what_it_reads() -> None:
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "runpy", "ctypes"}
    calls = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "importlib.import_module"}
    calls |= {"numpy.load", "np.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.jit.load"}
    for path in Path(kinfolk.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert modules.isdisjoint(alias.name.partition(".")[0] for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, (path, node.lineno)


@pytest.mark.parametrize(
    ("layers", "said"),
    [(10**9, "more than any model has"), (10**299, "more than any model has"), (10**400, "401 digits")],
)
def test_a_config_of_a_billion_layers_does_not_hang(checkpoint_folder: Path, layers: int, said: str) -> None:
    path = checkpoint_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    with pytest.raises(KinfolkError, match=said):
        load_checkpoint(checkpoint_folder, "cpu")


@pytest.mark.parametrize(
    "content",
    [
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "bart", "decoder_layers": 10**9},
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 10**9}},
    ],
    ids=lambda content: content["model_type"],
)
def test_nor_does_one_that_calls_them_otherwise(checkpoint_folder: Path, content: dict[str, object]) -> None:
    (checkpoint_folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(KinfolkError, match=r"layers? is 1"):
        load_checkpoint(checkpoint_folder, "cpu")
    with pytest.raises(KinfolkError, match=r"layers? is 1"):
        read_config(checkpoint_folder)


def test_a_vocabulary_for_each_layer_is_no_number_of_layers(checkpoint_folder: Path) -> None:
    """Gemma 3n's configs have one."""
    path = checkpoint_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size_per_layer_input": 262_144}))
    load_checkpoint(checkpoint_folder, "cpu")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_json_that_is_nested_too_deeply_in_a_checkpoint(checkpoint_folder: Path, file: str) -> None:
    (checkpoint_folder / file).write_text("[" * 100_000)
    with pytest.raises(KinfolkError):
        load_checkpoint(checkpoint_folder, "cpu")


def test_json_that_is_nested_too_deeply_in_the_headers_of_weights(checkpoint_folder: Path) -> None:
    header = b'{"a":' * 100_000
    (checkpoint_folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(KinfolkError, match="header is damaged"):
        Weights(checkpoint_folder)
    (checkpoint_folder / "model.safetensors.index.json").write_bytes(header)
    with pytest.raises(KinfolkError, match="index is damaged"):
        Weights(checkpoint_folder)


def test_records_that_are_nested_too_deeply(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted[0] / "run", tmp_path / "run")
    [state, *_] = run.glob("stages/*/checkpoints/*/state.json")
    for path, read in (
        (state, lambda: checkpoint.verify(state.parent)),
        (run / "data" / "data.json", lambda: open_store(run / "data")),
        (run / "plan.json", lambda: read_run(run)),
    ):
        kept = path.read_bytes()
        path.write_text("[" * 100_000)
        with pytest.raises(KinfolkError):
            read()
        path.write_bytes(kept)


def test_an_adapter_beside_a_model_is_refused(checkpoint_folder: Path) -> None:
    """With PEFT installed, transformers would add it to the model, also from a pickle."""
    (checkpoint_folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x/y"}))
    with pytest.raises(KinfolkError, match="an adapter beside the model"):
        load_checkpoint(checkpoint_folder, "cpu")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/hostname' %}",
        "{{ cycler.__init__.__globals__.os.mkdir(path) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(checkpoint_folder: Path, template: str) -> None:
    (checkpoint_folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(checkpoint_folder), checkpoint_folder, "here")
    with pytest.raises(KinfolkError, match="the chat template cannot render"):
        prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_cases_of_the_fuzzing(target: str) -> None:
    result = Fuzzed()
    fuzz(target, 25, 1, result)
    assert result.cases[target] >= 20
