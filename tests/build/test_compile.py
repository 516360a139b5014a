"""Builds with compiled blocks, on a CPU. Each in a process of its own: torch remembers compilers it has found."""

import shutil
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
from micro import RecordingView, family, in_child
from torch import nn
from torch._inductor import config as inductor

from kinfolk.build import build
from kinfolk.build.auto import build_family
from kinfolk.build.run import open_run
from kinfolk.train.layout import Layout
from kinfolk.train.monitor import read_metrics


def test_without_a_compiler_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with inductor.patch({"cpp.cxx": (str(tmp_path / "none"),)}):
        assert in_child(building(tmp_path), tmp_path / "log") == 2
    said = (tmp_path / "log").read_text()
    assert "--compile" in said and "does not work here" in said and "InvalidCxxCompiler" in said
    assert not (tmp_path / "run").exists()


def test_blocks_that_cannot_be_compiled_are_said_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: Any, inputs: Any) -> Callable[..., Any]:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(build, "refuse_without_compiler", lambda device: None)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=fails))
    assert in_child(building(tmp_path), tmp_path / "log") == 2
    said = (tmp_path / "log").read_text()
    assert "cannot be compiled" in said and "no such operator" in said and "stage small" in said
    assert "Traceback" not in said
    monkeypatch.undo()
    assert in_child(lambda: build_family(family(tmp_path), tmp_path / "run", RecordingView())) == 0  # without it


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_compiled_blocks_train_as_others_do_and_give_the_same_bytes_twice(tmp_path: Path) -> None:
    losses, weights = [], []
    for name, compile_ in (("compiled", True), ("again", True), ("plain", False)):
        loaded = family(tmp_path)
        run = tmp_path / name
        layout = Layout(compile=compile_)
        assert in_child(partial(build_family, loaded, run, RecordingView(), layout=layout, only=["small"])) == 0
        folder = open_run(loaded, run).stages / "small"
        losses.append([each["loss"] for each in read_metrics(folder / "metrics.jsonl") if "loss" in each])
        weights.append((run / "members" / "small" / "model.safetensors").read_bytes())
    assert losses[0] == pytest.approx(losses[2], abs=1e-4)
    assert weights[0] == weights[1]


def building(folder: Path) -> Callable[[], object]:
    loaded = family(folder)
    return lambda: build_family(loaded, folder / "run", RecordingView(), layout=Layout(compile=True))
