"""The plot of losses: where curves and marks lie on every axis, in both units."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Maker, make_plan
from synthetic_schedules import end_measured, with_forecasts

from kinfolk.report.figures import Plot
from kinfolk.report.loss_figure import POINTS, loss_plot
from kinfolk.report.rate_figure import planned_rates
from kinfolk.report.run import read_run
from kinfolk.train.rate import learning_rate


def traces(plot: Plot, view: str) -> list[dict[str, Any]]:
    """The traces of a view with their columns put in, as the page's script does it."""
    found = []
    for trace in plot.views[view]["data"]:
        assert all(trace[field] in plot.columns for field in ("x", "y", "customdata"))
        found.append({**trace, **{field: plot.columns[trace[field]] for field in ("x", "y", "customdata")}})
    return found


def lines(plot: Plot, view: str) -> list[dict[str, Any]]:
    return [trace for trace in traces(plot, view) if trace["mode"] == "lines"]


def marks(plot: Plot, view: str, name: str) -> list[dict[str, Any]]:
    return [trace for trace in traces(plot, view) if trace["name"] == name]


def members(plot: Plot, view: str) -> list[dict[str, Any]]:
    return [trace for trace in traces(plot, view) if trace.get("marker", {}).get("symbol") == "diamond"]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (run / "ledger.jsonl").read_text("utf-8").splitlines()]
    return [event for event in every if event["event"] == kind]


@pytest.mark.parametrize(("view", "key"), [("6ND, loss", "six_nd"), ("matmul, loss", "matmul"), ("tokens, loss", "")])
def test_curves_follow_the_lineage_and_are_thinned(make_run: Maker, view: str, key: str) -> None:
    plot = loss_plot([read_run(make_run())])
    end = 0.0
    for line, stage in zip(lines(plot, view), make_plan("progressive")["stages"], strict=True):
        assert end < line["x"][0] and len(line["x"]) <= 600
        end += stage["flops"][key] if key else stage["tokens"]
        assert line["x"][-1] == pytest.approx(end, rel=1e-5)


def test_time_adds_up_training_and_growing(make_run: Maker) -> None:
    run = make_run()
    plot = loss_plot([read_run(run)])
    assert plot.views["time, loss"]["layout"]["xaxis"]["title"]["text"].endswith("lineage, minutes")
    first, second, _ = lines(plot, "time, loss")
    before = events(run, "stage_finished")[0]["seconds"] + events(run, "grown")[0]["seconds"]
    # The first step of a stage takes 0.08 seconds, by its metrics.
    assert second["x"][0] == pytest.approx((before + 0.08) / 60, rel=1e-5)
    assert first["x"][0] == pytest.approx(0.08 / 60, rel=1e-5)


def test_bits_per_byte_are_converted_and_members_measured(make_run: Maker) -> None:
    run = make_run()
    plot = loss_plot([read_run(run)])
    for nats, bits in zip(lines(plot, "tokens, loss"), lines(plot, "tokens, bits per byte"), strict=True):
        rate = 9_000_000 / 25_000_000 / math.log(2)
        assert bits["y"] == pytest.approx([rate * loss for loss in nats["y"]], rel=1e-5)
    found = [
        each for each in traces(plot, "tokens, bits per byte") if each.get("marker", {}).get("symbol") == "diamond"
    ]
    assert len(found) == 3
    for trace, event in zip(found, events(run, "member_finished"), strict=True):
        held_out = event["held_out"]
        assert trace["y"] == [pytest.approx(held_out["bits_per_byte"], rel=1e-5)]
        assert trace["error_y"]["array"] == [
            pytest.approx(held_out["bits_per_byte_high"] - held_out["bits_per_byte"], 1e-4)
        ]
    exact = [each for each in traces(plot, "6ND, loss") if each.get("marker", {}).get("symbol") == "diamond"]
    assert [each["y"][0] for each in exact] == pytest.approx(
        [event["held_out"]["loss"] for event in events(run, "member_finished")], rel=1e-5
    )


def test_without_counts_of_the_data_there_are_no_bits(make_run: Maker) -> None:
    run = make_run(edit=lambda ledger: ledger.pop(1) and None)
    plot = loss_plot([read_run(run)])
    assert set(plot.views) == {"6ND", "matmul", "tokens", "time"} and len(plot.groups) == 1


