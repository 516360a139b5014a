"""The command itself: exit codes, what it prints, and torchrun."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro import LARGE, SMALL, exit_code, family, in_child, leftovers, members_of, start_child

from kinfolk.build.ledger import Ledger
from kinfolk.build.view import LiveView
from kinfolk.train.monitor import read_metrics

Uninterrupted = tuple[Path, dict[str, bytes]]


def command(*arguments: object) -> None:
    from kinfolk.cli.app import main

    sys.argv = ["kinfolk", *map(str, arguments)]
    main()


def test_build_prints_where_things_are_and_again_when_there_is_nothing_to_do(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    family(uninterrupted[0])
    build = ("build", uninterrupted[0] / "family.yaml", "--run", tmp_path / "run")
    assert in_child(lambda: command(*build), tmp_path / "first") == 0
    assert members_of(tmp_path / "run") == uninterrupted[1]
    began = time.monotonic()
    assert in_child(lambda: command(*build), tmp_path / "second") == 0
    assert time.monotonic() - began < 30
    for log in ("first", "second"):
        text = (tmp_path / log).read_text()
        assert f"report:  {tmp_path / 'run' / 'report.html'}" in text
        assert f"members: {tmp_path / 'run' / 'members'}" in text
        assert "Traceback" not in text and "Writing model shards" not in text and "Warning" not in text
    assert "nothing to do" in (tmp_path / "second").read_text()
    assert len(Ledger(tmp_path / "run" / "ledger.jsonl").events("build_started")) == 1
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_build_exits_as_shells_expect(
    uninterrupted: Uninterrupted, tmp_path: Path, number: int, code: int
) -> None:
    family(uninterrupted[0])
    build = ("build", uninterrupted[0] / "family.yaml", "--run", tmp_path / "run")
    real = LiveView.stepped

    def work() -> None:
        def stepped(view: LiveView, record: dict) -> None:
            real(view, record)
            if record["step"] == 6:
                os.kill(os.getpid(), number)

        LiveView.stepped = stepped  # type: ignore[method-assign]
        command(*build)

    assert exit_code(start_child(work, tmp_path / "log")) == code
    assert "the same command goes on from there" in " ".join((tmp_path / "log").read_text().split())
    assert in_child(lambda: command(*build), tmp_path / "log") == 0
    assert members_of(tmp_path / "run") == uninterrupted[1]


def torchrun(folder: Path, run: Path, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(
            # The two dashes keep torchrun from taking --run for an abbreviation of its own --run-path.
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"),
                *("kinfolk", "build", str(folder / "family.yaml"), "--run", str(run)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_torchrun_builds_the_family_and_one_process_speaks(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    folder, members = uninterrupted
    family(folder)
    assert torchrun(folder, tmp_path / "run", tmp_path / "log").wait(timeout=300) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert text.count("report:") == text.count("members:") == text.count("small  finished") == 1
    assert "Traceback" not in text
    assert members_of(tmp_path / "run").keys() == members.keys()
    assert leftovers(tmp_path) == []
    for path in (folder / "run" / "stages").glob("*/metrics.jsonl"):
        expected, found = (
            [record["loss"] for record in read_metrics(each / path.parent.name / "metrics.jsonl") if "loss" in record]
            for each in (folder / "run" / "stages", tmp_path / "run" / "stages")
        )
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("from_the_terminal", [True, False])
def test_torchrun_passes_a_stop_on_and_what_was_done_is_saved(tmp_path: Path, from_the_terminal: bool) -> None:
    """Ctrl-C reaches torchrun and the processes, which then get it twice; a scheduler's SIGTERM reaches torchrun."""
    members = [{"name": "a", "shape": SMALL, "tokens": 10**7}, {"name": "b", "shape": LARGE, "tokens": 10**8}]
    family(tmp_path, members=members)
    job = torchrun(tmp_path, tmp_path / "run", tmp_path / "log")
    try:
        deadline = time.monotonic() + 200
        metrics: list[Path] = []
        while not metrics or metrics[0].stat().st_size < 1000:
            assert time.monotonic() < deadline and job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
            metrics = list((tmp_path / "run").glob("stages/*/metrics.jsonl"))
        if from_the_terminal:
            os.killpg(job.pid, signal.SIGINT)
        else:
            job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=100) != 0
    finally:
        job.kill()
    (event,) = Ledger(tmp_path / "run" / "ledger.jsonl").events("interrupted")
    assert event["step"] == read_metrics(metrics[0])[-1]["step"] > 1
    assert list((tmp_path / "run").glob(f"stages/*/checkpoints/step-{event['step']:08}"))
    assert " ".join((tmp_path / "log").read_text().split()).count("the same command goes on from there") == 1
