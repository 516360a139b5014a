"""The command as a user calls it: output, exit codes, errors, speed, and what is left on the disk."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kinfolk import __version__
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError

KINFOLK = [sys.executable, "-m", "kinfolk"]
SILENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kinfolk(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*KINFOLK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=SILENT, cwd=folder, timeout=120, check=False)


def refused(*arguments: str | Path, folder: Path | None = None) -> str:
    """The message of a call that must fail: exit code 2, an error with a fix on stderr alone, no traceback."""
    done = kinfolk(*arguments, folder=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert "\n  fix: " in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def raised(*arguments: str | Path) -> KinfolkError:
    """The KinfolkError of a call inside this process, which `main` would print; stdout stays empty."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, KinfolkError), result.exception
    assert result.stdout == ""
    return result.exception


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "kinfolk", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=SILENT, timeout=60, check=False)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A family file of two tiny members on a corpus of its own."""
    (tmp_path / "corpus.jsonl").write_text(
        "".join(
            json.dumps({"text": f"Story {n}. " + "Once there was a mill and a raven. " * 9}) + "\n" for n in range(40)
        )
    )
    shape = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
    }
    document = {
        "name": "pair",
        "model": {"context_length": 16},
        "tokenizer": {"vocab_size": 280},
        "data": {"train": [{"path": "corpus.jsonl"}], "held_out": {"share": 0.2}},
        "members": [
            {"name": "small", "shape": shape, "tokens": 512},
            {"name": "large", "shape": shape | {"num_hidden_layers": 2}, "tokens": 1024},
        ],
        "recipe": {"tokens_per_step": 64},
    }
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


# help


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(5):
        began = _seconds_of_children()
        done = kinfolk("--help")
        seconds.append(_seconds_of_children() - began)
        assert done.returncode == 0
    assert all(command in done.stdout for command in ("plan", "build", "grow", "evaluate", "report", "laws", "doctor"))
    assert min(seconds) < 0.5


def _seconds_of_children() -> float:
    """Processor time of finished child processes: what they take on a machine that does nothing else."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    "command",
    ["plan", "build", "evaluate", "consistency", "adaptability", "merge", "report", "laws", "schedule", "doctor"],
)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("plan", "--help"),
        ("laws", "fit", "--help"),
        ("schedule", "probe", "--help"),
        ("schedule", "probe", "nowhere"),
        ("plan", "nowhere"),
        ("doctor", "nowhere"),
        ("build", "nowhere"),
    ],
)
def test_nothing_heavy_is_imported_for_help_and_for_errors(arguments: tuple[str, ...]) -> None:
    modules = imported_by(*arguments)
    assert "kinfolk.cli.app" in modules
    assert not modules & {"torch", "transformers", "tokenizers", "numpy", "plotly", "pyarrow"}


def test_its_version() -> None:
    done = kinfolk("--version")
    assert (done.returncode, done.stdout) == (0, f"kinfolk {__version__}\n")


@pytest.mark.parametrize("arguments", [("paln", "tiny"), ("build",), ("plan", "tiny", "--colour"), ("evaluate",)])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


# plan