def test_growths_and_decays_are_marked(make_run: Maker) -> None:
    plan = make_plan("progressive")
    for stage in plan["stages"]:
        stage["rate"]["decay_steps"] = stage["steps"] // 4
    plot = loss_plot([read_run(make_run(plan=plan))])
    (growth,) = marks(plot, "6ND, loss", "growth")
    costs = [stage["flops"]["six_nd"] for stage in plan["stages"]]
    assert growth["x"] == pytest.approx([costs[0], costs[0] + costs[1]], rel=1e-5)
    assert growth["customdata"] == ["growth<br>small → medium", "growth<br>medium → large"]
    (decay,) = marks(plot, "tokens, loss", "decay begins")
    begin = 0.0
    for at, stage in zip(decay["x"], plan["stages"], strict=True):
        expected = begin + stage["tokens"] * (stage["steps"] - stage["steps"] // 4) / stage["steps"]
        assert at == pytest.approx(expected, rel=1e-5)
        begin += stage["tokens"]
    assert decay["legendgroup"] == "0:decay begins", "cannot be the group of a stage of that name"


def test_a_change_of_objective_is_marked_and_patch_loss_is_not_drawn(make_run: Maker) -> None:
    plan = make_plan("progressive")
    patches, tokens, _ = plan["stages"]
    patches["objective"] = {"kind": "patch", "size": 4}
    plan["stages"][1] = {**tokens, "source": {"kind": "continue", "stage": "small"}}
    run = make_run(plan=plan)
    path = run / "stages/small/metrics.jsonl"
    path.write_text(path.read_text().replace('"loss"', '"patch_loss"'))
    plot = loss_plot([read_run(run)])
    (switch,) = marks(plot, "6ND, loss", "change of objective")
    assert switch["x"] == pytest.approx([patches["flops"]["six_nd"]], rel=1e-5)
    assert switch["customdata"] == ["from patches of 4 to tokens<br>small → medium"]
    assert [line["name"] for line in lines(plot, "6ND, loss")] == ["medium", "large"]


def test_forecasts_stand_at_the_end_of_their_stage_with_intervals(make_run: Maker) -> None:
    def edit(ledger: list[dict[str, Any]]) -> None:
        place = next(number for number, each in enumerate(ledger) if each["event"] == "member_finished") + 1
        forecast = {"loss": 1.6, "low": 1.5, "high": 1.8}
        check = {"stage": "small", "member": "small", "law": "x", "unit": "bits per byte", "measured": 1.65}
        ledger.insert(place, {"event": "forecast_checked", "time": 0, **check, "forecast": forecast, "inside": True})

    run = make_run(edit=edit)
    came = end_measured(run, "medium")
    with_forecasts(run, "medium", came)
    plot = loss_plot([read_run(run)])
    (bits,) = marks(plot, "tokens, bits per byte", "forecast of the end")
    (nats,) = marks(plot, "tokens, loss", "forecast of the end")
    assert (bits["y"][0], bits["error_y"]["arrayminus"][0], bits["error_y"]["array"][0]) == pytest.approx(
        (1.6, 0.1, 0.2)
    )
    rate = 410_000 / 1_150_000 / math.log(2)
    assert nats["y"][0] == pytest.approx(1.6 / rate, rel=1e-5) and bits["y"][1] == pytest.approx(
        rate * nats["y"][1], 1e-5
    )
    small, medium, _ = make_plan("progressive")["stages"]
    assert nats["x"] == pytest.approx([small["tokens"], small["tokens"] + medium["tokens"]], rel=1e-5)
    assert "from its own curve, at" in nats["customdata"][1]


def test_many_runs_are_drawn_with_fewer_points(make_run: Maker) -> None:
    runs = [read_run(make_run(f"run{number}"), f"run{number}") for number in range(16)]
    plot = loss_plot(runs)
    drawn = sum(len(line["x"]) for line in lines(plot, "6ND, loss"))
    assert 0.4 * POINTS < drawn <= POINTS


def test_planned_rates_are_those_of_training() -> None:
    stage = read_stage()
    for share, rate in planned_rates(stage):
        step = round(share * stage.steps)
        assert rate == learning_rate(stage.rate, step, stage.steps)
    assert max(rate for _, rate in planned_rates(stage)) == stage.rate.peak


def read_stage() -> Any:
    from kinfolk.report.records import Plan

    return Plan.model_validate(make_plan("progressive")).stages[0]
