import json
import pickletools
from pathlib import Path

import pytest
import torch
from micro import SMALL, exit_code, in_ranks, start_child
from safetensors import safe_open

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model
from kinfolk.train import checkpoint, saving
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine, alone, start_engine
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import TokenLoss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.saving import save

TIED = Shape(**SMALL)


def trained(engine: Engine, steps: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Checkpoint tensors of a model that has taken some steps on batches that every process knows."""
    model = new_model(config_for(TIED, Model(), 301), seed)  # 301 rows do not divide among two processes
    objective = TokenLoss(model)
    engine.distribute(objective)
    optimizer = make_optimizer(model, Optimizer())
    tensors = checkpoint.tensors_of(model, optimizer)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        (objective(torch.randint(301, (2, 9), generator=generator)).minimised / 16).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return tensors


def clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "saves", trained(alone(), 2), Position(2, 16, 1.5), alone())


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    tensors = trained(alone(), 3)
    torch.manual_seed(11)
    saved = save(tmp_path, tensors, Position(3, 24, 0.1), alone())
    expected, drawn = clone(tensors), torch.rand(5)
    other = trained(alone(), 1, seed=9)
    torch.manual_seed(12)
    checkpoint.load(saved, other, alone())
    assert_same(other, expected)
    assert torch.equal(torch.rand(5), drawn)
    assert checkpoint.position_of(saved) == Position(3, 24, 0.1)
    assert checkpoint.has_optimizer(saved)
    assert float(other["optimizer.step.model.norm.weight"]) == 3


def test_weights_alone_can_be_saved_and_read(tmp_path: Path, saved: Path) -> None:
    tensors = trained(alone(), 0, seed=4)
    weights = {name: value for name, value in tensors.items() if name.startswith("model.")}
    checkpoint.load(saved, weights, alone())
    assert_same(weights, {name: value for name, value in trained(alone(), 2).items() if name in weights})
    assert not checkpoint.has_optimizer(save(tmp_path / "w", weights, Position(0, 0), alone()))


def test_only_safetensors_and_json_lie_in_the_folder(saved: Path) -> None:
    for path in saved.rglob("*"):
        assert path.suffix in {".safetensors", ".json"}
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert "random.cpu" in file.keys()  # noqa: SIM118 (not a mapping)
        else:
            json.loads(path.read_text())
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))


@pytest.mark.parametrize("where", [0.0, 0.4, 0.99])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_file_is_named(saved: Path, where: float, harm: str) -> None:
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        place = int(where * len(whole))
        if harm == "flip":
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        elif harm == "truncate":
            path.write_bytes(whole[:place])
        else:
            path.unlink()
        with pytest.raises(KinfolkError) as caught:
            checkpoint.load(saved, trained(alone(), 0), alone())
        assert caught.value.where == str(path)
        path.write_bytes(whole)
    checkpoint.load(saved, trained(alone(), 0), alone())


def test_no_flipped_bit_of_the_record_changes_what_it_says(saved: Path) -> None:
    path, said = saved / "state.json", checkpoint.position_of(saved)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            assert checkpoint.position_of(saved) == said
        except KinfolkError:
            refused += 1
    assert refused > len(whole) / 2


def test_half_written_folders_are_passed_over_and_removed(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    tensors = trained(alone(), 1)
    first = save(tmp_path, tensors, Position(4, 32), alone())
    (tmp_path / "step-00000009.unfinished").mkdir()
    (tmp_path / "step-00000009.unfinished" / "shard.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == first
    second = save(tmp_path, tensors, Position(8, 64), alone())
    assert list(tmp_path.iterdir()) == [second]


def test_a_failed_save_keeps_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = trained(alone(), 1)
    first = save(tmp_path, tensors, Position(4, 32), alone())

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(saving, "dcp_save", full)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, tensors, Position(8, 64), alone())
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == first
    checkpoint.load(first, tensors, alone())


def test_checkpoints_move_between_one_process_and_two(tmp_path: Path) -> None:
    """Loaded into a sharded run and saved again, bit for bit, and back; and saved by a run that trained in shards."""
    expected = trained(alone(), 2)
    plain = save(tmp_path / "one", expected, Position(2, 16), alone())

    def reshard() -> None:
        with start_engine() as engine:
            sharded = trained(engine, 1, seed=8)
            checkpoint.load(plain, sharded, engine)
            save(tmp_path / "two", sharded, Position(2, 16), engine)
            save(tmp_path / "trained", trained(engine, 2), Position(2, 16), engine)

    assert in_ranks(reshard, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    for folder in ("two", "trained"):
        back = trained(alone(), 0, seed=7)
        found = checkpoint.latest(tmp_path / folder)
        assert found is not None and len(list(found.glob("*.safetensors"))) == 2
        checkpoint.load(found, back, alone())
        if folder == "two":
            assert_same(back, expected)
        for name, value in back.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_damage_stops_all_processes_and_one_says_so(tmp_path: Path, saved: Path) -> None:
    shard = next(saved.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])

    def load() -> None:
        with start_engine() as engine:
            checkpoint.load(saved, trained(engine, 0), engine)

    assert in_ranks(load, tmp_path / "log") == [2, 3], (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("error:") == 1
    assert exit_code(start_child(lambda: checkpoint.verify(saved), tmp_path / "log")) == 2
