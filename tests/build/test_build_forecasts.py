"""Members held against their forecasts: in the ledger, in the view, in the report; and nothing of it without a law."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro import RecordingView, family

from kinfolk.build.build import build
from kinfolk.laws.choose import ChosenLaw, choose_law
from kinfolk.laws.loss import Calibration, FittedRange, LossLaw
from kinfolk.laws.published import LAWS
from kinfolk.laws.update import Point, updated
from kinfolk.report.answer import answer
from kinfolk.report.cautions import cautions
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
    assert any("small ended at" in text and "something in its training" in text for text in warnings_of(tmp_path))


def test_a_published_law_first_learns_its_level(tmp_path: Path) -> None:
    small, large = built(tmp_path, choose_law(["besiroglu"]))[0]
    assert small["inside"] is None and small["forecast"] is None
    assert large["inside"] is not None and large["forecast"]["low"] < large["forecast"]["high"]


def test_without_a_law_nothing_is_said(finished: Path) -> None:
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
