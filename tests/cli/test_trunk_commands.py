"""plan --compare, average and export, and evaluate's refusal, as a user calls them."""

import json
from pathlib import Path
from typing import Any

import pytest
from micro import RecordingView
from micro import family as micro
from test_cli import raised
from typer.testing import CliRunner

from kinfolk.build.build import build
from kinfolk.cli.app import app
from kinfolk.report.page import write_report


def said(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.exception
    return result.stdout


def json_of(*arguments: str | Path) -> Any:
    return json.loads(said(*arguments, "--json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patched")
    loaded = micro(
        folder,
        "strategy=trunk",
        "patch={size: 4, share: 0.5}",
        members=[micro(folder).family.members[0].model_dump(mode="json", exclude_none=True)],
        recipe={"schedule": {"warmup_share": 0.1, "decay_share": 0.25}, "checkpoints": {"steps": 1, "keep": 3}},
    )
    build(loaded, folder / "run", RecordingView())
    return folder / "run"


def test_the_strategies_side_by_side(tmp_path: Path) -> None:
    rows = json_of("plan", "tiny", "--compare")["rows"]
    assert [(row["strategy"], bool(row["patch"])) for row in rows] == [
        (strategy, patched) for strategy in ("independent", "progressive", "trunk") for patched in (False, True)
    ]
    assert all(row["gpu_seconds"] > 0 and row["total"]["matmul"] > 0 for row in rows)
    assert rows[1]["cost"]["matmul"] == pytest.approx(0.5, abs=0.02)
    table = said("plan", "paper-1b-8b", "--compare", "--unique-tokens", "1000000000")
    for word in ("independent", "progressive", "trunk", "4, all", "75.2%", "decay_share 0.2", "times the 1e+09 tokens"):
        assert word in table, word
    bare = tmp_path / "bare.yaml"
    bare.write_text(
        "name: bare\nmembers: [{name: a, parameters: 1e9, tokens: 1e9}, {name: b, parameters: 2e9, tokens: 1}]\n"
    )
    assert "nothing is left" in said("plan", bare, "--compare")


def test_a_plan_with_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinfolk.cli.plan_family.this_machine", lambda: 1e12)
    options = [
        "--strategy",
        "trunk",
        "--set",
        "patch={size: 4, share: 0.667}",
        "--set",
        "recipe.schedule.decay_share=0.2",
    ]
    table = said("plan", "tiny", *options)
    for word in ("tiny-50k-patch", "tiny-50k-undecayed", "patches of 4", "20,000"):
        assert word in table, word
    document = json_of("plan", "tiny", *options)
    assert document["patch"]["step_share"] == pytest.approx(0.3337, abs=1e-3)
    assert document["stages"][0]["objective"] == {"kind": "patch", "size": 4, "slot_exponent": 0.0}
    assert "switch comes before the decay" in str(raised("plan", "tiny", "--set", "patch={}"))


def test_average(run: Path, tmp_path: Path) -> None:
    made = json_of("average", run, "--last", "3", "--output", tmp_path / "mean")
    assert made["stage"] == "small-undecayed" and len(made["steps"]) == 3
    assert json_of("evaluate", tmp_path / "mean", "--run", run)["loss"] == pytest.approx(made["held_out"]["loss"])
    table = said("average", run, "--stage", "small-undecayed", "--decay", "1-sqrt")
    assert "held-out loss" in table and (run / "averages" / "small-undecayed" / "config.json").is_file()
    assert json_of("evaluate", run / "averages" / "small-undecayed")["loss"] > 0
    assert "no build" in str(raised("average", tmp_path))


def test_export_and_evaluate_refuse_patches_unless_forced(run: Path, tmp_path: Path) -> None:
    assert "--force" in str(raised("export", run, "small-patch"))
    assert "small-patch" in said("export", run, "small-patch", "--force", "--output", tmp_path / "model")
    assert "token_ready" in str(raised("evaluate", tmp_path / "model", "--run", run))
    assert json_of("evaluate", tmp_path / "model", "--run", run, "--force")["loss"] > 0
    assert json_of("export", run, "small-undecayed")["path"] == str(run / "exports" / "small-undecayed")


def test_the_report_shows_stages_at_patch_level(run: Path, tmp_path: Path) -> None:
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "small-patch" in page and "small-undecayed" in page


def test_the_plan_of_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four versions at a decay share of 0.6 cost 58 % of from scratch (LR path switching)."""
    monkeypatch.setattr("kinfolk.cli.plan_family.this_machine", lambda: 1e12)
    path = tmp_path / "family.yaml"
    listed = ", ".join(f"{{name: {year}, train: [{{path: of-{year}}}]}}" for year in (2026, 2027, 2028))
    path.write_text(
        f"name: ever-newer\nstrategy: trunk\ndata: {{versions: [{listed}]}}\n"
        "recipe: {schedule: {decay_share: 0.6}}\nmembers: [{name: one, parameters: 1e9}]\n"
    )
    document = json_of("plan", path)
    assert [row["version"] for row in document["versions"]] == ["first", "2026", "2027", "2028"]
    assert document["versions"][-1]["saving"] == document["saving"] == pytest.approx(0.42, abs=1e-4)
    assert document["stages"][-1]["data"] == ["2028"] and document["stages"][-1]["alone"]["tokens"] == 80e9
    table = said("plan", path)
    for word in ("one-2027-rest", "tokens, 2028", "versions of the data", "58.0%", "42.0%", "one-2026"):
        assert word in table, word
    assert "58.0%" not in said("plan", path, "--strategy", "independent")
    assert "40.0%" in said("plan", path, "--strategy", "progressive")
    message = str(raised("plan", path, "--set", "data.versions.1.name=first"))
    assert "data.versions[1].name" in message and "data.train" in message
