"""A disk that is full, again and again and at any write, or that cannot be written at all."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro import RecordingView, check_whole, exit_code, family, in_child, leftovers, members_of, start_child

from kinfolk.build.build import build
from kinfolk.cli.app import main
from kinfolk.errors import KinfolkError
from kinfolk.machine_faults import machine_fault

Uninterrupted = tuple[Path, dict[str, bytes]]

CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT, MS_RDONLY, MS_PRIVATE = 0x20000, 0x10000000, 32, 1, (1 << 18) | 16384
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(target: Path, flags: int, options: str, kind: bytes = b"tmpfs") -> bool:
    return bool(LIBC.mount(kind, bytes(target), kind, flags, options.encode()) == 0)


def own_disk(target: Path, size: int) -> bool:
    """Give this process, which is about to end, a small disk of its own at `target`; False where it may not."""
    if LIBC.unshare(CLONE_NEWNS) and LIBC.unshare(CLONE_NEWNS | CLONE_NEWUSER):
        return False
    mount(Path("/"), MS_PRIVATE, "", b"none")
    target.mkdir()
    return mount(target, 0, f"size={size}")


def command(family_file: Path, run: Path) -> None:
    sys.argv = ["kinfolk", "build", str(family_file), "--run", str(run)]
    main()


@pytest.fixture(scope="module")
def _disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("disk") / "disk"
    if in_child(lambda: sys.exit(0 if own_disk(place, 100_000) else 77)):
        pytest.skip("this system does not let a test mount a small disk")


def in_namespace(work: Callable[[], None], log: Path) -> str:
    code = in_child(work, log)
    text = log.read_text()
    assert code == 0, text
    assert "Traceback" not in text
    return text


@pytest.mark.usefixtures("_disks")
def test_a_disk_that_is_full_again_and_again(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """The disk grows by a little whenever it is full; every build says so, leaves nothing half-written and goes on."""
    loaded, disk = family(uninterrupted[0]), tmp_path / "disk"

    def work() -> None:
        size, full = 60_000, 0
        assert own_disk(disk, size)
        while (code := exit_code(start_child(lambda: command(Path(loaded.origin), disk / "run")))) != 0:
            assert code in (1, 2), code  # 2 where only the report is left to write
            assert leftovers(disk) == []
            full, size = full + 1, size * 5 // 2
            assert full < 30 and mount(disk, MS_REMOUNT, f"size={size}")
        check_whole(disk / "run", uninterrupted[1])
        print("times full:", full)

    said = in_namespace(work, tmp_path / "log")
    times = int(said.rsplit("times full: ", 1)[1])
    assert times >= 4 and "the disk is full" in said and said.count("fix: free some space") == times


@pytest.mark.usefixtures("_disks")
def test_a_disk_that_has_become_read_only(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    loaded, disk = family(uninterrupted[0]), tmp_path / "disk"

    def work() -> None:
        assert own_disk(disk, 1 << 26)
        build(loaded, disk / "run", RecordingView())
        before = members_of(disk / "run")
        (disk / "run" / "ledger.jsonl").write_bytes(b"")  # there would be work to do
        assert mount(disk, MS_REMOUNT | MS_RDONLY, "")
        for run in ("run", "another"):
            assert exit_code(start_child(lambda run=run: command(Path(loaded.origin), disk / run))) == 1
        assert members_of(disk / "run") == before

    assert in_namespace(work, tmp_path / "log").count("the disk is read-only") == 2


CALLS = ["fsync", "mkdir", "rename", "replace"]


@pytest.mark.parametrize("number", [2, 9, 33])
def test_whatever_call_of_the_system_fails(
    uninterrupted: Uninterrupted, tmp_path: Path, capfd: Any, number: int
) -> None:
    """Without a disk of its own: the n-th call that makes, flushes or renames something finds the disk full."""
    loaded, run = family(uninterrupted[0]), tmp_path / "run"

    def work() -> None:
        count = 0

        def failing(real: Callable[..., Any]) -> Callable[..., Any]:
            def called(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
                return real(*arguments, **named)

            return called

        for name in CALLS:
            setattr(os, name, failing(getattr(os, name)))
        command(Path(loaded.origin), run)

    code = in_child(work, tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert code == 1 and "the disk is full" in said and "Traceback" not in said, said
    assert number > 2 or not (run / "data").exists()
    assert leftovers(run) == []
    build(loaded, run, RecordingView())
    check_whole(run, uninterrupted[1])


def test_what_libraries_make_of_a_full_disk_is_understood() -> None:
    from safetensors import SafetensorError

    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (rust, RuntimeError("worker: " + os.strerror(errno.ENOSPC)), OSError(errno.ENOSPC, "x")):
        found = machine_fault(error)
        assert isinstance(found, KinfolkError) and found.problem == "the disk is full"
    caused = ValueError("outer")
    caused.__cause__ = PermissionError(errno.EACCES, "no", "/there")
    found = machine_fault(caused)
    assert found is not None and (found.where, found.problem) == ("/there", "this user has no permission")
    assert machine_fault(ValueError("another fault")) is None
    assert machine_fault(FileNotFoundError(errno.ENOENT, "no", "/there")) is None
