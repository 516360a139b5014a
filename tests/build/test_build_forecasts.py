"""Members held against their forecasts: in the ledger, in the view, in the report; and nothing of it without a law."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro import SMALL, RecordingView, family, in_child, in_ranks

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.laws.choose import ChosenLaw, choose_law
from kinfolk.laws.loss import Calibration, FittedRange, LossLaw
from kinfolk.laws.published import LAWS
from kinfolk.laws.update import Point, updated
from kinfolk.report.answer import answer
from kinfolk.report.cautions import cautions
from kinfolk.report.forecasts import forecasts_of
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run


def law(level: float) -> ChosenLaw:
    """A law that forecasts about `level` for models of any size, to within 40 %."""
    fitted = FittedRange(runs=12, parameters=(1e3, 1e5), tokens=(1e2, 1e5), compute=(1e6, 1e10), ratio=(0.01, 1))
    return ChosenLaw(
        LossLaw(
            name="mine",
            E=level,
            A=0.1,
            B=0.1,
            alpha=0.3,
            beta=0.3,
            counting="total",
            standing="fitted",
            source="runs",
            fitted=fitted,
            calibration=Calibration(half_width=0.4, reach=1, hidden_runs=9, basis="rolling hold-out"),
        ),
        None,
        "unknown",
    )


def built(folder: Path, chosen: ChosenLaw | None) -> tuple[list[dict[str, Any]], list[str]]:
    view = RecordingView()
    build(family(folder), folder / "run", view, law=chosen)
    events = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "forecast_checked"], view.said


def warnings_of(folder: Path) -> list[str]:
    run = read_run(folder / "run")
    return [caution.text for caution in cautions([answer(run, [run])]) if "forecast" in caution.text]


def test_a_loss_inside_its_forecast(tmp_path: Path) -> None:
    small, large = built(tmp_path, law(3.5))[0]
    assert small["inside"] is True and large["inside"] is True
    assert [each["member"] for each in small["rest"]] == ["large"] and large["rest"] == []
    assert warnings_of(tmp_path) == []
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [member["member"] for member in plan["forecast"]["members"]] == ["small", "large"]
    # The rest is forecast by the law that has taken the small member in: it moved half of the way.
    first = {member["member"]: member["loss"] for member in plan["forecast"]["members"]}
    moved = np.log(small["rest"][0]["loss"] / first["large"])
    assert moved == pytest.approx(np.log(small["measured"] / first["small"]) / 2, rel=1e-6)
    assert large["forecast"]["loss"] == pytest.approx(small["rest"][0]["loss"])


def test_a_loss_outside_is_flagged_everywhere(tmp_path: Path) -> None:
    checks, said = built(tmp_path, law(2.0))
    assert checks[0]["inside"] is False
    assert any("OUTSIDE" in line and line.startswith("small") for line in said)
    assert any("large  is now forecast" in line for line in said)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "Outside the interval of the forecast: small" in page
    assert any("small ended at" in text and "something in its training" in text for text in warnings_of(tmp_path))


def test_a_published_law_first_learns_its_level(tmp_path: Path) -> None:
    small, large = built(tmp_path, choose_law(["besiroglu"]))[0]
    assert small["inside"] is None and small["forecast"] is None
    assert "sets the level" in write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert large["inside"] is not None and large["forecast"]["low"] < large["forecast"]["high"]


def test_without_a_law_nothing_is_said(finished: Path, tmp_path: Path) -> None:
    assert 'id="forecasts"' not in write_report([finished], tmp_path / "report.html").read_text()
    assert not (finished / "law.json").exists()
    assert "forecast_checked" not in (finished / "ledger.jsonl").read_text()
    assert json.loads((finished / "plan.json").read_text())["forecast"] is None


def test_updating() -> None:
    mine = law(3.0).law
    assert updated(mine, []) is mine
    points = [Point(1e4, 1e3, 1.1 * mine.predict(1e4, 1e3)), Point(1e5, 1e4, 1.1 * mine.predict(1e5, 1e4))]
    assert updated(mine, points).predict(1e6, 1e6) == pytest.approx(1.1 ** (2 / 3) * mine.predict(1e6, 1e6))
    besiroglu = LAWS["besiroglu"]
    shifted = [Point(n, 20 * n, besiroglu.predict(n, 20 * n) + 0.3) for n in (1e8, 1e9)]
    borrowed = updated(besiroglu, shifted)
    assert borrowed.predict(1e10, 2e11) == pytest.approx(besiroglu.predict(1e10, 2e11) + 0.3)
    assert borrowed.standing == "borrowed" and borrowed.calibration and borrowed.calibration.basis == "assumed"


def test_every_stage_of_a_trunk_with_patches_is_checked(tmp_path: Path) -> None:
    """Undecayed stages stand above the law, by what was measured so far; patch-level stages are on none."""
    changes = {"strategy": "trunk", "patch": {"size": 2}, "recipe": {"schedule": {"decay_share": 0.3}}}
    view = RecordingView()
    build(family(tmp_path, **changes), tmp_path / "run", view, law=law(3.5))
    events = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    checks = {event["stage"]: event for event in events if event["event"] == "forecast_checked"}
    assert list(checks) == ["small-undecayed", "small", "large-undecayed", "large"]
    assert [check["kind"] for check in checks.values()] == ["undecayed", "member"] * 2
    first = checks["small-undecayed"]
    assert [each["stage"] for each in first["rest"]] == ["small", "large-undecayed", "large"]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    planned = {stage["stage"]: stage for stage in plan["forecast"]["stages"]}
    assert planned["small-patch"]["loss"] is None and "no law" in planned["small-patch"]["cautions"][0]
    assert first["forecast"]["loss"] == pytest.approx(planned["small-undecayed"]["loss"])
    # Before its member is known, an undecayed stage moves the law as that member would, 4 % lower.
    moved = np.log(first["rest"][0]["loss"] / planned["small"]["loss"])
    assert moved == pytest.approx((np.log(first["measured"] / planned["small-undecayed"]["loss"])) / 2, abs=1e-9)
    # After it, the gap that was measured counts as much as the 4 % that were assumed.
    rest = {each["stage"]: each["loss"] for each in checks["small"]["rest"]}
    small, large = (
        np.log(planned[f"{name}-undecayed"]["loss"] / planned[name]["loss"]) - 0.04 for name in ("small", "large")
    )
    gap = np.log(first["measured"] / checks["small"]["measured"]) - small
    assert abs(gap - 0.04) > 0.005
    expected = np.exp((0.04 + gap) / 2 + large)
    assert rest["large-undecayed"] / rest["large"] == pytest.approx(expected, rel=1e-6)
    assert checks["large"]["rest"] == []
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    table = page.split('id="forecasts"')[1].split("</table>")[0]
    rows = {row.split('"')[0]: row for row in table.split('data-forecast="')[1:]}
    assert list(rows) == [stage["stage"] for stage in plan["forecast"]["stages"]]
    assert "on no law" in rows["small-patch"] and "undecayed model" in rows["large-undecayed"]
    for name, check in checks.items():
        shown = [f"{planned[name]['loss']:.3f}", f"{check['forecast']['loss']:.3f}", f"{check['measured']:.3f}"]
        assert all(f">{figure}<" in rows[name] for figure in shown)
        assert ("inside" if check["inside"] else "outside") in rows[name]
    assert "Forecast and measured" in page


def test_two_processes_check_every_stage_as_one_does(tmp_path: Path) -> None:
    """What no member has measured, they measure together; losses differ by the rounding of their training."""
    changes = {"strategy": "trunk", "patch": {"size": 2}, "recipe": {"schedule": {"decay_share": 0.3}}}
    loaded, log = family(tmp_path, **changes), tmp_path / "log"

    def work(run: Path) -> Callable[[], None]:
        return lambda: build(loaded, run, RecordingView(), law=law(3.5))

    assert in_child(work(tmp_path / "one"), log) == 0, log.read_text()
    assert in_ranks(work(tmp_path / "two"), log) == [0, 0], log.read_text()
    one, two = (Ledger(tmp_path / name / "ledger.jsonl").events("forecast_checked") for name in ("one", "two"))
    assert [each["stage"] for each in one] == ["small-undecayed", "small", "large-undecayed", "large"]
    for alone, together in zip(one, two, strict=True):
        assert (together["stage"], together["kind"], together["inside"]) == (
            alone["stage"],
            alone["kind"],
            alone["inside"],
        )
        assert together["measured"] == pytest.approx(alone["measured"], rel=1e-4)


def test_a_check_that_a_kill_took_is_made_up_for_once(tmp_path: Path) -> None:
    built(tmp_path, law(3.5))
    ledger = tmp_path / "run" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    taken = [line for line in lines if '"forecast_checked"' in line and '"large"' in line.split('"rest"')[0]]
    ended = [line for line in lines if '"build_finished"' in line]
    ledger.write_text("\n".join(line for line in lines if line not in taken + ended) + "\n")
    checks, _ = built(tmp_path, None)
    assert [check["stage"] for check in checks] == ["small", "large"]
    again = dict(checks[1])
    before = dict(json.loads(taken[0]))
    own = {"time": 0, "crc32": ""}
    assert again | own == before | own


def test_a_law_that_is_given_later_checks_what_comes_later(tmp_path: Path) -> None:
    """Stages from before may be among the runs that the law was fitted to."""
    changes = {"members": [{"name": "small", "shape": SMALL, "tokens": 1536}]}
    build(family(tmp_path, growth={"start": "finished"}, **changes), tmp_path / "run", RecordingView())
    build(family(tmp_path, growth={"start": "finished"}), tmp_path / "run", RecordingView(), law=law(3.5))
    events = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events if event["event"] == "forecast_checked"] == ["large"]


def test_a_build_that_is_not_finished_shows_what_is_to_come(tmp_path: Path) -> None:
    built(tmp_path, law(3.5))
    ledger = tmp_path / "run" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    cut = next(index for index, line in enumerate(lines) if '"forecast_checked"' in line) + 1
    ledger.write_text("\n".join(lines[:cut]) + "\n")
    found = forecasts_of(read_run(tmp_path / "run"))
    assert found is not None
    small, large = found.stages
    assert small.inside is True and small.error == pytest.approx(small.measured / small.latest.loss - 1)  # type: ignore[operator, union-attr]
    assert large.measured is None and large.inside is None
    assert large.latest is not None and large.latest.loss == json.loads(lines[cut - 1])["rest"][0]["loss"]
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "to come" in page and "small ended at" not in page
