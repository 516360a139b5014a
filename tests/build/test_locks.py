import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from micro import exit_code, in_child, start_child

from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import LOCKS, one_at_a_time, one_of_several_in, only_build_in, stage_lock
from kinfolk.errors import KinfolkError

APPENDS, WRITERS = 60, 4


def forever() -> None:
    while True:
        time.sleep(60)


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Callable[[AbstractContextManager[Any]], int]]:
    """Starts a process that holds a lock until it is killed, and returns its id once it does."""
    children = []

    def hold(lock: AbstractContextManager[Any]) -> int:
        def work() -> None:
            with lock:
                (tmp_path / "held").touch()
                forever()

        children.append(start_child(work))
        wait_for((tmp_path / "held").exists)
        return children[-1]

    yield hold
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def tell(message: str) -> None:
    print(message, flush=True)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL


def test_no_line_of_several_writers_is_lost_or_torn(tmp_path: Path) -> None:
    """Lines of up to 40 kB, which the system may write in several pieces; one more writer dies in the middle of one."""
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def write(writer: int) -> None:
        wait_for((tmp_path / "go").exists)
        for number in range(APPENDS):
            ledger.append("line", writer=writer, number=number, text="é" * (number * 677 % 20_000))

    def die_in_a_line() -> None:
        wait_for((tmp_path / "go").exists)
        for number in range(APPENDS // 4):
            ledger.append("line", writer=WRITERS, number=number)

        def cut(handle: int) -> None:
            os.ftruncate(handle, os.fstat(handle).st_size - 20)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = cut
        ledger.append("line", writer=WRITERS, number=-1, text="x" * 100)

    children = [start_child(lambda writer=writer: write(writer), tmp_path / "log") for writer in range(WRITERS)]
    dying = start_child(die_in_a_line, tmp_path / "log")
    (tmp_path / "go").touch()
    assert exit_code(dying) == -signal.SIGKILL
    assert [exit_code(child) for child in children] == [0] * WRITERS, (tmp_path / "log").read_text()
    events = ledger.events()
    for writer in range(WRITERS):
        assert [event["number"] for event in events if event["writer"] == writer] == list(range(APPENDS))
    assert [event["number"] for event in events if event["writer"] == WRITERS] == list(range(APPENDS // 4))
    assert len(ledger.damaged()) == 1
    assert len(events) + 1 == len((tmp_path / "ledger.jsonl").read_bytes().splitlines())


def test_lines_that_are_being_written_are_not_called_damaged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.damaged() == ()
    ledger.append("one")

    def half_a_line() -> None:
        with open(tmp_path / "ledger.jsonl", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(b'{"event": "two", ')
            file.flush()
            (tmp_path / "half").touch()
            time.sleep(0.3)
            file.write(b'"time": 1}\n')

    child = start_child(half_a_line)
    wait_for((tmp_path / "half").exists)
    assert [event["event"] for event in ledger.events()] == ["one"]
    assert ledger.damaged() == ()
    assert exit_code(child) == 0
    assert [event["event"] for event in ledger.events()] == ["one", "two"]


def test_one_build_or_several_jobs(tmp_path: Path) -> None:
    def alone() -> None:
        with only_build_in(tmp_path):
            pass

    def beside_others() -> None:
        with one_of_several_in(tmp_path) as is_alone:
            raise SystemExit(10 + is_alone)

    with only_build_in(tmp_path):
        assert in_child(beside_others, tmp_path / "log") == 2
        assert "a build of all members is at work" in (tmp_path / "log").read_text()
    with one_of_several_in(tmp_path) as is_alone:
        assert is_alone
        assert in_child(beside_others) == 10
        assert in_child(alone, tmp_path / "log") == 2
    assert "another build is at work" in (tmp_path / "log").read_text() and "--only" in (tmp_path / "log").read_text()
    assert in_child(beside_others) == 11
    assert in_child(alone) == 0


def test_the_dead_hold_nothing(tmp_path: Path, holding: Callable[[Any], int]) -> None:
    lock = stage_lock(tmp_path, "trunk")
    child = holding(taken(tmp_path, "trunk"))
    assert not lock.take()
    kill(child)
    assert lock.take() and lock.take()
    lock.release()
    assert (tmp_path / LOCKS / "stages" / "trunk").read_bytes() == b""


@contextmanager
def taken(run: Path, stage: str) -> Iterator[None]:
    with stage_lock(run, stage) as lock:
        assert lock.take()
        yield


def test_who_waits_says_so_and_can_be_interrupted(tmp_path: Path, holding: Callable[[Any], int]) -> None:
    child = holding(one_at_a_time(tmp_path, tell))

    def second() -> None:
        with one_at_a_time(tmp_path, tell):
            raise SystemExit(5)

    waiting = start_child(second, tmp_path / "log")
    wait_for(lambda: (tmp_path / "log").exists() and "waits" in (tmp_path / "log").read_text())
    stopped = start_child(second)
    time.sleep(0.1)
    os.kill(stopped, signal.SIGINT)
    assert exit_code(stopped) == 1  # KeyboardInterrupt, which is no fault that the test harness knows
    kill(child)
    assert exit_code(waiting) == 5
    assert (tmp_path / "log").read_text().count("waits for another job") == 1


def test_a_folder_that_goes_while_somebody_waits_is_made_anew(tmp_path: Path, holding: Callable[[Any], int]) -> None:
    """As where the first of several jobs could not begin, and has left no trace."""
    folder = tmp_path / "run"
    child = holding(one_at_a_time(folder, tell))

    def second() -> None:
        with one_at_a_time(folder, tell):
            assert (folder / LOCKS / "common").is_file()

    waiting = start_child(second, tmp_path / "log")
    wait_for(lambda: (tmp_path / "log").exists() and "waits" in (tmp_path / "log").read_text())
    shutil.rmtree(folder)
    kill(child)
    assert exit_code(waiting) == 0, (tmp_path / "log").read_text()


def test_file_systems_without_locks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(KinfolkError, match="has no locks"), only_build_in(tmp_path):
        pass
