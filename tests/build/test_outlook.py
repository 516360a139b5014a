"""Forecasts of stages while they train: recorded, bounded in time, and the same after a resume."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from micro import CONTEXT, SEQUENCES_PER_STEP, SMALL, RecordingView, family, members_of
from rich.console import Console
from typer.testing import CliRunner

from kinfolk.build import outlook
from kinfolk.build.build import build
from kinfolk.build.line import Line, batches_done, decay_begin, line_of, planned_decay, step_at
from kinfolk.build.line_curves import gain_for, read_points
from kinfolk.build.outlook import Outlook, Prospect, prospect
from kinfolk.build.view import LiveView
from kinfolk.cli.app import app
from kinfolk.schedule.advice import Advice
from kinfolk.schedule.live import Forecast, NotYet
from kinfolk.schedule.live_law import Gain
from kinfolk.schedule.shapes import NamedSchedule
from kinfolk.train.monitor import read_metrics

STEP = SEQUENCES_PER_STEP * CONTEXT


def trunk_family(folder: Path) -> Any:
    recipe = {"held_out_every_steps": 1, "schedule": {"decay_share": 0.4}, "checkpoints": {"steps": 1000}}
    tokens = [f"members.{index}.tokens={steps * STEP}" for index, steps in enumerate((16, 26))]
    return family(folder, *tokens, "strategy=trunk", recipe=recipe)


def single_family(folder: Path) -> Any:
    recipe = {"held_out_every_steps": 2, "checkpoints": {"steps": 8}}
    members = [{"name": "small", "shape": SMALL, "tokens": 24 * STEP}]
    return family(folder, recipe=recipe, members=members)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trunk run with as much time for forecasts as they want."""
    return unhurried(trunk_family, tmp_path_factory.mktemp("trunk"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of one member from scratch."""
    return unhurried(single_family, tmp_path_factory.mktemp("single"))


def unhurried(loaded: Callable[[Path], Any], folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlook, "SHARE_OF_TIME", 1e9)
        build(loaded(folder), folder / "run", RecordingView())
    return folder / "run"


def documents(run: Path) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in json.loads((run / "plan.json").read_text())["stages"]}


def forecasts(run: Path, stage: str) -> dict[int, float]:
    records = read_metrics(run / "stages" / stage / "metrics.jsonl")
    return {record["step"]: record["forecast_loss"] for record in records if "forecast_loss" in record}


def test_forecasts_are_recorded_beside_held_out_losses_and_are_what_the_law_says(trunk: Path) -> None:
    found = {name: forecasts(trunk, name) for name in documents(trunk)}
    assert list(found) == ["small-undecayed", "small", "large-undecayed", "large"]
    for name, made in found.items():
        seen = prospect(trunk, documents(trunk), name)
        assert not isinstance(seen, NotYet)
        points = [
            (record["step"], record["held_out_loss"])
            for record in read_metrics(trunk / "stages" / name / "metrics.jsonl")
            if "held_out_loss" in record
        ]
        for count in range(1, len(points)):
            said = seen.forecast(points[:count])
            step = points[count - 1][0]
            assert (step in made) == isinstance(said, Forecast)
            if isinstance(said, Forecast):
                assert made[step] == said.loss
        assert points[-1][0] not in made, "the end needs no forecast"
    assert sum(map(len, found.values())) > 3


def test_a_build_without_forecasts_ends_with_the_same_bytes(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outlook, "_record", lambda self: {})
    build(single_family(tmp_path), tmp_path / "run", RecordingView())
    assert forecasts(single, "small") and not forecasts(tmp_path / "run", "small")
    assert members_of(tmp_path / "run") == members_of(single)


def test_a_build_that_was_stopped_makes_the_same_forecasts(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "SHARE_OF_TIME", 1e9)

    def stop(count: int) -> None:
        if count == 19:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(single_family(tmp_path), tmp_path / "run", RecordingView(stop))
    view = RecordingView()
    build(single_family(tmp_path), tmp_path / "run", view)
    assert view.started == [("small", 16)]
    assert forecasts(tmp_path / "run", "small") == forecasts(single, "small")


def test_time_is_bounded(trunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prospect(trunk, documents(trunk), "large-undecayed")
    assert not isinstance(seen, NotYet)
    slow = Outlook(seen, [])
    clock = iter(range(1_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))  # every forecast takes a second
    steps = range(1, documents(trunk)["large-undecayed"]["steps"])
    made = [step for step in steps if slow(step, 5.0 / step**0.1, 100.0)]
    assert len(made) == 1 and slow.why == "it would have taken more than 0.5% of the training"
    patient = Outlook(seen, [])
    assert sum(bool(patient(step, 5.0 / step**0.1, 1000.0)) for step in steps) == 5, "five seconds of a thousand"


def test_what_no_law_holds_for_is_said(trunk: Path) -> None:
    stages = documents(trunk)
    kinds: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda stage: stage.update(objective={"kind": "patch", "size": 4}), "patch-level training is on no law"),
        (lambda stage: stage.update(source={"kind": "load", "folder": "x"}), "it goes on from a checkpoint whose"),
        (lambda stage: stage["source"].update(optimizer="reset"), "it goes on with a new optimizer state"),
        (lambda stage: stage.update(data=["second"]), "it goes on with other data"),
    ]
    for change, why in kinds:
        changed = json.loads(json.dumps(stages))
        change(changed["small"])
        found = line_of(changed, "small")
        assert isinstance(found, NotYet) and found.why.startswith(why)
    changed = json.loads(json.dumps(stages))
    changed["small-undecayed"]["objective"] = {"kind": "patch", "size": 4}
    assert line_of(changed, "small") == NotYet("it goes on from patch-level training")
    changed["large-undecayed"]["source"]["dynamics"]["rates"] = "inherit"
    assert line_of(changed, "large") == NotYet("new coordinates have rates of their own")


def test_lines_begin_at_a_growth_and_know_the_decay_after_them(trunk: Path) -> None:
    stages = documents(trunk)
    line = line_of(stages, "large")
    assert isinstance(line, Line)
    assert [stage["name"] for stage in line.stages] == ["large-undecayed", "large"] and line.grown
    steps = [stages[name]["steps"] for name in ("large-undecayed", "large")]
    assert (line.before, line.steps) == (steps[0], sum(steps))
    assert planned_decay(stages, "large-undecayed") == line.schedule
    assert isinstance(line.schedule, NamedSchedule) and line.schedule.decay_steps == steps[1]


def test_batch_warmup_counts_whole_batches(trunk: Path) -> None:
    stage = {**documents(trunk)["small"], "batch_warmup": [{"batches": 4, "parts": 2}], "steps": 24}
    assert [batches_done(stage, step) for step in (0, 2, 8, 9, 24)] == [0, 1, 4, 5, 20]
    assert [batches_done(stage, step) for step in (1, 3, 5, 7)] == [0, 1, 2, 3], "half a batch is none"
    assert [step_at(stage, batches) for batches in (0, 1, 4, 5, 20)] == [0, 2, 8, 9, 24]
    held = {**stage, "rate": {**stage["rate"], "warmup_steps": 1, "decay_steps": 10}}
    assert decay_begin(held) == 14 and decay_begin({**held, "rate": {**held["rate"], "decay_steps": 0}}) is None


def test_the_gain_is_said_to_come_from_the_line_that_it_comes_from(trunk: Path, tmp_path: Path) -> None:
    """Of two earlier lines the nearer one has two points behind its warm-up, which say nothing."""
    names, found = ("small-undecayed", "small"), documents(trunk)
    stages = {}
    for name in names:
        first = json.loads(json.dumps(found[name]).replace('"small', '"first'))
        stages[first["name"]] = first
        shutil.copytree(trunk / "stages" / name, tmp_path / "stages" / first["name"])
        metrics = tmp_path / "stages" / name / "metrics.jsonl"
        metrics.parent.mkdir()
        last = json.dumps({"step": found[name]["steps"], "held_out_loss": 4.0})
        metrics.write_text(last + "\n")
    line = line_of(found, "large-undecayed")
    assert isinstance(line, Line)
    gain, source = gain_for(tmp_path, stages | found, line)
    assert source == "first" and gain == gain_for(trunk, found, line)[0] != Gain()
    assert gain_for(tmp_path, found, line) == (Gain(), None)


def test_an_advised_beginning_behind_the_stage_is_told_from_its_end(
    trunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decay of a stretch of trunk comes in the stage after it, and so may the better beginning."""
    seen = prospect(trunk, documents(trunk), "small-undecayed")
    assert not isinstance(seen, NotYet) and seen.planned is not None
    steps = seen.line.steps
    assert seen.planned.steps > steps + 1
    forecast_last = max(forecasts(trunk, "small-undecayed"))
    points = [point for point in read_points(trunk, seen.line.stages[-1]) if point[0] <= forecast_last]
    advice = seen.advice(points)
    assert isinstance(advice, Advice)
    for begin, expected, words in (
        (steps - 1, {"advised_decay_step": steps - 1}, f"at step {steps - 1} instead"),
        (steps, {"advised_decay_step": steps}, f"at step {steps} instead"),
        (steps + 1, {"advised_decay_steps_after": 1}, "1 step after this stage instead"),
        (steps + 3, {"advised_decay_steps_after": 3}, "3 steps after this stage instead"),
    ):
        other = replace(advice, keep=False, choice=replace(advice.choice, begin=begin), gain=0.25)
        monkeypatch.setattr(Prospect, "advice", lambda self, points, other=other: other)
        step, loss = points[-1]
        record = Outlook(seen, points[:-1])(step, loss, 1e9)
        assert {key: value for key, value in record.items() if "advised" in key} == {**expected, "advised_gain": 0.25}
        output = StringIO()
        with LiveView(Console(file=output, width=200)) as view:
            view.planned("micro", list(documents(trunk).values()))
            view.stage_started("small-undecayed", steps, 0)
            view.stepped({"step": step, "held_out_loss": loss, **record})
        assert f"the law would begin the decay {words}: 0.250 nats lower at the end" in output.getvalue()


def test_the_ledger_says_why_there_was_no_forecast(finished: Path) -> None:
    """The micro family's stages are over before there are five points."""
    events = [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    why = [event["not_forecast"] for event in events if event["event"] == "stage_finished"]
    assert why == ["3 losses after the warm-up, and 5 are needed"] * 2


def advise(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["schedule", "advise", *arguments])


def test_advise_command(trunk: Path) -> None:
    result = advise(str(trunk), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["stage"] == "large-undecayed" and found["decay_is_planned"] and found["grown"]
    planned = planned_decay(documents(trunk), "large-undecayed")
    assert planned is not None and found["end"] == planned.steps
    assert found["planned"]["begin_step"] == found["now"] == planned.steps - planned.decay_steps
    later = json.loads(advise(str(trunk), "--stage", "large-undecayed", "--end", str(40 * STEP), "--json").stdout)
    assert later == json.loads(advise(str(trunk), "--end", "40steps", "--json").stdout)
    assert later["end"] == 40 and later["end_tokens"] == 40 * STEP
    assert min(option["begin_step"] for option in later["options"]) == later["now"]
    table = advise(str(trunk), "--stage", "large-undecayed")
    assert table.exit_code == 0 and "planned" in table.stdout and "90 % interval" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--stage", "nobody"], "there is no stage 'nobody'"),
        (["--stage", "large"], "its decay began at step"),
        (["--end", "soon"], "'soon' is no end"),
        (["--end", "1"], "less than two steps"),
        (["--end", "nan"], "is no end"),
        (["--end", "5steps"], "the end would be step 5"),
        (["--end", "1e9"], "less than 20% of the steps are done"),
    ],
)
def test_advise_refuses(trunk: Path, arguments: list[str], problem: str) -> None:
    result = advise(str(trunk), *arguments)
    assert result.exit_code == 1 and problem in str(result.exception), result.output


def test_advise_refuses_what_is_no_run(tmp_path: Path) -> None:
    assert "plan.json cannot be read" in str(advise(str(tmp_path)).exception)
    (tmp_path / "plan.json").write_text('{"stages": [{"name": "a"}]}')
    assert "lacks what a law needs" in str(advise(str(tmp_path), "--stage", "a").exception)
