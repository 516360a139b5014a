"""Clocks that jump, gradients that are no numbers, two builds at once, an interrupted make, and kills at random."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chaos
import pytest
import torch
import yaml
from micro import RecordingView, check_whole, exit_code, family, in_child, members_of, start_child
from safetensors.torch import load_file

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.lines import read_lines
from kinfolk.report.page import write_report
from kinfolk.train import stage as training_of_a_stage
from kinfolk.train.divergence import DivergedError
from kinfolk.train.monitor import read_metrics

Uninterrupted = tuple[Path, dict[str, bytes]]
PASSING = {"time", "seconds", "checkpoint_seconds", "tokens_per_second", "command", "machine", "not_forecast"}


def test_a_clock_that_jumps_harms_nothing(
    uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now it goes back by an hour whenever somebody asks, now forward by ten years."""
    now = 2e9

    def jumping() -> float:
        nonlocal now
        now += 3e8 if int(now) % 3 == 0 else -3601
        return now

    monkeypatch.setattr(time, "time", jumping)
    build(family(uninterrupted[0]), tmp_path / "run", RecordingView())
    page = write_report([tmp_path / "run"], tmp_path / "run" / "report.html").read_text("utf-8")
    check_whole(tmp_path / "run", uninterrupted[1])
    events = Ledger(tmp_path / "run" / "ledger.jsonl").events()
    assert any(after["time"] < before["time"] for before, after in itertools.pairwise(events))
    assert all(0 <= event["seconds"] < 600 for event in events if "seconds" in event)
    assert page.rstrip().endswith("</html>")


@pytest.mark.parametrize("value", [float("nan")])
def test_a_gradient_that_is_no_number_stops_before_the_weights_are_touched(
    uninterrupted: Uninterrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    loaded, run = family(uninterrupted[0]), tmp_path / "run"
    real, calls = training_of_a_stage.accumulate_within_memory, 0

    def accumulate(objective: torch.nn.Module, *arguments: Any) -> list[float]:
        nonlocal calls
        calls += 1
        sums = real(objective, *arguments)
        if calls == 7:
            gradient = next(objective.parameters()).grad
            assert gradient is not None
            gradient.view(-1)[0] = value
        return sums

    with monkeypatch.context() as broken:
        broken.setattr(training_of_a_stage, "accumulate_within_memory", accumulate)
        with pytest.raises(DivergedError, match=f"gradient norm {value} at step 7 of 12") as caught:
            build(loaded, run, RecordingView())
    assert "last good checkpoint is kept at" in str(caught.value) and "step-00000004" in str(caught.value)
    assert [event["step"] for event in Ledger(run / "ledger.jsonl").events("stage_diverged")] == [7]
    assert max(record["step"] for record in read_metrics(run / "stages" / "small" / "metrics.jsonl")) == 6
    build(loaded, run, RecordingView())  # what was a fault of the machine is gone, and nothing of it is left
    check_whole(run, uninterrupted[1])


def contents(run: Path) -> dict[Path, bytes]:
    """All files but TensorBoard's, which a thread of its own writes when it likes."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "tfevents" not in path.name}


def test_the_second_build_is_refused_until_the_first_is_dead(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    loaded, run = family(uninterrupted[0]), tmp_path / "run"
    ready, say = os.pipe()

    def stay(count: int) -> None:
        if count == 6:
            os.write(say, b"!")
            signal.pause()

    first = start_child(lambda: build(loaded, run, RecordingView(stay)), tmp_path / "first")
    assert os.read(ready, 1) == b"!"
    before = contents(run)
    assert in_child(lambda: build(loaded, run, RecordingView()), tmp_path / "second") == 2
    assert "another build is at work in this run directory" in (tmp_path / "second").read_text()
    assert contents(run) == before
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    assert in_child(lambda: build(loaded, run, RecordingView()), tmp_path / "third") == 0
    check_whole(run, uninterrupted[1])


PYTHON = """#!/bin/sh
# Stands in for python: makes a venv of stubs, and dies with its make where and when it is told to.
echo "$@" >> "$LOG"
case "$*" in *"$DIE_AT"*) if [ ! -e "$LOG.died" ]; then touch "$LOG.died"; kill -9 "$PPID"; exit 1; fi;; esac
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
case "$*" in *editable*) printf '#!/bin/sh\\necho built\\n' > .venv/bin/kinfolk; chmod +x .venv/bin/kinfolk;; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("place", ["-m venv", "torch==", "--editable"])
def test_an_interrupted_make_is_begun_again_and_then_left_alone(tmp_path: Path, place: str) -> None:
    root = Path(__file__).parents[2]
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    log = tmp_path / "log"

    def make(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "family", f"PYTHON={python}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "LOG": str(log), "DIE_AT": "nowhere", **environment},
        )

    assert make(DIE_AT=place).returncode != 0
    assert not (tmp_path / ".venv" / ".ready").exists()
    assert make(DIE_AT=place).stdout.endswith("built\n")
    assert (tmp_path / ".venv" / ".ready").exists()
    done = log.read_text()
    assert make().stdout.endswith("built\n") and log.read_text() == done


def test_the_same_family_gives_the_same_bytes_twice(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """In another process, with other hashes of strings, from another directory, by the command."""
    first, second = uninterrupted[0] / "run", tmp_path / "second"
    subprocess.run(
        [sys.executable, "-m", "kinfolk", "build", str(uninterrupted[0] / "family.yaml"), "--run", str(second)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )
    assert members_of(second) == members_of(first)
    for folder, pattern in (("data", "**/*"), (".", "plan.json"), (".", "family.yaml")):
        found = {path.relative_to(second) for path in (second / folder).glob(pattern) if path.is_file()}
        assert found == {path.relative_to(first) for path in (first / folder).glob(pattern) if path.is_file()} != set()
        assert [path for path in found if (first / path).read_bytes() != (second / path).read_bytes()] == []
    for saved in (first / "stages").glob("**/*.safetensors"):
        one, two = load_file(saved), load_file(second / saved.relative_to(first))
        one.pop("random.cpu"), two.pop("random.cpu")  # of the process; nothing in training draws from it
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    for name in ("ledger.jsonl", "stages/small/metrics.jsonl", "stages/large/metrics.jsonl"):
        said, again = ([steady(record) for _, record in read_lines(run / name).records] for run in (first, second))
        assert said == again


def steady(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what tells of the clock."""
    return {
        name: steady(value) if isinstance(value, dict) else value
        for name, value in record.items()
        if name not in PASSING and not name.startswith("forecast_")
    }


def test_a_few_kills_at_random_moments(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """benchmarks/chaos.py on the smallest family; the whole of it is in docs/durability.md."""
    document = yaml.safe_load(Path(uninterrupted[0] / "family.yaml").read_text())
    document["data"]["train"] = [{"path": str(uninterrupted[0] / "corpus")}]
    document["recipe"]["checkpoints"] = {"steps": chaos.SAVED_EVERY}
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(document))
    checks = chaos.disturb(tmp_path / "family.yaml", tmp_path / "work", kills=5, seed=3, say=lambda text: None)
    assert sum(checks.kills.values()) >= 5 and checks.builds >= 1
    assert checks.most_lost <= chaos.SAVED_EVERY
