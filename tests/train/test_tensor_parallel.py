"""Processes that share the matrices of every block compute what one process computes."""

import math
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCAB, random_model
from micro import in_ranks
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Optimizer
from kinfolk.growth.dynamics import Coordinates, Rewarming, StageRates
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine, alone, start_engine
from kinfolk.train.gradients import accumulate, clip
from kinfolk.train.layout import Layout
from kinfolk.train.objective import TokenLoss
from kinfolk.train.optimizer import make_optimizer
from kinfolk.train.saving import save
from kinfolk.train.stage import rows_of_rank
from kinfolk.train.tensor_parallel import block_plan, refuse_tensor_parallel
from kinfolk.train.update import make_update

BATCH = torch.randint(VOCAB, (8, 17), generator=torch.Generator().manual_seed(3))
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ONE_LAYER = HEADS | {"num_hidden_layers": 1}
UNEVEN = HEADS | {"intermediate_size": 22, "num_hidden_layers": 1}
"""Each of two processes has 11 intermediate units, which two more share as 6 and 5."""


def objective_of(name: str, engine: Engine, precision: Any = "float32", **sizes: int) -> TokenLoss:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    objective = TokenLoss(random_model(name, **(sizes or ONE_LAYER)), dtype)
    engine.distribute(objective, precision)
    return objective


def gradients_of(objective: TokenLoss, engine: Engine, precision: Any = "float32") -> tuple[dict[str, Tensor], float]:
    """The mean gradients of the batch, in two micro-batches, and its mean loss as all processes count it."""
    mine = rows_of_rank(len(BATCH), engine.data_rank, engine.data_parallel)
    rows = BATCH[mine.start : mine.stop]
    (loss, _) = accumulate(objective, rows.chunk(2), BATCH[:, 1:].numel(), precision, engine)
    (total,) = engine.sum(torch.tensor([loss * engine.counted], dtype=torch.float64)).tolist()
    gradients = {name: whole(parameter.grad) for name, parameter in objective.model.named_parameters()}
    return gradients, total / BATCH[:, 1:].numel()


def whole(tensor: Any) -> Tensor:
    gathered: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach().clone()


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor], largest: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = torch.linalg.norm(found[name] - tensor) / torch.linalg.norm(tensor)
        assert error < largest, (name, float(error))


@pytest.mark.parametrize(
    ("count", "layout", "names"),
    [
        (2, {}, ("llama tied", "qwen3", "gemma3_text", "gpt_neox", "olmo2", "phi3")),
        (4, {"replicas": 2, "reduce_each": True, "recompute": True}, ("qwen3",)),
    ],
)
def test_gradients_norm_and_loss_are_those_of_one_process(
    tmp_path: Path, count: int, layout: Any, names: tuple[str, ...]
) -> None:
    def work() -> None:
        with start_engine(Layout(tensor_parallel=2, **layout)) as engine:
            for name in names:
                one = objective_of(name, alone())
                (expected, loss), norm = gradients_of(one, alone()), clip(one.model, 0.5)
                objective = objective_of(name, engine)
                found, mean = gradients_of(objective, engine)
                check_same(found, expected)
                assert mean == pytest.approx(loss, rel=1e-6)
                assert norm > 0.5 and clip(objective.model, 0.5) == pytest.approx(norm, rel=1e-5)
                clipped = {name: whole(parameter.grad) for name, parameter in objective.model.named_parameters()}
                check_same(clipped, {name: tensor * (0.5 / norm) for name, tensor in expected.items()})
                check_is_split(objective.model, count)

    log = tmp_path / "log"
    assert in_ranks(work, log, count=count) == [0] * count, log.read_text()


def check_is_split(model: Any, count: int) -> None:
    """In a block each process has its share of every matrix; the rows of those outside are shared by all."""
    for name, parameter in model.named_parameters():
        held, size = parameter.to_local().numel(), parameter.numel()
        if any(part.isdigit() for part in name.split(".")) and parameter.dim() == 2:
            assert parameter.device_mesh.mesh_dim_names[-1] == "tensor" and parameter.device_mesh.size(-1) == 2
            replicas = parameter.device_mesh.size() // math.prod(parameter.device_mesh.shape[-2:])
            assert held == size * replicas // count, name
        elif "embed" in name:
            assert held < size


def test_blocks_in_bfloat16_stay_as_close_as_those_of_one_process(tmp_path: Path) -> None:
    exact, _ = gradients_of(objective_of("qwen3", alone()), alone())
    usual, _ = gradients_of(objective_of("qwen3", alone(), "bfloat16"), alone(), "bfloat16")

    def work() -> None:
        with start_engine(Layout(tensor_parallel=2)) as engine:
            found, _ = gradients_of(objective_of("qwen3", engine, "bfloat16"), engine, "bfloat16")
            for name, tensor in exact.items():
                error, expected = (torch.linalg.norm(each[name] - tensor) for each in (found, usual))
                assert error < 2 * expected + 0.01 * torch.linalg.norm(tensor), name

    log = tmp_path / "log"
    assert in_ranks(work, log) == [0, 0], log.read_text()


