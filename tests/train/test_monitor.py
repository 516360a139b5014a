import json
from pathlib import Path

import pytest
from micro import RecordingView
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinfolk.train.monitor import Monitor, final_loss, read_metrics


def record(folder: Path, first: int, last: int) -> None:
    with Monitor(folder, first, RecordingView()) as monitor:
        for step in range(first + 1, last + 1):
            monitor.record({"step": step, "loss": step + first / 100})
            if step % 2 == 0:
                monitor.record({"step": step, "held_out_loss": 1.0})


def test_a_resume_takes_back_what_will_be_done_again(tmp_path: Path) -> None:
    record(tmp_path, 0, 7)
    record(tmp_path, 4, 9)
    records = read_metrics(tmp_path / "metrics.jsonl")
    losses = {each["step"]: each["loss"] for each in records if "loss" in each}
    assert losses == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5.04, 6: 6.04, 7: 7.04, 8: 8.04, 9: 9.04}
    assert len(records) == 9 + 4
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 10))
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(list(losses.values()))


@pytest.mark.parametrize("damage", [b'{"step": 3, "lo', b"\xff\xfe\n", b'[1]\n{"step": 9}\n', b'{"step": "x"}\n'])
def test_a_damaged_end_is_dropped(tmp_path: Path, damage: bytes) -> None:
    record(tmp_path, 0, 1)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(damage)
    record(tmp_path, 1, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]


@pytest.mark.parametrize("step", ["1" + 400 * "0", "-1" + 400 * "0", "1e999", "null", '"7"'])
def test_records_of_no_step_are_passed_over(tmp_path: Path, step: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 3.0}}\n{{"step": {step}, "loss": 2.5}}\n')
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with Monitor(tmp_path, 0, RecordingView()) as monitor, pytest.raises(ValueError, match="finite"):
        monitor.record({"step": 1, "loss": float("nan")})


def test_final_loss_is_the_mean_of_the_last_tenth() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 21)] + [{"step": 20, "held_out_loss": 9.0}]
    assert final_loss(records) == 19.5
    assert final_loss(records[:3]) == 3
