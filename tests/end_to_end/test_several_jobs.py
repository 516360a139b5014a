"""Several jobs build the members of one family in one run directory, and end with the bytes of one build."""

import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dying import die_at, wrap
from micro import (
    CONTEXT,
    LARGE,
    SEQUENCES_PER_STEP,
    SMALL,
    RecordingView,
    exit_code,
    family,
    in_child,
    in_ranks,
    leftovers,
    members_of,
    start_child,
)

from kinfolk.build import jobs
from kinfolk.build.build import build
from kinfolk.build.jobs import Job, Turn
from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import one_of_several_in, only_build_in, stage_lock
from kinfolk.build.run import open_run
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily
from kinfolk.plan.strategies import plan_family
from kinfolk.report.page import write_report
from kinfolk.report.run import read_run
from kinfolk.report.watch.live import LiveReport
from kinfolk.train.monitor import read_metrics

MIDDLE = {**SMALL, "num_hidden_layers": 2}
STAGES = ("small-undecayed", "small", "middle-undecayed", "middle", "large-undecayed", "large")
Built = tuple[Path, dict[str, bytes]]


def trunk(folder: Path, *overrides: str, **changes: Any) -> LoadedFamily:
    """Three members that leave a trunk one after the other."""
    per_step = SEQUENCES_PER_STEP * CONTEXT
    members = [
        {"name": "small", "shape": SMALL, "tokens": 16 * per_step},
        {"name": "middle", "shape": MIDDLE, "tokens": 22 * per_step},
        {"name": "large", "shape": LARGE, "tokens": 26 * per_step},
    ]
    recipe = {"schedule": {"decay_share": 0.3}}
    return family(folder, *overrides, **{"members": members, "strategy": "trunk", "recipe": recipe, **changes})


