"""Replayed decisions: on a ladder whose law is known, on the public points, and as the command shows them."""

import json
from pathlib import Path

import numpy as np
import pytest
from public_data import DATA
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.laws.published import LAWS

TRUTH = LAWS["besiroglu"]


def ladder(path: Path, spoil: bool = False) -> Path:
    """Five sizes at each of eight budgets; a spoilt one has its truth turned round at the dear budgets."""
    lines = ["params,tokens,loss"]
    for compute in np.geomspace(1e18, 1e21, 8).tolist():
        best = TRUTH.optimum(compute).parameters
        for factor in (0.25, 0.5, 1, 2, 4):
            size, tokens = best * factor, compute / (6 * best * factor)
            loss = TRUTH.predict(size, tokens)
            if spoil and compute > 1e20:
                loss = 2 * TRUTH.optimum(compute).loss - loss
            lines.append(f"{size!r},{tokens!r},{loss!r}")
    path.write_text("\n".join(lines) + "\n")
    return path


def replay(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", "--replay", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_on_a_ladder_that_follows_a_law_nothing_is_regretted(tmp_path: Path) -> None:
    document = json.loads(replay(ladder(tmp_path / "runs.csv"), "--json"))
    assert document["fitted"] == 20 and len(document["decisions"]) == 4
    assert document["mean_regret"] == 0 and document["best_chosen"] == 4
    assert document["mean_blind_regret"] > 0.01
    for made in document["decisions"]:
        assert made["candidates"] == 5 and made["chosen_loss"] == made["best_loss"]
        assert made["forecast"] == pytest.approx(made["best_loss"], rel=1e-3)


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = ladder(tmp_path / "runs.csv")
    plain = json.loads(replay(path, "--json"))
    text = path.read_text().replace("params,tokens,loss", "size,seen,final nats")
    other = tmp_path / "other.csv"
    other.write_text(text)
    columns = ("--parameters", "size", "--tokens", "seen", "--loss", "final nats")
    assert json.loads(replay(other, *columns, "--json"))["decisions"] == plain["decisions"]
    result = CliRunner().invoke(app, ["plan", "--replay", str(other)])
    assert isinstance(result.exception, KinfolkError) and "--parameters COLUMN" in result.exception.fix


def test_a_wrong_decision_is_regretted(tmp_path: Path) -> None:
    document = json.loads(replay(ladder(tmp_path / "runs.csv", spoil=True), "--below", 1e20, "--json"))
    for made in document["decisions"]:
        assert made["regret"] == pytest.approx(made["chosen_loss"] / made["best_loss"] - 1)
        assert made["regret"] > 0.01 and made["chosen_parameters"] != made["best_parameters"]
    assert document["worst_regret"] >= document["mean_regret"] > 0.01


def test_public_ladder() -> None:
    path = DATA / "epoch" / "svg_extracted_data.csv"
    if not path.is_file():
        pytest.skip("the public data set epoch is not here")
    document = json.loads(replay(path, "--json"))
    assert len(document["decisions"]) == 17
    assert document["mean_regret"] == pytest.approx(0.0052, abs=5e-4)
    assert document["mean_regret"] < document["mean_blind_regret"]
    shown = replay(path)
    assert "realised regret: mean 0.52%" in shown and "20 tokens per parameter 0.31%" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.csv",), "missing.csv"),
        (("RUNS", "--below", "1"), "--below"),
        (("RUNS", "--below", "1e30"), "--below"),
        (("RUNS", "--where", "size"), "COLUMN=VALUE"),
        (("RUNS", "--loss", "perplexity"), "perplexity"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    path = str(ladder(tmp_path / "runs.csv"))
    given = [path if argument == "RUNS" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["plan", "--replay", *given])
    assert isinstance(result.exception, KinfolkError) and result.exception.fix, result.exception
    assert said in str(result.exception) and result.stdout == ""


def test_there_must_be_something_to_plan() -> None:
    result = CliRunner().invoke(app, ["plan"])
    assert isinstance(result.exception, KinfolkError) and "--budget" in str(result.exception)
