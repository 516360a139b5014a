"""The page about a schedule law, the same sections in the report, and forecasts while training in the report."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import Maker
from synthetic_schedules import end_measured, table, with_forecasts
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.report.outlooks import outlook_plot, outlooks_of
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run
from kinfolk.report.schedule_figures import contributions
from kinfolk.schedule.features import features
from kinfolk.schedule.law import load_law


def run_cli(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["schedule", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a law, the pages of its fit and of a ranking, and the ranking as JSON."""
    folder = tmp_path_factory.mktemp("pages")
    run_cli("fit", table(folder), "--output", folder / "law.json", "--page", folder / "fit.html")
    ranking = ("rank", "--law", folder / "law.json", "--steps", 10_000, "--peaks", "5e-4,1e-3,4e-3")
    run_cli(*ranking, "--page", folder / "rank.html")
    (folder / "ranking.json").write_text(run_cli(*ranking, "--json"))
    return folder


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_fit_page_marks_what_was_left_out(pages: Path) -> None:
    traces = data_of(pages / "fit.html")["scatter"]["loss"]["data"]
    by_name = {trace["name"]: trace for trace in traces}
    assert list(by_name) == [
        "as measured", "fitted (in sample)", "left out: family", "left out: peak", "left out: horizon"
    ]  # fmt: skip
    law = load_law(pages / "law.json")
    inside = by_name["fitted (in sample)"]
    assert inside["y"] == pytest.approx(
        [float(law.predict(run.settings.schedule())[0]) for run in law.measured], rel=1e-5
    )
    assert inside["x"] == pytest.approx([run.loss for run in law.measured], rel=1e-5)
    hidden = by_name["left out: peak"]
    assert len(hidden["x"]) == len(law.measured), "every run has a peak that was left out once"
    errors = {name: np.abs(np.subtract(by_name[name]["x"], by_name[name]["y"])).mean() for name in list(by_name)[1:]}
    assert errors["left out: peak"] > errors["fitted (in sample)"]
    # The median error by peak is what the law's own calibration says.
    miss = np.abs(np.log(np.divide(hidden["x"], hidden["y"])))
    assert np.median(miss) == pytest.approx(law.calibration.medians["peak"], rel=1e-2)
    assert "a&lt;b&gt;" in json.dumps(inside["customdata"]), "plotly reads HTML: names are escaped"


def test_rank_page_shows_the_candidates(pages: Path) -> None:
    data, ranking = data_of(pages / "rank.html"), json.loads((pages / "ranking.json").read_text())
    named = {trace["name"]: trace for trace in data["forecasts"]["loss"]["data"]}
    assert named["refused: may diverge"]["customdata"][0].startswith("peak 0.004")
    tied = named["cannot be told from the best"]
    assert tied["x"][0] == pytest.approx(ranking["best"]["predicted"], rel=1e-5)
    assert tied["error_x"]["array"][0] == pytest.approx(
        ranking["best"]["high"] - ranking["best"]["predicted"], rel=1e-4
    )
    assert named["the default"]["y"] == ["default"]
    curves = data["rates"]["rate"]["data"]
    assert curves[-1]["name"] == "default" and len(curves) == 7
    assert max(curves[0]["y"]) == pytest.approx(ranking["best"]["peak_lr"])
    assert curves[0]["y"][0] == 0 and curves[0]["x"][-1] == 9_999
    text = (pages / "rank.html").read_text("utf-8")
    assert ranking["verdict"] in text and "refused" in text


def test_contributions_add_up_to_the_law(pages: Path) -> None:
    law = load_law(pages / "law.json")
    assert law.kind == "sixteen"
    found = contributions(law)
    assert [each.highest - each.lowest for each in found] == sorted((c.highest - c.lowest for c in found), reverse=True)
    one = law.measured[0].settings.schedule()
    from kinfolk.schedule.features import NAMES, Units

    values = features(one, one.steps, Units(law.numbers["unit rate"], law.numbers["unit steps"]))
    said = law.numbers["constant"] + sum(law.numbers[name] * value for name, value in zip(NAMES, values, strict=True))
    assert np.exp(said) == pytest.approx(float(law.predict(one)[0]))
    for each in found:
        value = law.numbers[each.name] * values[NAMES.index(each.name)]
        assert each.lowest - 1e-12 <= value <= each.highest + 1e-12
    memories = [each.meaning for each in found if each.name.startswith("noise")]
    assert memories and all("memory of about" in words for words in memories)


