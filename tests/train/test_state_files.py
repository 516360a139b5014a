"""Checkpoints' tensors in files: cut in any way they are read whole, and divided they are all there."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from kinfolk.errors import KinfolkError
from kinfolk.files import sha256
from kinfolk.growth.made import copied, held
from kinfolk.train.checkpoint import Position, load, write_state
from kinfolk.train.engine import alone
from kinfolk.train.saving import begin_first
from kinfolk.train.state_files import saved_tensors, shares, write_tensors


def save_cut(folder: Path, name: str, tensor: Tensor, *cuts: list[int]) -> list[Path]:
    """A file for each piece of a tensor, cut along each dimension, named by where the piece begins."""
    edges = [sorted({0, *along, size}) for along, size in zip(cuts, tensor.shape, strict=True)]
    ranges = [list(pairwise(along)) for along in edges]
    pieces: list[tuple[tuple[int, int], ...]] = [()]
    for along in ranges:
        pieces = [(*piece, each) for piece in pieces for each in along]
    written = []
    for number, piece in enumerate(pieces):
        part = tensor[tuple(slice(*each) for each in piece)].contiguous()
        about = {"DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": [begin for begin, _ in piece]}})}
        path = folder / f"shard-{number + 1:05d}.safetensors"
        save_file({name: part}, path, about)
        written.append(path)
    return written


@settings(max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 7))
def test_a_tensor_cut_into_parts_is_read_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int, columns: int
) -> None:
    """Along rows, as FSDP does, along columns, as tensor parallelism may, and both."""
    tensor = torch.randn(rows, columns)
    folder = tmp_path_factory.mktemp("cut")
    cuts = [data.draw(st.lists(st.integers(0, size), max_size=3)) for size in tensor.shape]
    save_cut(folder, "weight", tensor, *cuts)
    found = saved_tensors(folder)["weight"]
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    assert torch.equal(found.rows(start, stop), tensor[start:stop])
    assert torch.equal(found.whole(), tensor)


def test_a_missing_part_is_noticed(tmp_path: Path) -> None:
    paths = save_cut(tmp_path, "weight", torch.randn(6, 4), [2, 4], [])
    paths[1].unlink()
    with pytest.raises(KinfolkError, match="a part of weight is missing"):
        saved_tensors(tmp_path)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_file_of_the_record_that_is_missing_is_noticed(tmp_path: Path, missing: int) -> None:
    """Also the last part of a tensor, without which the others look whole."""
    paths = save_cut(tmp_path, "weight", torch.randn(6, 4), [2, 4], [])
    write_state(tmp_path, Position(0, 0), optimizer=False, hashes={path.name: sha256(path) for path in paths})
    assert saved_tensors(tmp_path)["weight"].shape == (6, 4)
    paths[missing].unlink()
    with pytest.raises(KinfolkError, match=f"shard-0000{missing + 1}.safetensors: the file is missing"):
        saved_tensors(tmp_path)


@given(
    sizes=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 50), min_size=1),
    count=st.integers(1, 5),
)
def test_shares_are_even_and_nothing_is_in_two(sizes: dict[str, int], count: int) -> None:
    found = shares(sizes, count)
    assert len(found) == count and sorted(name for share in found for name in share) == sorted(sizes)
    totals = [sum(sizes[name] for name in share) for share in found]
    assert max(totals) - min(totals) <= max(sizes.values())
    assert shares(dict(reversed(sizes.items())), count) == [
        [name for name in reversed(sizes) if name in share] for share in found
    ]


def test_what_is_written_in_blocks_is_read_by_dcp(tmp_path: Path) -> None:
    """Also what has no dimension, and what is longer than a block."""
    tensors = {
        "model.weight": torch.randn(600, 1000),
        "model.bias": torch.randn(7).bfloat16(),
        "optimizer.step.weight": torch.tensor(3.0),
        "random.cpu": torch.get_rng_state(),
    }
    made = {name: held(tensor) for name, tensor in tensors.items()}

    def write(folder: Path) -> None:
        write_tensors(folder, made, alone(), lambda *_: None)

    saved = begin_first(tmp_path / "first", write, Position(0, 5), has_optimizer=True, engine=alone()).finish()
    read = {name: torch.empty_like(tensor) for name, tensor in tensors.items() if name != "random.cpu"}
    load(saved, read, alone())
    assert all(torch.equal(value, tensors[name]) for name, value in read.items())
    made = {name: copied(tensor) for name, tensor in saved_tensors(saved).items()}
    again = begin_first(tmp_path / "second", write, Position(0, 5), has_optimizer=True, engine=alone()).finish()
    assert {name: tensor.whole().tolist() for name, tensor in saved_tensors(again).items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in saved.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "shard-00001-model-00001-of-00001.safetensors").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        begin_first(tmp_path, write, Position(0, 0), has_optimizer=False, engine=alone())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", ["[" * 100_000, "{", "7", '{"weight": {}}', '{"weight": {"saved_offsets": ["a"]}}'])
def test_parts_that_cannot_be_placed_are_refused(tmp_path: Path, told: str) -> None:
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "shard.safetensors", metadata={"DCP_SHARDING_INFO": told})
    with pytest.raises(KinfolkError, match="which parts of tensors it holds"):
        saved_tensors(tmp_path)
