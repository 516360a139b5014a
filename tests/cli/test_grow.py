"""`kinfolk grow` as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import contents, save
from micro import RecordingView, family
from typer.testing import CliRunner

from kinfolk.build.build import build
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError

SHAPE = "hidden_size=48,num_attention_heads=6,num_key_value_heads=3,intermediate_size=60,num_hidden_layers=3"
KEYS = {"operator", "claims_preservation", "max_abs_logit_difference", "kl", "loss_before", "loss_after"}
KEYS |= {"parameters_before", "parameters_after", "seconds", "peak_memory_bytes"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "source")


def grow(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["grow", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def refused(*arguments: str | Path) -> KinfolkError:
    result = CliRunner().invoke(app, ["grow", *map(str, arguments)])
    assert isinstance(result.exception, KinfolkError), result.output
    assert result.exception.fix
    return result.exception


def test_json_has_what_the_documentation_says(source: Path, tmp_path: Path) -> None:
    printed = json.loads(grow(source, tmp_path / "target", "--to", SHAPE, "--json", "--seed", "4"))
    assert printed.keys() >= KEYS
    assert printed["operator"]["seed"] == 4
    assert printed["claims_preservation"] is printed["passed"] is True
    assert printed["parameters_after"] > printed["parameters_before"]
    assert abs(printed["loss_after"] - printed["loss_before"]) < 1e-4
    assert json.loads((tmp_path / "target" / "config.json").read_text())["hidden_size"] == 48


def test_the_table_says_what_was_kept(source: Path, tmp_path: Path) -> None:
    printed = grow(source, tmp_path / "target", "--to", SHAPE)
    assert "energy_split (hidden 32 -> 48" in printed
    assert "preserved" in printed and str(tmp_path / "target") in printed
    printed = grow(source, tmp_path / "stacked", "--to", "num_hidden_layers=4", "--depth", "stack")
    assert "not exact: stack repeats layers" in printed


def test_untying_the_embeddings(tmp_path: Path) -> None:
    source = save(tmp_path / "source", tied=True)
    asked = ("--to", "tie_word_embeddings=false,hidden_size=48,num_attention_heads=6,num_key_value_heads=3", "--json")
    printed = json.loads(grow(source, tmp_path / "target", *asked))
    assert printed["passed"] is True and "embeddings untied" in printed["description"]
    assert printed["parameters_after"] - printed["parameters_before"] > 61 * 48
    assert json.loads((tmp_path / "target" / "config.json").read_text())["tie_word_embeddings"] is False
    back = refused(tmp_path / "target", tmp_path / "back", "--to", "tie_word_embeddings=true")
    assert back.where == "--to: tie_word_embeddings" and "cannot become one" in back.problem
    assert "no FIELD=NUMBER" in refused(source, tmp_path / "other", "--to", "hidden_size=true").problem


def test_a_model_to_match(source: Path, tmp_path: Path) -> None:
    grow(source, tmp_path / "one", "--to", SHAPE, "--no-verify")
    for name, to in (("two", tmp_path / "one"), ("three", tmp_path / "one" / "config.json")):
        grow(source, tmp_path / name, "--to", to, "--no-verify")
        assert contents(tmp_path / name) == contents(tmp_path / "one")


def test_a_claim_that_does_not_hold_exits_with_1(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfolk.growth.claims.preserves_function", lambda *_: True)
    printed = json.loads(
        grow(source, tmp_path / "target", "--to", "num_hidden_layers=4", "--depth", "stack", "--json", code=1)
    )
    assert printed["passed"] is False
    assert printed["max_abs_logit_difference"] > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("arguments", "where", "problem"),
    [
        (["--to", "hidden_size"], "--to", "no FIELD=NUMBER"),
        (["--to", " "], "--to", "no FIELD=NUMBER"),
        (["--to", "hidden_size=64,hidden_size=64"], "--to", "twice"),
        (["--to", "hidden_size=-1"], "--to", "no FIELD=NUMBER"),
        (["--to", "hidden_size=16"], "--to: hidden_size", "cannot shrink"),
        (["--to", "hidden_size=48", "--width", "tile"], "--to: hidden_size", "whole number"),
        (["--to", SHAPE, "--width", "split"], "--width", "none"),
        (["--to", SHAPE, "--depth", "stak"], "--depth", "none"),
        (["--to", SHAPE, "--placement", "bottom"], "--placement", "no place"),
        (["--to", SHAPE, "--noise", "-1"], "--noise", "no strength"),
        (["--to", SHAPE, "--dtype", "int8"], "--dtype", "none"),
        (["--to", SHAPE, "--verify-dtype", "float16"], "--verify-dtype", "none"),
        (["--to", SHAPE, "--optimizer", "keep"], "--optimizer", "none"),
        (["--to", SHAPE, "--text", "nowhere.txt"], "nowhere.txt", "cannot be read"),
    ],
)
def test_mistakes_are_told_with_a_way_out(
    arguments: list[str], where: str, problem: str, source: Path, tmp_path: Path
) -> None:
    error = refused(source, tmp_path / "target", *arguments)
    assert error.where == where
    assert problem in error.problem
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_prints_errors_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kinfolk", "grow", "nowhere", str(tmp_path / "target"), "--to", "hidden_size=64"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error: nowhere: there is no such folder\n  fix: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_probe_ranks_ways_and_grows_in_the_best(tmp_path: Path) -> None:
    loaded = family(tmp_path)
    build(loaded, tmp_path / "run", RecordingView())
    source, wide = tmp_path / "run" / "members" / "small", "intermediate_size=64"
    asked = ("--to", wide, "--probe", tmp_path / "family.yaml", "--probe-steps", "4", "--json")
    printed = json.loads(grow(source, tmp_path / "target", *asked))
    losses = [each["loss"] for each in printed["probe"]]
    assert losses == sorted(losses) and len(set(losses)) > 1
    # The family's default is zero-padding; a candidate of another name says its width in it.
    best = printed["probe"][0]["name"]
    assert printed["operator"]["width"] == ("zero_pad" if best == "default" else best.split("-")[0])
    assert json.loads((tmp_path / "target" / "config.json").read_text())["intermediate_size"] == 64
    assert (tmp_path / "target.probe" / "ledger.jsonl").exists()
    assert "there already" in refused(source, tmp_path / "target", *asked).problem
    assert "Hugging Face" in refused(tmp_path / "run" / "stages" / "small", tmp_path / "other", *asked).problem
