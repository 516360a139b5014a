"""Ways to lay out the work of a job: they change where and when something is computed, and not what comes out."""

import os
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import LARGE, exit_code, in_ranks, start_child
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Optimizer
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine, alone, start_engine
from kinfolk.train.layout import Layout
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import TokenLoss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.saving import begin_save, save

SHAPE = Shape(**LARGE)
BATCH = torch.randint(300, (4, 33), generator=torch.Generator().manual_seed(3))


def objective_of(engine: Engine, precision: Any = "float32", layers: int = 2) -> TokenLoss:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = SHAPE.model_copy(update={"num_hidden_layers": layers})
    objective = TokenLoss(new_model(config_for(shape, Model(), 300), seed=1), dtype)
    engine.distribute(objective, precision)
    return objective.train()


def gradients_of(objective: TokenLoss, engine: Engine, precision: Any = "float32") -> dict[str, torch.Tensor]:
    rows = BATCH[engine.rank * len(BATCH) // engine.world_size :][: len(BATCH) // engine.world_size]
    with engine.autocast(precision):
        loss = objective(rows).minimised
    (loss * engine.world_size).backward()  # sharding takes the mean over processes
    found = {}
    for name, parameter in objective.model.named_parameters():
        gradient: Any = parameter.grad
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def with_layout(**layout: Any) -> Engine:
    return Engine(torch.device("cpu"), layout=Layout(**layout))


def test_recomputing_keeps_less_and_gives_the_same_bytes() -> None:
    kept: list[dict[str, torch.Tensor]] = []
    sizes = []
    for engine in (alone(), with_layout(recompute=True)):
        objective = objective_of(engine, layers=6)
        held: dict[int, int] = {}

        def pack(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective(BATCH).minimised
        sizes.append(sum(held.values()))
        loss.backward()
        kept.append({name: parameter.grad for name, parameter in objective.model.named_parameters()})  # type: ignore[misc]
    assert sizes[1] < sizes[0] / 3
    for name, gradient in kept[0].items():
        assert torch.equal(gradient, kept[1][name]), name


@pytest.mark.parametrize("recompute", [False, True])
def test_replicas_of_shards_give_the_gradients_of_one_process(tmp_path: Path, recompute: bool) -> None:
    expected = gradients_of(objective_of(alone()), alone())

    def work() -> None:
        with start_engine(Layout(replicas=2, recompute=recompute)) as engine:
            objective = objective_of(engine)
            weight: Any = objective.model.get_input_embeddings().weight
            assert weight.placements == (Replicate(), Shard(0)) and weight.to_local().shape[0] == 150
            assert sum(isinstance(module, FSDPModule) for module in objective.modules()) == 3
            for name, gradient in gradients_of(objective, engine).items():
                assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-5), name

    log = tmp_path / "log"
    assert in_ranks(work, log, count=4) == [0] * 4, log.read_text()


def test_blocks_travel_in_bfloat16(tmp_path: Path) -> None:
    """Weights stay float32; what differs from one process is that the blocks' norms are rounded on the way."""
    expected = gradients_of(objective_of(alone(), "bfloat16"), alone(), "bfloat16")
    exact = gradients_of(objective_of(alone()), alone())

    def work() -> None:
        with start_engine() as engine:
            objective = objective_of(engine, "bfloat16")
            seen = []
            block: Any = objective.model.base_model.layers[0]
            block.mlp.up_proj.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
            found = gradients_of(objective, engine, "bfloat16")
            assert seen == [torch.bfloat16]
            for name, parameter in objective.model.named_parameters():
                assert parameter.dtype == parameter.grad.dtype == torch.float32  # type: ignore[union-attr]
                error, usual = (torch.linalg.norm(each[name] - exact[name]) for each in (found, expected))
                assert error < 2 * usual + 0.01 * torch.linalg.norm(exact[name]), name

    log = tmp_path / "log"
    assert in_ranks(work, log) == [0, 0], log.read_text()


@pytest.mark.parametrize("each", [False, True])
def test_gradients_summed_with_every_micro_batch_are_the_same_and_never_whole(tmp_path: Path, each: bool) -> None:
    expected = gradients_of(objective_of(alone()), alone())

    def work() -> None:
        with start_engine(Layout(reduce_each=each)) as engine:
            objective = objective_of(engine)
            rows = BATCH[2 * engine.rank : 2 * engine.rank + 2]
            weight: Any = objective.model.base_model.layers[0].mlp.up_proj.weight
            for index, row in enumerate(rows.split(1)):
                engine.synchronise_gradients(objective, last=index == 1)
                (objective(row).minimised * engine.world_size).backward()
                assert (weight.grad is not None) == (each or index == 1)
            for name, parameter in objective.model.named_parameters():
                gradient: Any = parameter.grad
                assert torch.allclose(gradient.full_tensor(), expected[name], rtol=1e-4, atol=1e-5), name

    log = tmp_path / "log"
    assert in_ranks(work, log) == [0, 0], log.read_text()


def test_muon_with_replicas_moves_matrices_as_one_process_does(tmp_path: Path) -> None:
    def moved(engine: Engine) -> dict[str, torch.Tensor]:
        objective = objective_of(engine)
        optimizer = make_optimizer(objective.model, Optimizer(matrices="muon"))
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        gradients_of(objective, engine)
        optimizer.step()
        return {name: checkpoint_value(parameter.detach()) for name, parameter in objective.model.named_parameters()}

    expected = moved(alone())

    def work() -> None:
        with start_engine(Layout(replicas=2)) as engine:
            for name, weight in moved(engine).items():
                assert torch.allclose(weight, expected[name], rtol=1e-3, atol=1e-5), name

    log = tmp_path / "log"
    assert in_ranks(work, log, count=4) == [0] * 4, log.read_text()


def test_processes_that_do_not_divide_into_groups_are_refused() -> None:
    for replicas in (0, 3, 8):
        with pytest.raises(KinfolkError, match="divide"):
            Layout(replicas=replicas).check(4)
    with pytest.raises(KinfolkError, match="--replicas"), start_engine(Layout(replicas=2)):
        pass


def trained(engine: Engine) -> dict[str, torch.Tensor]:
    """Checkpoint tensors after a step, as live as in training."""
    objective = objective_of(engine)
    optimizer = make_optimizer(objective.model, Optimizer())
    tensors = checkpoint.tensors_of(objective.model, optimizer)
    gradients_of(objective, engine)
    optimizer.step()
    return tensors


@pytest.mark.parametrize(
    ("count", "layout"),
    [(1, Layout()), (2, Layout()), (4, Layout(replicas=2)), (2, Layout(tensor_parallel=2)), (4, Layout(1, 2))],
    ids=["one", "shards", "replicas", "tensor parallel", "shards of tensor parallel"],
)
def test_a_checkpoint_in_the_background_holds_what_was_there_when_it_began(
    tmp_path: Path, count: int, layout: Layout
) -> None:
    def work() -> None:
        with start_engine(layout) as engine:
            tensors = trained(engine)
            plain = save(tmp_path / "plain", tensors, Position(1, 4), engine)
            saving = begin_save(tmp_path / "background", tensors, Position(1, 4), engine, in_background=True)
            assert checkpoint.latest(tmp_path / "background") is None, "it has no name before it is whole"
            with torch.no_grad():
                for tensor in tensors.values():
                    tensor.fill_(7.0)
            found = saving.finish()
            checkpoint.verify(found)
            for folder in (plain, found):
                checkpoint.load(folder, tensors, engine)
                copies = {name: checkpoint_value(tensor) for name, tensor in tensors.items()}
                if folder == plain:
                    expected = copies
            for name, tensor in copies.items():
                assert torch.equal(tensor, expected[name]) and not bool((tensor == 7.0).all()), name

    log = tmp_path / "log"
    assert in_ranks(work, log, count=count) == [0] * count, log.read_text()


def checkpoint_value(tensor: Any) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.clone()


def test_damage_in_any_process_s_share_is_found(tmp_path: Path) -> None:
    def work() -> None:
        with start_engine() as engine:
            tensors = trained(engine)
            saved = save(tmp_path / "saves", tensors, Position(1, 4), engine)
            if engine.is_main:
                (file,) = saved.glob("shard-00002-*")
                content = bytearray(file.read_bytes())
                content[-3] ^= 1
                file.write_bytes(content)
            engine.on_main(lambda: None)
            checkpoint.load(saved, tensors, engine)

    log = tmp_path / "log"
    assert in_ranks(work, log) == [2, 3], log.read_text()
    assert "shard-00002" in log.read_text()


def test_a_process_killed_while_it_saves_leaves_what_was_there(tmp_path: Path) -> None:
    def work() -> None:
        tensors = trained(alone())
        save(tmp_path / "saves", tensors, Position(1, 4), alone())
        begin_save(tmp_path / "saves", tensors, Position(2, 8), alone(), in_background=True)
        os._exit(9)

    assert exit_code(start_child(work)) == 9
    found = checkpoint.latest(tmp_path / "saves")
    assert found is not None and found.name == "step-00000001"
    checkpoint.verify(found)


@pytest.mark.parametrize("count", [1, 2])
def test_compiled_blocks_give_the_same_gradients(tmp_path: Path, count: int) -> None:
    """Traced, differentiated and run as a graph; by PyTorch's own kernels, for want of minutes."""
    expected = gradients_of(objective_of(alone(), layers=1), alone())

    def work() -> None:
        compile_module, graphs = torch.nn.Module.compile, []

        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return aot_eager(graph, inputs)

        torch.nn.Module.compile = partialmethod(compile_module, backend=backend)  # type: ignore[assignment]
        with start_engine(Layout(compile=True)) as engine:
            objective = objective_of(engine, layers=1)
            for name, gradient in gradients_of(objective, engine).items():
                assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-5), name
            assert any("silu" in str(node.target) for graph in graphs for node in graph.graph.nodes)

    log = tmp_path / "log"
    assert in_ranks(work, log, count=count) == [0] * count, log.read_text()
