"""The safetensors file that a process writes of a checkpoint."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from micro import exit_code, start_child
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from kinfolk.growth.memory import peak_memory_bytes
from kinfolk.train.checkpoint import Position, calling_dcp, verify
from kinfolk.train.engine import alone
from kinfolk.train.saving import save
from kinfolk.train.state_writer import StateWriter

TENSORS = {
    "random.cpu": torch.get_rng_state(),
    "odd": torch.arange(7, dtype=torch.uint8),
    "model.weight": torch.randn(6, 5).t(),
    "model.half": torch.randn(3, 1, 3).bfloat16(),
    "optimizer.step": torch.tensor(3.0),
    "optimizer.exact": torch.randn(2, dtype=torch.float64),
    "nothing": torch.empty(0, 4),
}


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> StateWriter:
    writer = StateWriter(folder, rank=0)
    with calling_dcp():
        dcp_save(dict[str, Any](tensors), storage_writer=writer, no_dist=True)
    return writer


def test_the_library_and_dcp_read_what_is_written(tmp_path: Path) -> None:
    writer = written(tmp_path, TENSORS)
    (path,) = tmp_path.iterdir()
    assert writer.hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    read = load_file(path)
    assert sorted(read) == sorted(TENSORS)
    by_dcp = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    with calling_dcp():
        dcp_load(dict[str, Any](by_dcp), storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
        assert torch.equal(by_dcp[name], tensor), name


def test_every_tensor_begins_at_a_multiple_of_its_numbers_size(tmp_path: Path) -> None:
    written(tmp_path, TENSORS)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, tensor in TENSORS.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0, name
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_process_without_tensors_writes_no_file(tmp_path: Path) -> None:
    assert written(tmp_path, {}).hashes == {}
    assert list(tmp_path.iterdir()) == []


def test_saving_takes_no_second_copy_of_the_state(tmp_path: Path) -> None:
    def work() -> None:
        tensors = {f"model.{number}": torch.ones(5_000_000) for number in range(10)}
        save(tmp_path, {"model.0": torch.ones(1)}, Position(1, 4), alone())  # what is loaded at first
        before = peak_memory_bytes()
        verify(save(tmp_path, tensors, Position(2, 8), alone()))
        grown = peak_memory_bytes() - before
        assert grown < 50e6, f"{grown / 1e6:.0f} MB more for 200 MB"

    log = tmp_path / "log"
    assert exit_code(start_child(work, log)) == 0, log.read_text()