def test_a_page_of_another_law_shows_its_numbers(tmp_path: Path) -> None:
    steps = np.arange(100, 6_001, 100)
    rows = [f"{step},{5e-4 * min(1, step / 300)},{2.5 + 30 * step**-0.5:.5f}" for step in steps]
    (tmp_path / "curve.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    run_cli("fit", tmp_path / "curve.csv", "--page", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "is an assumption" in text and "L0 " in text and "left out: end of the curve" in text


def test_a_folder_is_no_page(pages: Path) -> None:
    result = CliRunner().invoke(app, ["schedule", "fit", str(pages / "runs.csv"), "--page", str(pages)])
    assert isinstance(result.exception, KinfolkError) and "this is a folder" in str(result.exception)


def test_the_report_shows_the_law_that_chose_the_schedule(pages: Path, make_run: Maker, tmp_path: Path) -> None:
    run = make_run()
    before = write_report([run], tmp_path / "before.html").read_text("utf-8")
    assert "no alternative was tried" in before
    probe = run / "schedule-probe"
    probe.mkdir()
    (probe / "law.json").write_bytes((pages / "law.json").read_bytes())
    without = write_report([run], tmp_path / "without.html")
    assert {"schedule-0-scatter", "schedule-0-weights"} < set(data_of(without))
    assert "no alternative was tried" not in without.read_text("utf-8")
    (probe / "ranking.json").write_bytes((pages / "ranking.json").read_bytes())
    whole = write_report([run], tmp_path / "report.html")
    assert "schedule-0-forecasts" in data_of(whole)
    assert json.loads((pages / "ranking.json").read_text())["verdict"] in whole.read_text("utf-8")
    (probe / "ranking.json").write_text('{"candidates": [{}]}')
    with pytest.raises(KinfolkError, match="this is no ranking"):
        write_report([run], tmp_path / "report.html")


def test_forecasts_while_training(make_run: Maker, tmp_path: Path) -> None:
    def edit(events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["event"] == "stage_finished" and event["stage"] == "small":
                event["not_forecast"] = "3 losses after the warm-up, and 5 are needed"

    folder = make_run(edit=edit)
    came = end_measured(folder, "medium")
    with_forecasts(folder, "medium", came, advised=True)
    small, medium = outlooks_of(read_run(folder))
    assert small.why and not small.made
    assert medium.came == came and medium.held == len(medium.made) - 1, "the first one misses"
    middle = medium.middle
    assert middle is not None and abs(medium.share(middle) - 0.5) <= 0.06
    plot = outlook_plot([(read_run(folder), (small, medium))])
    line = plot.views["share"]["data"][0]
    assert line["y"][0] == pytest.approx(8.0, abs=1e-3) and line["y"][-1] == pytest.approx(1.0, abs=1e-3)
    assert line["x"][-1] == 100 and plot.views["share"]["layout"]["xaxis"]["type"] == "linear"
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "Forecasts while training" in text and "3 losses after the warm-up, and 5 are needed" in text
    assert "step 120" in text and "0.050 lower" in text
    metrics = folder / "stages" / "medium" / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().replace('"advised_decay_step": 120.0', '"advised_decay_steps_after": 1200.0')
    )
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "1,200 steps after this stage" in text and "step 120" not in text and "0.050 lower" in text


def test_forecasts_of_a_stage_that_goes_on(make_run: Maker, tmp_path: Path) -> None:
    folder = make_run(stop_at=(1, 150))
    with_forecasts(folder, "medium", 3.0)
    (row,) = outlooks_of(read_run(folder))
    assert row.came is None and row.held == 0
    plot = outlook_plot([(read_run(folder), (row,))])
    assert plot.views["share"]["data"][0]["y"][-1] == 0, "against the newest forecast"
    assert "to come" in write_report([folder], tmp_path / "report.html").read_text("utf-8")
