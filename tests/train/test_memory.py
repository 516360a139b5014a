"""When memory runs out, the message says for what, and which setting fits."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import RecordingView, family, in_child, members_of

from kinfolk.build.build import build
from kinfolk.cli.app import main
from kinfolk.errors import KinfolkError
from kinfolk.machine_faults import is_out_of_memory, machine_fault
from kinfolk.train.objective import TokenLoss

SAID_BY_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ERRORS: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(SAID_BY_CPU)]


def hold_at_most(monkeypatch: pytest.MonkeyPatch, sequences: int, error: Exception) -> None:
    """A machine whose memory holds the activations of so many sequences."""
    real = TokenLoss.forward

    def forward(objective: TokenLoss, batch: torch.Tensor) -> Any:
        if objective.training and len(batch) > sequences:
            raise error
        return real(objective, batch)

    monkeypatch.setattr(TokenLoss, "forward", forward)


@pytest.mark.parametrize("error", ERRORS[-1:])
def test_the_largest_micro_batch_that_fits_is_named_and_the_run_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as machine:
        hold_at_most(machine, 3, error)
        with pytest.raises(KinfolkError) as caught:
            build(family(tmp_path), tmp_path / "run", RecordingView())
        assert str(caught.value).startswith(
            "stage small: the memory is used up by the activations of 8 sequences of 16"
        )
        assert (
            caught.value.fix is not None
            and "recipe.sequences_per_micro_batch to 2, which was tried" in caught.value.fix
        )
        build(family(tmp_path, "recipe.sequences_per_micro_batch=2"), tmp_path / "run", RecordingView())
    assert len(members_of(tmp_path / "run")) > 2


def test_not_even_one_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_at_most(monkeypatch, 0, MemoryError())
    with pytest.raises(KinfolkError, match="not one sequence fits: shorten"):
        build(family(tmp_path), tmp_path / "run", RecordingView())


def test_the_optimizer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KinfolkError, match="used up by the optimizer's state"):
        build(family(tmp_path), tmp_path / "run", RecordingView())


def test_anywhere_else_it_is_said_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        def plan_family(*_: Any, **__: Any) -> None:
            raise MemoryError

        monkeypatch.setattr("kinfolk.build.build.plan_family", plan_family)
        sys.argv = ["kinfolk", "build", family(tmp_path).origin, "--run", str(tmp_path / "run")]
        main()

    assert in_child(work, tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "error: the memory is used up" in said and "Traceback" not in said


def test_other_errors_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in ERRORS:
        assert is_out_of_memory(error) and machine_fault(error) is not None
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    hold_at_most(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        build(family(tmp_path), tmp_path / "run", RecordingView())