class PrintingView(RecordingView):
    def say(self, message: str) -> None:
        print(message, flush=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Where the family file lies, and the members of a build by one job."""
    folder = tmp_path_factory.mktemp("alone")
    build(trunk(folder), folder / "run", RecordingView())
    assert tuple(stages(folder / "run", "stage_started")) == STAGES
    return folder, members_of(folder / "run")


def job(alone: Built, run: Path, *only: str, on_step: Callable[[int], None] = lambda count: None) -> Callable[[], None]:
    loaded = trunk(alone[0])
    return lambda: build(loaded, run, PrintingView(on_step), only=only)


def stages(run: Path, event: str) -> list[str]:
    return [each["stage"] for each in Ledger(run / "ledger.jsonl").events(event)]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def check_as_by_one(run: Path, alone: Built) -> None:
    """The members are those of one build, each stage was begun once, and the build has one end."""
    assert members_of(run) == alone[1]
    assert leftovers(run) == []
    ledger = Ledger(run / "ledger.jsonl")
    assert sorted(stages(run, "stage_started")) == sorted(STAGES) == sorted(stages(run, "stage_finished"))
    assert sorted(stages(run, "grown")) == ["large-undecayed", "middle-undecayed"]
    assert sorted(event["member"] for event in ledger.events("member_finished")) == ["large", "middle", "small"]
    assert len(ledger.events("data_prepared")) == len(ledger.events("build_finished")) == 1
    assert ledger.is_over()
    for name in STAGES:
        steps = [each["step"] for each in read_metrics(run / "stages" / name / "metrics.jsonl") if "loss" in each]
        assert steps == list(range(1, len(steps) + 1))
        assert len(list((run / "stages" / name / "checkpoints").iterdir())) == 1
    page, reference = read_run(run), read_run(alone[0] / "run")
    assert page.complete and not page.open_jobs and LiveReport([run]).finished()
    for member, expected in zip(page.members, reference.members, strict=True):
        assert member.held_out == expected.held_out and member.samples == expected.samples
        assert [each.previous for each in member.divergences] == [each.previous for each in expected.divergences]
        for each, same in zip(member.divergences, expected.divergences, strict=True):
            assert each.kl_small_to_large == pytest.approx(same.kl_small_to_large, rel=1e-4)
        assert (member.kl_from_previous and member.kl_from_previous.previous) == (
            expected.kl_from_previous and expected.kl_from_previous.previous
        )


def test_three_jobs_at_once(alone: Built, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    children = [start_child(job(alone, run, name), log) for name in ("large", "middle", "small")]
    assert [exit_code(child) for child in children] == [0, 0, 0], log.read_text()
    check_as_by_one(run, alone)
    ledger = Ledger(run / "ledger.jsonl")
    assert not ledger.events("stage_resumed")
    assert sorted(event["only"] for event in ledger.events("build_started")) == [["large"], ["middle"], ["small"]]
    assert len({event["job"] for event in ledger.events("build_started")}) == 3
    assert len(ledger.events("job_finished")) == 2

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    view = RecordingView()
    build(trunk(alone[0]), run, view, only=["small", "large"])
    assert "finished: small, large; there is nothing to do" in view.said[-1]
    build(trunk(alone[0]), run, view)
    assert "every member is finished" in view.said[-1] and view.steps == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_members_one_after_the_other(alone: Built, tmp_path: Path) -> None:
    """Each job trains what its member needs and nobody has trained; comparisons with the largest come last."""
    run = tmp_path / "run"
    for name, trained in (("large", STAGES[::2] + STAGES[-1:]), ("small", ("small",)), ("middle", ("middle",))):
        before = len(stages(run, "stage_started"))
        view = RecordingView()
        build(trunk(alone[0]), run, view, only=[name])
        assert tuple(stages(run, "stage_started")[before:]) == trained
        page = read_run(run)
        assert page.complete == (name == "middle")
        assert ("still to be built: " in view.said[-1]) == (name != "middle")
    check_as_by_one(run, alone)
    (compared,) = Ledger(run / "ledger.jsonl").events("members_compared")
    assert compared["member"] == "large" and compared["kl_from_previous"]["previous"] == "middle"
    with pytest.raises(KinfolkError, match=r"--only: the family has no member 'huge'\n.*small, middle, large"):
        build(trunk(alone[0]), tmp_path / "none", RecordingView(), only=["small", "huge"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("step", [3, 18])
def test_a_job_is_killed_and_the_others_go_on(alone: Built, tmp_path: Path, step: int) -> None:
    """The one that walks the trunk: on the first stretch, which both others need, and later."""
    run, log = tmp_path / "run", tmp_path / "log"

    def die(count: int) -> None:
        if count == 1:
            (tmp_path / "begun").touch()
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    dying = start_child(job(alone, run, "large", on_step=die), log)
    wait_for((tmp_path / "begun").exists)
    others = [start_child(job(alone, run, name), log) for name in ("small", "middle")]
    assert exit_code(dying) == -signal.SIGKILL
    assert [exit_code(child) for child in others] == [0, 0], log.read_text()
    page = read_run(run)
    assert {member.member for member in page.members} == {"small", "middle"} and not page.complete
    assert [each.only for each in page.open_jobs] == [("large",)] and not LiveReport([run]).finished()
    text = " ".join(write_report([run], tmp_path / "report.html").read_text("utf-8").split())
    assert re.search(r"3, each with members of its own; not at its end: large \(since [^)]+\)", text)
    assert in_child(job(alone, run, "large"), log) == 0, log.read_text()
    check_as_by_one(run, alone)
    (resumed,) = stages(run, "stage_resumed")
    assert step > 3 or resumed == "small-undecayed"


@pytest.mark.parametrize("seed", [1, 2])
def test_all_jobs_are_killed_again_and_again(alone: Built, tmp_path: Path, seed: int) -> None:
    """Each dies after a random number of things done, before or after one of them, and is started again."""
    run, log, draw = tmp_path / "run", tmp_path / "log", random.Random(seed)
    targets = [
        "kinfolk.build.build:begin_run",
        "kinfolk.build.build:finish_member",
        "kinfolk.build.build:train_stage",
        "kinfolk.build.finish:export_saved",
        "kinfolk.build.jobs:Job._take",
        "kinfolk.build.ledger:Ledger.append",
        "kinfolk.train.saving:dcp_save",
        "kinfolk.train.saving:write_state",
        "kinfolk.train.monitor:Monitor.record",
        "os:fsync",
    ]

    def mortal(name: str, number: int) -> Callable[[], None]:
        build_members = job(alone, run, name)

        def work() -> None:
            die = die_at(number)
            for target in targets:
                wrap(target, die, die)
            build_members()

        return work

    at_work: dict[int, str] = {}
    left, kills = ["large", "middle", "small"], 0
    while left or at_work:
        for name in left:
            at_work[start_child(mortal(name, draw.randint(30, 160)), log)] = name
        child, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), log.read_text()
        name = at_work.pop(child)
        left, kills = ([name], kills + 1) if code else ([], kills)
        assert kills < 60
    assert kills > 3
    build(trunk(alone[0]), run, RecordingView())  # the last may have been killed right before it ended the build
    assert members_of(run) == alone[1] and leftovers(run) == []
    ledger = Ledger(run / "ledger.jsonl")
    assert ledger.is_over() and len(ledger.events("data_prepared")) == 1
    # A kill between the event and the first checkpoint has the stage begin again; nobody else does.
    begun = Counter(stages(run, "stage_started"))
    assert set(begun) == set(STAGES) and sum(begun.values()) <= len(STAGES) + kills
    assert read_run(run).complete


@pytest.fixture
def held(alone: Built, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Has this process hold a stage of the run, as another job would."""
    locks = []

    def hold(stage: str) -> Any:
        lock = stage_lock(tmp_path / "run", stage)
        assert lock.take()
        locks.append(lock)
        return lock

    yield hold
    for lock in locks:
        lock.release()


def test_other_work_comes_before_waiting(alone: Built, tmp_path: Path, held: Callable[[str], Any]) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    lock = held("small")
    child = start_child(job(alone, run, "small", "middle"), log)
    wait_for(lambda: "waiting for it" in (log.read_text() if log.exists() else ""))
    assert stages(run, "stage_finished") == ["small-undecayed", "middle-undecayed", "middle"]
    assert log.read_text().count("small  is held by another job, at step 0 of ") == 1
    lock.release()
    assert exit_code(child) == 0
    assert stages(run, "stage_finished")[-1] == "small" and "still to be built: large" in log.read_text()


def test_who_ends_the_build_says_whom_it_waits_for(alone: Built, tmp_path: Path, held: Callable[[str], Any]) -> None:
    """All is done but the end of the build, which comes after another job's forecast."""
    run, log = shutil.copytree(alone[0] / "run", tmp_path / "run"), tmp_path / "log"
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert "build_finished" in lines[-1]
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))
    lock = held("middle")
    child = start_child(job(alone, run, "small"), log)
    wait_for(lambda: "waiting for it" in (log.read_text() if log.exists() else ""))
    assert log.read_text().count("middle  is held by another job, which may check its forecast; waiting for it") == 1
    assert not Ledger(run / "ledger.jsonl").is_over()
    lock.release()
    assert exit_code(child) == 0 and Ledger(run / "ledger.jsonl").is_over()


