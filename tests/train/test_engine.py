import pytest
import torch
from micro import LARGE, SMALL

from kinfolk.family.shapes import Shape
from kinfolk.train import engine
from kinfolk.train.engine import alone, attention_kernel, resolve_precision, start_engine

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDE = Shape(**LARGE | {"hidden_size": 64})


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
    assert resolve_precision("bfloat16", Shape(**SMALL), CPU) == "bfloat16"
    assert resolve_precision("float32", WIDE, CPU) == "float32"
    assert resolve_precision("auto", Shape(**SMALL), CPU) == "float32"
    assert resolve_precision("auto", WIDE, CPU) == ("bfloat16" if native else "float32")


def test_explicit_attention_only_where_it_is_faster() -> None:
    assert attention_kernel("bfloat16", CPU, 256) == "eager"
    assert attention_kernel("bfloat16", CPU, 1024) == "sdpa"
    assert attention_kernel("float32", CPU, 256) == "sdpa"
    assert attention_kernel("bfloat16", GPU, 256) == "sdpa"
