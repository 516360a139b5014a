"""Who may do what in a run directory at the same time: one build alone, or several jobs that share it.

    lock                   held by a build alone, or shared by all jobs
    locks/common           what one job at a time does: preparing the run, ending it, writing its report
    locks/stages/STAGE     a stage is trained, and its member finished, by one job

All are flock(2) on empty files that stay. The system frees them when their process dies, however it does.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kinfolk.errors import KinfolkError

RUN, LOCKS = "lock", "locks"
"""Names in a run directory of the lock on all of it, and of the folder of the others."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LONGEST_PAUSE = 2.0
"""Seconds between two looks of a job that waits for another one."""


class Lock:
    """A lock on a file. It is free again when it is released, or its process is dead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Take the lock, or change the hold on it, and return at once: whether no other hold was in the way.

        A hold that cannot be changed is lost. KinfolkError where the file system has no locks.
        """
        while True:
            if self._file is None:
                self._file = self._opened()
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                raise KinfolkError(
                    f"this file system has no locks ({error.strerror})",
                    where=str(self._path),
                    fix="put the run directory on one that has flock, as local disks and most cluster file systems do",
                ) from None
            if self._is_in_place():
                return True
            self.release()  # another process has removed the folder, and who comes next makes it anew

    def wait(self, waiting: Callable[[], None]) -> None:
        """Take the lock when it is free; `waiting` is called once if that is not now. Signals are handled meanwhile."""
        if self.take():
            return
        waiting()
        for _ in pauses():
            if self.take():
                return

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            with suppress(OSError):  # where there are no locks
                fcntl.flock(self._file, fcntl.LOCK_UN)  # closing does not, where a child process has a copy of the file
            self._file.close()
            self._file = None

    def _opened(self) -> IO[bytes]:
        # On NFS a shared lock needs a file that can be read, and the other kind one that can be written.
        try:
            return open(self._path, "a+b")
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return open(self._path, "a+b")

    def _is_in_place(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def pauses() -> Iterator[None]:
    """Sleeps between the looks of somebody who waits, ever longer up to two seconds."""
    seconds = 0.02
    while True:
        time.sleep(seconds)
        yield
        seconds = min(2 * seconds, _LONGEST_PAUSE)


def stage_lock(run: Path, stage: str) -> Lock:
    """The lock on a stage of a run, not taken yet."""
    return Lock(run / LOCKS / "stages" / stage)


@contextmanager
def only_build_in(run: Path) -> Iterator[None]:
    """Hold the run directory for this process alone; KinfolkError if another build is at work in it."""
    with Lock(run / RUN) as lock:
        if not lock.take():
            raise KinfolkError(
                "another build is at work in this run directory",
                where=str(run),
                fix="wait for it, or choose another --run; several builds share one if each is given its members "
                "with --only",
            )
        yield


@contextmanager
def one_of_several_in(run: Path) -> Iterator[bool]:
    """Share the run directory with other jobs, whose members are others; yields whether there are none at the moment.

    To be entered under `one_at_a_time`: then there are none until that ends. KinfolkError if a build has the run
    directory for itself.
    """
    with Lock(run / RUN) as lock:
        alone = lock.take()
        if not lock.take(shared=True):
            raise KinfolkError(
                "a build of all members is at work in this run directory",
                where=str(run),
                fix="wait for it, or stop it and give every build its members with --only",
            )
        yield alone


@contextmanager
def one_at_a_time(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Do what only one job of a run may do at a time; waits for another one that does, and says so."""
    with Lock(run / LOCKS / "common") as lock:
        lock.wait(lambda: say(f"{run}  waits for another job, which prepares or ends the run"))
        yield


def enter_run(run: Path, shared: bool, held: ExitStack, preparing: ExitStack, say: Callable[[str], None]) -> bool:
    """Take the run directory until `held` closes, alone or as one of several jobs, and make it if it is not there.

    Another job begins when `preparing` closes. Returns whether none is at work at the moment.
    """
    run.mkdir(parents=True, exist_ok=True)
    if not shared:
        held.enter_context(only_build_in(run))
        return True
    preparing.enter_context(one_at_a_time(run, say))
    return held.enter_context(one_of_several_in(run))


def holds_only_locks(run: Path) -> bool:
    """Whether nothing was ever begun in a folder but a claim to it; an empty folder is somebody's."""
    return {path.name for path in run.iterdir()} in ({RUN}, {LOCKS}, {RUN, LOCKS})