def test_a_parent_that_is_needed_again_is_no_other_job(alone: Built, tmp_path: Path) -> None:
    """All that a stage had is found damaged when it is taken, and its parent's last state has gone."""
    folder, loaded, view = tmp_path / "run", trunk(alone[0]), RecordingView()

    def die(count: int) -> None:
        if count == 14:  # in the branch, behind its first checkpoint
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(job(alone, folder, "small", on_step=die), tmp_path / "log") == -signal.SIGKILL
    assert stages(folder, "stage_started") == ["small-undecayed", "small"]
    run = open_run(loaded, folder, plan_family)
    shutil.rmtree(run.checkpoints("small-undecayed"))
    with Job(run, ["small"], view) as going_on:
        with stage_lock(folder, "small") as lock:  # as another job has it that then dies
            assert lock.take()
            going_on.look_through()
        for state in run.checkpoints("small").glob("step-*/state.json"):
            state.write_text("{}")
        assert going_on.next_turn() == Turn("small-undecayed", trains=False, finishes=False)
        assert going_on.next_turn() == Turn("small-undecayed", trains=True, finishes=False)
    assert view.said and all("the stage goes on from its beginning" in said for said in view.said)


def test_waiting_can_be_interrupted_and_tells_from_time_to_time(
    alone: Built, tmp_path: Path, held: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REMINDER_SECONDS", 0.1)
    run, log = tmp_path / "run", tmp_path / "log"
    held("small-undecayed")
    child = start_child(job(alone, run, "large"), log)
    wait_for(lambda: (log.read_text() if log.exists() else "").count("waiting for it") > 1)
    os.kill(child, signal.SIGTERM)
    assert exit_code(child) == 128 + signal.SIGTERM
    assert not stages(run, "stage_started")


def test_what_a_dead_job_left_damaged_is_set_aside_by_who_takes_over(
    alone: Built, tmp_path: Path, held: Callable[[str], Any]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"

    def die(count: int) -> None:
        if count == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(job(alone, run, "small", on_step=die), log) == -signal.SIGKILL
    lock = held("small-undecayed")
    child = start_child(job(alone, run, "small"), log)
    wait_for(lambda: "waiting for it" in log.read_text())
    newest = sorted((run / "stages/small-undecayed/checkpoints").glob("step-*"))[-1]
    (newest / "state.json").write_text("{}")
    lock.release()
    assert exit_code(child) == 0, log.read_text()
    assert "the stage goes on from its step 4" in log.read_text()
    assert members_of(run)["small/model.safetensors"] == alone[1]["small/model.safetensors"]


def test_refusals(alone: Built, tmp_path: Path) -> None:
    """One build of all or several jobs; and nothing changes the run under the feet of others."""
    run = shutil.copytree(alone[0] / "run", tmp_path / "run")
    log, work = tmp_path / "log", job(alone, run, "small")
    loaded, members = trunk(alone[0]), [member.model_dump(mode="json") for member in trunk(alone[0]).family.members]
    larger = {**LARGE, "num_hidden_layers": 3}
    more = trunk(alone[0], members=[*members, {"name": "huge", "shape": larger, "tokens": 6000}])

    def last_words() -> str:
        words = log.read_text()
        log.unlink()
        return words

    with only_build_in(run):
        assert in_child(work, log) == 2
        assert "a build of all members is at work in this run directory" in last_words()
    with one_of_several_in(run):
        assert in_child(lambda: build(loaded, run, PrintingView()), log) == 2
        words = last_words()
        assert "another build is at work in this run directory" in words and "--only" in words
        assert in_child(lambda: build(more, run, PrintingView(), only=["huge"]), log) == 2
        assert "huge cannot be added while other jobs build without it" in last_words()
        assert in_child(work, log) == 0
        (run / "data" / "held_out.bin").write_bytes(b"\0")
        last_words()
        assert in_child(work, log) == 2
        assert "other jobs read the data at the moment" in last_words()
    assert in_child(work, log) == 0
    assert "tokenised again" in last_words()
    assert members_of(run) == alone[1]
    assert in_child(lambda: build(more, run, PrintingView(), only=["huge"]), log) == 0, last_words()
    assert read_run(run).complete


def test_a_job_of_two_processes_beside_another_one(alone: Built, tmp_path: Path) -> None:
    """The main process of a job decides what comes next, and the others follow."""
    run, log = tmp_path / "run", tmp_path / "log"
    other = start_child(job(alone, run, "middle"), log)
    assert in_ranks(job(alone, run, "large", "small"), log) == [0, 0], log.read_text()
    assert exit_code(other) == 0
    assert sorted(stages(run, "stage_started")) == sorted(STAGES)
    assert read_run(run).complete and members_of(run).keys() == alone[1].keys()
