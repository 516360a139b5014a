"""Files that cannot be written leave no handle open."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kinfolk import files
from kinfolk.growth.safetensors_writer import FileWriter, Layout, WeightsWriter

LAYOUT = {name: Layout(torch.float32, (4, 2)) for name in "abc"}
ONE_EACH = 32


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The handles that are opened; the system may give a number again, so that closing one strikes it off."""
    handles: list[int] = []
    real_open, real_close = os.open, os.close

    def open_(*arguments: Any, **named: Any) -> int:
        handles.append(real_open(*arguments, **named))
        return handles[-1]

    def close(handle: int) -> None:
        if handle in handles:
            handles.remove(handle)
        real_close(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "close", close)
    yield handles
    for handle in handles:
        real_close(handle)


def refuse(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_header_that_cannot_be_written(tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="No space left"):
        FileWriter(tmp_path / "file", LAYOUT)
    assert (tmp_path / "file").exists() and opened == []


def test_a_later_file_that_cannot_be_created(tmp_path: Path, opened: list[int]) -> None:
    (tmp_path / "model-00003-of-00003.safetensors").touch()
    with pytest.raises(FileExistsError):
        WeightsWriter(tmp_path, LAYOUT, ONE_EACH)
    assert (tmp_path / "model-00002-of-00003.safetensors").exists() and opened == []


def test_an_index_that_cannot_be_written(tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "write_json", refuse)
    with pytest.raises(OSError, match="No space left"):
        WeightsWriter(tmp_path, LAYOUT, ONE_EACH)
    assert opened == []


def test_what_is_written_in_part_is_refused(tmp_path: Path, opened: list[int]) -> None:
    writer = WeightsWriter(tmp_path, LAYOUT, ONE_EACH)
    assert len(opened) == 3
    for name in LAYOUT:
        writer.write(name, 2, torch.full((2, 2), 2.0))
    for name in "ab":
        writer.write(name, 0, torch.full((2, 2), 1.0))
    with pytest.raises(ValueError, match="c was written in part"):
        writer.close()
    assert opened == []
    whole = load_file(tmp_path / "model-00002-of-00003.safetensors")
    assert whole["b"].tolist() == [[1.0] * 2] * 2 + [[2.0] * 2] * 2
