"""`kinfolk laws` as a user calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_data import chinchilla_240, rows
from synthetic_run import Maker
from test_fitting import TRUTH, design
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.laws.loss import load_law
from kinfolk.laws.published import LAWS
from kinfolk.laws.shown import with_error


def laws(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["laws", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> KinfolkError:
    result = CliRunner().invoke(app, ["laws", *map(str, arguments)])
    assert isinstance(result.exception, KinfolkError), result.exception
    assert result.stdout == ""
    return result.exception


def table(path: Path, size: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> Path:
    lines = [
        f"{n!r},{d!r},{value!r}" for n, d, value in zip(size.tolist(), tokens.tolist(), loss.tolist(), strict=True)
    ]
    path.write_text("\n".join(["params,tokens,loss", *lines]) + "\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    size, tokens = design(7)
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(size)))
    return table(tmp_path / "runs.csv", size, tokens, TRUTH.predict(size, tokens) * noise)


@pytest.fixture
def one_ratio(tmp_path: Path) -> Path:
    size, tokens = design(9, (20,))
    return table(tmp_path / "one.csv", size, tokens, TRUTH.predict(size, tokens))


def test_fit_of_the_chinchilla_points(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", *chinchilla_240())
    document = json.loads(laws("fit", path, "--resamples", 20, "--json"))
    assert document["rows"] == 240
    assert document["objective"] <= 0.00101827402 * (1 + 1e-6)
    for name, value in {"E": 1.817218, "A": 477.83, "B": 2143.4, "alpha": 0.347310, "beta": 0.367172}.items():
        assert document[name] == pytest.approx(value, rel=3e-5)
        low, high = document["intervals"][name]
        assert low < document[name] < high
    assert document["identified"] is True
    assert document["law"]["calibration"]["coverage"] >= 0.8
    assert document["certificate"]["best_of_random_starts"] >= document["objective"] * (1 - 1e-9)


def test_fit_writes_a_law_that_predict_reads(runs: Path, tmp_path: Path) -> None:
    shown = laws("fit", runs, "--resamples", 10, "--output", tmp_path / "law.json", "--plot", tmp_path / "law.html")
    assert "alpha" in shown and "next run" in shown and "back-test" in shown and "compute-only law" in shown
    law = load_law(tmp_path / "law.json")
    document = json.loads(laws("predict", tmp_path / "law.json", "--parameters", 2e10, "--tokens", 4e11, "--json"))
    assert document["loss"] == law.predict(2e10, 4e11)
    assert (document["low"], document["high"]) == law.interval(2e10, 4e11)
    assert document["low"] < float(TRUTH.predict(2e10, 4e11)) < document["high"]
    assert document["within_fitted_range"] is False and document["cautions"]
    page = (tmp_path / "law.html").read_text()
    assert "<script" in page and "http-equiv" in page and "What a split of the compute is worth" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page.split("<script>")[0])


def test_the_json_of_a_fit_is_a_law_too(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text(laws("fit", runs, "--resamples", 0, "--json"))
    assert "loss" in laws("predict", tmp_path / "fit.json", "--compute", 1e21)


def test_what_is_not_identified_is_not_printed_with_five_digits(one_ratio: Path) -> None:
    shown = laws("fit", one_ratio, "--resamples", 5)
    assert "not known" in shown and "borrowed from besiroglu" in shown and "20 tokens per parameter" in shown
    parameters = shown.split("N counts")[0]
    assert not re.search(r"\d\.\d{4}|\d{5}", parameters)
    document = json.loads(laws("fit", one_ratio, "--json"))
    assert document["identified"] is False and document["alpha"] is None
    assert document["borrowed_from"] == "besiroglu"


def test_predict_with_a_published_law() -> None:
    document = json.loads(laws("predict", "besiroglu-printed", "--compute", 1e22, "--json"))
    assert document["parameters"] == pytest.approx(9.0452e9, rel=1e-4)
    assert document["effective_compute"] == pytest.approx(1)
    assert document["low"] is None and any("no interval" in caution for caution in document["cautions"])
    over = json.loads(laws("predict", "besiroglu", "--parameters", 1e9, "--tokens", 3e12, "--json"))
    assert over["effective_compute"] < 0.2
    assert over["compute_law"]["effective_compute"] == 1.0
    assert any("fine-tuning" in caution for caution in over["cautions"])
    repeated = json.loads(
        laws("predict", "muennighoff", "--parameters", 6.34e9, "--tokens", 242e9, "--unique", 25e9, "--json")
    )
    assert repeated["loss"] == pytest.approx(2.2256440889984477, abs=1e-12)
    shown = laws("predict", "besiroglu", "--parameters", 1e9, "--tokens", 2e10)
    assert "compute-only law says" in shown and "this split is worth" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "besiroglu"),
        ("predict", "besiroglu", "--parameters", 1e9),
        ("predict", "besiroglu", "--parameters", 0, "--tokens", 1e9),
        ("predict", "besiroglu", "--parameters", "nan", "--tokens", 1e9),
        ("predict", "besiroglu", "--parameters", 1, "--tokens", 20),
        ("predict", "besiroglu", "--loss", 1.8),
        ("predict", "besiroglu", "--loss", 2.2, "--tokens", 1e9),
        ("predict", "besiroglu", "--loss", 2.2, "--parameters", 1e6),
        ("predict", "besiroglu", "--compute", 1e21, "--unique", 1e9),
        ("predict", "nobody", "--compute", 1e21),
        ("predict", "missing.json", "--compute", 1e21),
        ("fit", "missing.csv"),
        ("backtest", "missing"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[object, ...]) -> None:
    assert refused(*arguments).fix


def test_wrong_options_are_refused(runs: Path, tmp_path: Path) -> None:
    assert "COLUMN=VALUE" in str(refused("fit", runs, "--where", "dataset"))
    assert "total" in str(refused("fit", runs, "--counting", "all"))
    assert "besiroglu" in str(refused("fit", runs, "--borrow", "nobody"))
    assert "folder" in str(refused("fit", runs, "--resamples", 0, "--plot", tmp_path))


def test_backtest(runs: Path) -> None:
    document = json.loads(laws("backtest", runs, "--resamples", 5, "--json"))
    assert document["hidden"] == sum(split["hidden"] for split in document["splits"])
    assert 0 <= document["coverage"] <= 1 and document["mean_width"] > 0
    assert document["bootstrap_coverage"] is not None
    shown = laws("backtest", runs, "--resamples", 0)
    assert "together" in shown and "mean width" in shown


def test_unified_law_of_the_leaderboard(tmp_path: Path) -> None:
    kept = [row for row in rows("hkust/bpc_leaderboard.csv") if row["in_fit18"] == "1"]
    path = tmp_path / "leaderboard.csv"
    path.write_text("\n".join([",".join(kept[0]), *(",".join(row.values()) for row in kept)]))
    columns = ("--parameters", "params_B", "--tokens", "train_tokens_T", "--loss", "bpc_avg")
    shown = laws("fit", path, *columns, "--resamples", 0)
    assert "slope -0.0308 (95 %: -0.0343 to -0.0272), intercept 0.5727 (0.5584 to 0.5871)" in shown
    assert "loss law" in shown  # the unified law never stands alone


def test_predict_what_reaches_a_loss() -> None:
    law = LAWS["besiroglu"]
    least = json.loads(laws("predict", "besiroglu", "--loss", 2.2, "--json"))
    assert least["loss"] == pytest.approx(2.2) and least["effective_compute"] == pytest.approx(1)
    small = json.loads(laws("predict", "besiroglu", "--loss", 2.2, "--parameters", "3B", "--json"))
    assert small["loss"] == pytest.approx(2.2) and small["tokens"] == law.tokens_for(2.2, 3e9)
    assert small["compute"] > least["compute"] == pytest.approx(law.compute_for(2.2))


def test_published_laws_are_listed_with_their_sources() -> None:
    listed = json.loads(laws("list", "--json"))
    assert all(law["source"] and law["counting"] for law in listed)
    assert "2404.10102" in laws("list")


def test_runs_of_kinfolk(make_run: Maker) -> None:
    chain, alone = make_run("chain", "progressive"), make_run("alone", "independent")
    document = json.loads(laws("fit", alone, "--json"))
    assert document["rows"] == 3 and document["borrowed_from"] == "besiroglu"
    assert [row["parameters"] for row in document["residuals"]] == [120_000, 480_000, 1_900_000]
    both = json.loads(laws("fit", chain, alone, "--json"))
    assert both["rows"] == 6
    assert any("were grown" in finding for finding in both["findings"])
    tokens = {row["row"]: row["tokens"] for row in both["residuals"]}
    # A grown member has spent what the same member alone has, within the rounding to whole steps.
    assert tokens["chain/large"] == pytest.approx(tokens["alone/large"], rel=0.01)
    without = json.loads(laws("fit", alone, "--counting", "non_embedding", "--json"))
    assert [row["parameters"] for row in without["residuals"]] == [100_000, 430_000, 1_800_000]
    assert json.loads(laws("fit", alone, "--loss", "bits_per_byte", "--json"))["unit"] == "bits per byte"


def test_runs_of_other_tokenizers_are_refused(make_run: Maker) -> None:
    one, other = make_run("one"), make_run("other")
    plan = json.loads((other / "plan.json").read_text())
    (other / "plan.json").write_text(json.dumps({**plan, "vocab_size": 2048}))
    assert "2 tokenizers" in str(refused("fit", one, other))


def test_patch_level_members_are_left_out(make_run: Maker) -> None:
    run = make_run()
    plan = json.loads((run / "plan.json").read_text())
    plan["stages"][-1]["objective"] = {"kind": "patch", "size": 4}
    (run / "plan.json").write_text(json.dumps(plan))
    document = json.loads(laws("fit", run, "--json"))
    assert document["rows"] == 2
    assert any("patch-level" in finding for finding in document["findings"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "plan.json").unlink(),
        lambda run: (run / "plan.json").write_text("{"),
        lambda run: (run / "plan.json").write_text("[]"),
        lambda run: (run / "plan.json").write_text('{"stages": [{}]}'),
        lambda run: (run / "ledger.jsonl").unlink(),
        lambda run: (run / "ledger.jsonl").write_text(""),
    ],
)
def test_damaged_runs_are_refused(make_run: Maker, spoil: Any) -> None:
    run = make_run()
    spoil(run)
    assert refused("fit", run).fix


def test_an_error_in_a_process_of_its_own() -> None:
    """Exit code, streams, and no traceback, as in a shell."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kinfolk", "laws", "fit", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "\n  fix: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (477.83, 117.0, "480 ± 120"),
        (0.34731, 0.0146, "0.347 ± 0.015"),
        (1.8172, None, "1.8"),
        (2143.0, 1278.0, "2,100 ± 1,300"),
    ],
)
def test_digits_follow_the_error(value: float, error: float | None, shown: str) -> None:
    assert with_error(value, error) == shown