def test_plan_as_json(family: Path) -> None:
    done = kinfolk("plan", family, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["strategy"] == "progressive"
    assert document["total_flops"] < document["independent_flops"]
    assert document["saving"] == pytest.approx(1 - document["total_flops"] / document["independent_flops"])
    assert [stage["member"] for stage in document["stages"] if stage["member"]] == ["small", "large"]
    assert document["machine"]["seconds"] > 0
    assert document["gpu"]["name"] == "H100"
    assert done.stderr == ""


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfolk.cli.plan_family.this_machine", lambda: 1e12)


def planned(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.exception
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.usefixtures("no_measurement")
def test_plan_options() -> None:
    assert planned("paper-1b-8b")["saving"] == pytest.approx(0.25, abs=0.05)
    alone = planned("paper-1b-8b", "--strategy", "independent")
    assert (alone["strategy"], alone["saving"]) == ("independent", 0)
    assert planned("tiny", "--set", "tokens_per_parameter=2e1", "--set", "name=mine")["family"] == "mine"
    half = planned("tiny", "--gpu", "H200", "--utilisation", "0.2")
    assert half["gpu"]["seconds"] == pytest.approx(2 * planned("tiny", "--gpu", "H200")["gpu"]["seconds"])
    assert half["machine"]["seconds"] == pytest.approx(half["total"]["matmul"] / 1e12)


@pytest.mark.usefixtures("no_measurement")
def test_plan_as_a_table(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "tiny"])
    assert result.exit_code == 0
    for word in ("tiny-50k", "tiny-400k", "scratch", "saving", "6ND", "H100"):
        assert word in result.stdout
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: bare\nmembers: [{name: a, parameters: 1e9}, {name: b, parameters: 2e9}]\n")
    result = CliRunner().invoke(app, ["plan", str(bare)])
    assert result.exit_code == 0
    assert "saving" in result.stdout


def test_plan_says_what_the_recipe_has_on(family: Path) -> None:
    plain = CliRunner().invoke(app, ["plan", str(family)]).stdout
    assert "recipe: AdamW, " in plain and "Muon" not in plain
    size = json.loads(CliRunner().invoke(app, ["plan", str(family), "--json"]).stdout)["tokens_per_step"]
    options = ["optimizer.matrices=muon", "optimizer.weight_decay_rule=cautious", "z_loss=1e-4", "gradient_clip=none"]
    options.append(f"batch_warmup={{start: {size // 2}, share: 0.5}}")
    chosen = [word for option in options for word in ("--set", f"recipe.{option}")]
    text = CliRunner().invoke(app, ["plan", str(family), *chosen]).stdout
    assert (
        "Muon for the layers' matrices, AdamW for the rest, cautious weight decay, z-loss 0.0001, no gradient" in text
    )
    assert f"{size // 2:,} tokens a step, doubling to {size:,} in 50% of the start" in text


def test_plan_refusals(family: Path) -> None:
    assert "did you mean progressive?" in refused("plan", family, "--strategy", "progresive")
    assert "sets nothing" in refused("plan", family, "--set", "recipe.seed", "--json")
    assert "did you mean tiny?" in str(raised("plan", "tinny", "--json"))
    assert "'[x'" in str(raised("plan", family, "--strategy", "[x"))
    assert "strategy" in str(raised("plan", family, "--strategy", ""))
    assert "use one of A100" in str(raised("plan", family, "--gpu", "H1000"))
    for utilisation in ("0", "-1", "1.5", "nan"):
        assert "is not a share" in str(raised("plan", family, "--utilisation", utilisation))
    error = raised("plan", family, "--set", "members.1.tokens=10")
    assert error.where == f"{family}: members[1].tokens"


@pytest.mark.parametrize(("reader", "reads"), [("head -n 1", "pair"), ("true", "")])
def test_a_reader_that_leaves_is_no_error(family: Path, reader: str, reads: str) -> None:
    command = f"{' '.join(KINFOLK)} plan {family} | {reader}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=SILENT, timeout=60, check=False)
    assert reads in done.stdout
    assert done.stderr == ""


# doctor


def test_doctor(family: Path) -> None:
    done = kinfolk("doctor", family, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["machine"]["device"] in {"cpu", "cuda"}
    assert found["machine"]["fastest_precision"] in {"float32", "bfloat16"}
    needs = found["family"]
    assert needs["buildable"] == "yes"
    assert needs["memory_bytes"] > 0
    assert needs["training_tokens"] == sum(stage["tokens"] for stage in planned_stages(family))


def planned_stages(family: Path) -> list[dict[str, Any]]:
    from kinfolk.data.tokenizer import with_vocabulary
    from kinfolk.family.load import load_family
    from kinfolk.plan.document import plan_document
    from kinfolk.plan.strategies import plan_family

    loaded = with_vocabulary(load_family(str(family)))
    stages: list[dict[str, Any]] = plan_document(loaded, plan_family(loaded))["stages"]
    return stages


@pytest.fixture
def some_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {
        "device": "cpu",
        "free_memory_bytes": 2**33,
        "free_disk_bytes": 2**36,
        "fastest_precision": "float32",
        "float32_flops_per_second": 1e11,
    }
    monkeypatch.setattr("kinfolk.build.doctor.examine_machine", lambda: dict(machine))


@pytest.mark.usefixtures("some_machine")
def test_doctor_says_what_does_not_fit(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "paper-1b-8b", "--json"])
    needs = json.loads(result.stdout)["family"]
    # 8 B parameters with gradients and moments are more than 8 GiB.
    assert (needs["buildable"], needs["memory_fits"], needs["disk_fits"]) == ("no", False, False)
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: bare\nmembers: [{name: a, parameters: 1e9}]\n")
    result = CliRunner().invoke(app, ["doctor", str(bare), "--json"])
    assert json.loads(result.stdout)["family"]["buildable"].startswith("no: a has a number of parameters")
    table = CliRunner().invoke(app, ["doctor", "tiny"])
    assert table.exit_code == 0
    assert "GiB" in table.stdout
    assert "GFLOP/s" in table.stdout


# evaluate and report


def test_evaluate_refusals(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once there was a mill.")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "no such folder" in refused("evaluate", tmp_path / "nothing" / "here", "--json")
    assert "no such folder" in str(raised("evaluate", tmp_path / "nothing", "--text", text))
    assert "--text FILE, or --run DIR" in str(raised("evaluate", folder))
    assert "both given" in str(raised("evaluate", folder, "--text", text, "--run", folder))
    assert "no config.json" in str(raised("evaluate", folder, "--text", text))
    assert "no such file" in raised("evaluate", folder, "--text", tmp_path / "absent.txt").problem
    text.write_bytes(b"caf\xe9")
    assert "is not UTF-8" in str(raised("evaluate", folder, "--text", text))
    (folder / "members").mkdir()
    assert "no finished member yet" in str(raised("evaluate", folder))


def test_members_of_a_run(tmp_path: Path) -> None:
    from kinfolk.evaluate.measure import members_of

    sizes = {"b": [10], "a": [20, 20], "c": [30], "c.unfinished": [1]}
    for name, weights in sizes.items():
        member = tmp_path / "members" / name
        member.mkdir(parents=True)
        (member / "config.json").write_text("{}")
        for index, size in enumerate(weights):
            (member / f"model-{index}.safetensors").write_bytes(b"x" * size)
    assert [Path(path).name for path in members_of(str(tmp_path))] == ["b", "c", "a"]
    assert members_of(str(tmp_path / "members" / "a")) == [str(tmp_path / "members" / "a")]


def test_report_on_nothing(tmp_path: Path) -> None:
    assert "there is no such run" in refused("report", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "empty").mkdir()
    raised("report", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


# build


def test_a_wrong_family_leaves_nothing_behind(family: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    family.write_text(family.read_text().replace("hidden_size", "hiden_size", 1))
    assert "did you mean hidden_size?" in refused("build", family, "--run", run)
    assert not run.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train.0.path=absent.jsonl"], "absent.jsonl"),
        (["data.train.0.path=empty.jsonl"], "the file is empty"),
        (["data.train.0.path=latin.txt"], "UTF-8"),
        (["data.train.0.path=broken.jsonl"], "broken.jsonl"),
        (["data.train.0.text_field=body"], "body"),
        (["data.held_out.sources=[{path: corpus.jsonl}]"], "is also held out"),
        (["data.held_out.share=1e-9"], "held out"),
        (["tokenizer.vocab_size=30000"], "too small for a tokenizer"),
        (["tokenizer={load: ./absent}"], "there is no folder"),
        (["model.context_length=65536", "recipe.tokens_per_step=65536"], "tokens"),
        (["members=[{name: a, parameters: 1e9}]"], "no shape"),
    ],
)
def test_builds_that_are_refused_leave_nothing_behind(
    overrides: list[str], message: str, family: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"Ein M\xe4rchen. " * 50)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    before = sorted(tmp_path.rglob("*"))
    options = [option for override in overrides for option in ("--set", override)]
    error = raised("build", family, "--run", tmp_path / "run", *options)
    assert message in str(error)
    assert str(family) in str(error) or "pair.yaml" in str(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_that_cannot_be_made_is_refused_before_the_disk_is_touched(family: Path, tmp_path: Path) -> None:
    error = raised("build", family, "--run", tmp_path / "run", "--set", "members.1.tokens=10")
    assert "nothing is left to train it" in error.problem
    assert str(error.where).endswith("members[1].tokens")
    assert not (tmp_path / "run").exists()


def test_one_refused_build_as_a_user_sees_it(family: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").unlink()
    message = refused("build", "pair.yaml", folder=tmp_path)
    assert "pair.yaml: data.train[0]" in message
    assert not (tmp_path / "runs" / "pair").exists()