def coordinates_of(model: nn.Module) -> StageRates:
    """Factors of their own for every unit along every dimension, of some old and some new units."""
    draw = torch.Generator().manual_seed(5)

    def vectors(parameter: Tensor, low: float, high: float) -> tuple[Tensor, ...]:
        return tuple(
            torch.empty(size, dtype=torch.float64).uniform_(low, high, generator=draw) for size in parameter.shape
        )

    found = {}
    for name, parameter in model.named_parameters():
        is_old = tuple((vector > 0.5).double() for vector in vectors(parameter, 0, 1))
        ages = tuple(vector.floor() for vector in vectors(parameter, 0, 4))
        found[name] = Coordinates(vectors(parameter, 0.5, 2), vectors(parameter, 0.5, 2), is_old, ages)
    return StageRates(found, Rewarming(1.3, 5, 0))


def trained(engine: Engine, folder: Path | None = None, load: Path | None = None) -> dict[str, Tensor]:
    """Weights and moments of uneven shapes after two steps, each coordinate at its own rate; from `load`, one step."""
    objective = objective_of("qwen3", engine, **UNEVEN)
    rates = coordinates_of(random_model("qwen3", **UNEVEN))
    optimizer = make_optimizer(objective.model, Optimizer(matrices="muon", weight_decay_rule="cautious"))
    update = make_update(objective.model, optimizer, rates)
    tensors = checkpoint.tensors_of(objective.model, optimizer)
    if load is not None:
        checkpoint.load(load, tensors, engine)
    for step in (0, 1) if load is None else (1,):
        if step == 1 and folder is not None:
            save(folder, tensors, Position(1, 8), engine)
        objective.zero_grad()
        gradients_of(objective, engine)
        update(0.01, step)
    return {name: whole(tensor) for name, tensor in tensors.items()}


def test_updates_and_checkpoints_are_those_of_one_process(tmp_path: Path) -> None:
    """Begun by one process, by a group of two, and by two groups; the next one goes on with the checkpoint of each."""
    expected = trained(alone(), tmp_path / "1")
    before = {1: 4, 2: 1, 4: 2}

    def check(engine: Engine) -> None:
        if engine.world_size > 1:
            check_same(trained(engine, tmp_path / str(engine.world_size)), expected, 1e-3)
        saved = tmp_path / str(before[engine.world_size]) / "step-00000001"
        check_same(trained(engine, load=saved), expected, 1e-3)

    def work() -> None:
        with start_engine(Layout(tensor_parallel=2)) as engine:
            check(engine)

    log = tmp_path / "log"
    for count in (2, 4):
        assert in_ranks(work, log, count=count) == [0] * count, log.read_text()
    check(alone())


def test_compiled_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    """Traced, differentiated and run as a graph; by PyTorch's own kernels, for want of minutes."""
    expected, _ = gradients_of(objective_of("llama", alone()), alone())

    def work() -> None:
        compile_module = nn.Module.compile
        nn.Module.compile = partialmethod(compile_module, backend=aot_eager)  # type: ignore[assignment]
        with start_engine(Layout(tensor_parallel=2, compile=True)) as engine:
            found, _ = gradients_of(objective_of("llama", engine), engine)
            check_same(found, expected)

    log = tmp_path / "log"
    assert in_ranks(work, log) == [0, 0], log.read_text()


def test_what_a_plan_says_of_more_than_blocks_is_left() -> None:
    """Some versions of transformers put the embedding into the plan of a model that is made."""
    config = LlamaConfig()
    config.base_model_tp_plan = {"embed_tokens": "embedding_rowwise", "layers.*.mlp.up_proj": "colwise"}
    assert block_plan(config) == {"mlp.up_proj": "colwise"}


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(KinfolkError, match="gpt2 has no tensor-parallel plan"):
        block_plan(CONFIGS["gpt2"])
    with pytest.raises(KinfolkError, match=r"mixtral .* beyond torch's styles .*moe_tp_experts"):
        block_plan(CONFIGS["mixtral"])
    sizes = {"num_attention_heads": 12, "num_key_value_heads": 6, "intermediate_size": 36}
    for name, processes in (("num_attention_heads", 9), ("num_key_value_heads", 4), ("intermediate_size", 5)):
        shape = dict.fromkeys(sizes, processes * 2) | {name: sizes[name]}
        config = LlamaConfig(**shape, head_dim=8, hidden_size=math.lcm(*shape.values()))
        with pytest.raises(KinfolkError, match=f"{name} {sizes[name]} does not divide among {processes}"):
            refuse_tensor_parallel(config, processes, "here")
        refuse_tensor_parallel(config, 1, "here")
    for layout, problem in (
        (Layout(tensor_parallel=3), "groups of 3"),
        (Layout(tensor_parallel=0), "groups of 0"),
        (Layout(tensor_parallel=2, replicas=4), "8 groups"),
    ):
        with pytest.raises(KinfolkError, match=f"4 processes do not divide into {problem}"):
            layout.check(4)
    Layout(tensor_parallel=2, replicas=2).check(4)
