import numpy as np
import pytest
import torch
from micro import LARGE, SMALL

from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Model
from kinfolk.train import engine
from kinfolk.train.engine import Engine, Precision, alone, resolve_precision, start_engine
from kinfolk.train.model import config_for, new_model
from kinfolk.train.objective import TokenLoss

CPU = torch.device("cpu")
WIDE = Shape(**LARGE | {"hidden_size": 256})


def test_a_process_without_a_job_is_alone() -> None:
    with start_engine() as single:
        assert (single.rank, single.world_size, single.mesh, single.is_main) == (0, 1, None, True)
        assert single.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
        done: list[int] = []
        single.on_main(lambda: done.append(1))
        assert done == [1]
    with pytest.raises(ZeroDivisionError):
        alone().on_main(lambda: print(1 / 0))


@pytest.mark.parametrize("native", [True, False])
def test_precision_is_what_was_asked_for_or_what_is_faster(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(engine, "has_native_bfloat16", lambda: native)
    assert resolve_precision("bfloat16", CPU) == "bfloat16"
    assert resolve_precision("float32", CPU) == "float32"
    assert resolve_precision("auto", CPU) == ("bfloat16" if native else "float32")


def test_small_models_use_one_thread_and_large_ones_all() -> None:
    before = torch.get_num_threads()
    try:
        for shape, threads in ((Shape(**SMALL), 1), (WIDE, 3)):
            Engine(CPU, threads=3).use_threads(shape)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "precision", "head_size", "context", "chosen"),
    [
        ("cpu", "bfloat16", 16, 128, "eager"),
        ("cpu", "bfloat16", 16, 129, "sdpa"),
        ("cpu", "bfloat16", 32, 256, "eager"),
        ("cpu", "bfloat16", 32, 257, "sdpa"),
        ("cpu", "float32", 32, 16, "sdpa"),
        ("cuda", "bfloat16", 32, 16, "sdpa"),
    ],
)
def test_attention_by_plain_products_where_these_are_faster(
    device: str, precision: Precision, head_size: int, context: int, chosen: str
) -> None:
    shape = WIDE.model_copy(update={"head_dim": head_size})
    model = new_model(config_for(shape, Model(), 301), seed=0)
    Engine(torch.device(device)).use_attention(model, shape, precision, context)
    assert model.config._attn_implementation == chosen


def test_either_way_of_attention_is_the_same_but_for_rounding() -> None:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 301, (4, 65)))
    losses, gradients = [], []
    for context in (64, 512):
        model = new_model(config_for(WIDE, Model(), 301), seed=0)
        alone().use_attention(model, WIDE, "bfloat16", context)
        objective = TokenLoss(model, torch.bfloat16)
        with alone().autocast("bfloat16"):
            loss = objective(tokens).minimised
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert torch.linalg.norm(gradients[0] - gradients[1]) < 0.02 * torch.linalg.norm(gradients[1])
    assert not torch.equal(gradients[0], gradients[1])
