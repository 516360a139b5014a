"""Whenever a build dies, the same call goes on and ends with the bytes of a build that did not."""

import os
import random
import signal
from pathlib import Path

import pytest
from dying import die_at, wrap
from micro import RecordingView, check_whole, exit_code, family, in_child, leftovers, start_child

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.plan.strategies import plan_family

Uninterrupted = tuple[Path, dict[str, bytes]]


def ignore() -> None: ...


POINTS = [
    ("before", "kinfolk.data.tokens:encode_corpus", 1),
    ("before", "kinfolk.data.tokens:write_json", 1),
    ("after", "kinfolk.data.tokens:write_json", 1),
    ("after", "kinfolk.data.versions:prepare", 1),
    ("after", "kinfolk.files:write_json", 1),  # plan.json is there, family.yaml is not
    ("after", "kinfolk.build.build:begin_run", 1),
    ("before", "kinfolk.train.saving:dcp_save", 1),
    ("after", "kinfolk.train.saving:dcp_save", 1),
    ("after", "kinfolk.train.saving:dcp_save", 2),
    ("after", "kinfolk.train.saving:write_state", 3),
    ("before", "kinfolk.build.growth_state:write_tensors", 1),
    ("after", "kinfolk.train.saving:Saving.finish", 1),
    ("before", "shutil:rmtree", 2),  # the new checkpoint is there, the old one not yet gone
    ("before", "kinfolk.train.monitor:Monitor.flush", 2),
    ("after", "kinfolk.train.monitor:Monitor.record", 7),
    ("after", "kinfolk.train.monitor:Monitor.record", 20),
    ("after", "kinfolk.build.build:train_stage", 1),
    ("before", "kinfolk.build.finish:export_saved", 1),
    ("after", "kinfolk.growth.safetensors_writer:WeightsWriter.close", 1),
    ("before", "kinfolk.files:flush_directory", 5),
    ("after", "kinfolk.build.finish:export_saved", 1),
    ("before", "kinfolk.build.growth_state:grown_tensors", 1),
    ("after", "kinfolk.growth.width:WidthGrowth.gradients", 3),
    ("before", "kinfolk.growth.safetensors_writer:FileWriter.close", 3),
    ("after", "kinfolk.build.growth_state:compare_stored", 1),
    ("after", "kinfolk.build.finish:export_saved", 2),
    ("after", "kinfolk.build.build:finish_member", 2),
]


@pytest.mark.parametrize(("when", "target", "number"), POINTS)
def test_killed_at_one_point(uninterrupted: Uninterrupted, tmp_path: Path, when: str, target: str, number: int) -> None:
    loaded, folder = family(uninterrupted[0]), tmp_path / "run"

    def work() -> None:
        die = die_at(number)
        wrap(target, *((die, ignore) if when == "before" else (ignore, die)))
        build(loaded, folder, RecordingView())

    assert in_child(work, tmp_path / "log") == -signal.SIGKILL, "the point was not reached"
    assert in_child(lambda: build(loaded, folder, RecordingView()), tmp_path / "log") == 0
    check_whole(folder, uninterrupted[1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_again_and_again(uninterrupted: Uninterrupted, tmp_path: Path, seed: int) -> None:
    """Every process dies after a random number of things done, before or after one of them."""
    loaded, folder, draw = family(uninterrupted[0]), tmp_path / "run", random.Random(seed)
    targets = [*{target for _, target, _ in POINTS}, "kinfolk.build.ledger:Ledger.append", "os:fsync"]
    codes = []
    while not codes or codes[-1] != 0:
        number = draw.randint(20, 160)

        def work(number: int = number) -> None:
            die = die_at(number)
            for target in targets:
                wrap(target, die, die)
            build(loaded, folder, RecordingView())

        codes.append(in_child(work, tmp_path / "log"))
        assert len(codes) < 40 and codes[-1] in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
    assert len(codes) > 2
    check_whole(folder, uninterrupted[1])


@pytest.mark.parametrize("cut", [3, 4, 6])
def test_killed_with_half_a_line_in_the_ledger(uninterrupted: Uninterrupted, tmp_path: Path, cut: int) -> None:
    loaded, folder = family(uninterrupted[0]), tmp_path / "run"

    def work() -> None:
        def halve() -> None:
            ledger = folder / "ledger.jsonl"
            lines = ledger.read_bytes().splitlines(keepends=True)
            if len(lines) == cut:
                ledger.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        wrap("kinfolk.build.ledger:Ledger.append", ignore, halve)
        build(loaded, folder, RecordingView())

    assert in_child(work, tmp_path / "log") == -signal.SIGKILL
    assert in_child(lambda: build(loaded, folder, RecordingView()), tmp_path / "log") == 0
    check_whole(folder, uninterrupted[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["early", "end of a stage", "later stage", "end"])
def test_a_signal_saves_and_the_build_goes_on(
    uninterrupted: Uninterrupted, tmp_path: Path, number: int, place: str
) -> None:
    loaded, folder = family(uninterrupted[0]), tmp_path / "run"
    steps = [stage.steps for stage in plan_family(loaded.family).stages]
    step = {"early": 2, "end of a stage": steps[0], "later stage": steps[0] + 5, "end": sum(steps)}[place]

    def stop(count: int) -> None:
        if count == step:
            os.kill(os.getpid(), number)

    child = start_child(lambda: build(loaded, folder, RecordingView(stop)), tmp_path / "log")
    assert exit_code(child) == 128 + number
    (event,) = Ledger(folder / "ledger.jsonl").events("interrupted")
    done = sum(each["steps"] for each in Ledger(folder / "ledger.jsonl").events("stage_finished"))
    assert done + event["step"] == step  # nothing that was recorded is lost
    view = RecordingView()
    build(loaded, folder, view)
    assert view.steps == sum(steps) - step
    check_whole(folder, uninterrupted[1])


@pytest.mark.parametrize(
    "target", ["kinfolk.build.growth_state:write_tensors", "kinfolk.growth.safetensors_writer:WeightsWriter.close"]
)
def test_a_signal_outside_training_stops_at_once(uninterrupted: Uninterrupted, tmp_path: Path, target: str) -> None:
    loaded, folder = family(uninterrupted[0]), tmp_path / "run"

    def work() -> None:
        wrap(target, ignore, lambda: os.kill(os.getpid(), signal.SIGTERM))
        build(loaded, folder, RecordingView())

    assert in_child(work, tmp_path / "log") == 128 + signal.SIGTERM
    assert leftovers(folder) == []
    build(loaded, folder, RecordingView())
    check_whole(folder, uninterrupted[1])
