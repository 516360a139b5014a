import pytest
import torch
from micro import LARGE, SMALL

from kinfolk.family.shapes import Shape
from kinfolk.train import engine
from kinfolk.train.engine import Engine, alone, resolve_precision, start_engine

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
