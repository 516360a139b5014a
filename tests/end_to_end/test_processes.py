"""Two processes of a job (gloo, on the CPU) train what one trains, and go on where one stopped, and the reverse."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import CONTEXT, LARGE, SEQUENCES_PER_STEP, SMALL, RecordingView, family, in_child, in_ranks, leftovers
from safetensors.torch import load_file

from kinfolk.build.auto import build_family
from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.family.load import LoadedFamily
from kinfolk.train.layout import Layout
from kinfolk.train.monitor import read_metrics


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    build(longer(folder), folder / "run", RecordingView())
    return folder


class Stops(RecordingView):
    """Ends its process with a signal at the step so many of a build, in patches or not."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(lambda count: os.kill(os.getpid(), number) if count == step else None)

    def stepped(self, record: dict[str, Any]) -> None:
        super().stepped({"loss": record["patch_loss"]} if "patch_loss" in record else record)


def longer(folder: Path, *overrides: str) -> LoadedFamily:
    """Tens of steps a stage, with micro-batches, so that gradients are accumulated before they are reduced."""
    return family(
        folder,
        "members.0.tokens=3840",
        "members.1.tokens=5120",
        *overrides,
        recipe={"checkpoints": {"steps": 10}, "sequences_per_micro_batch": 2},
    )


def figures(run: Path) -> dict[tuple[str, int, str], float]:
    """Every loss and gradient norm of a run."""
    return {
        (path.parent.name, record["step"], key): record[key]
        for path in (run / "stages").glob("*/metrics.jsonl")
        for record in read_metrics(path)
        for key in ("loss", "patch_loss", "held_out_loss", "gradient_norm")
        if key in record
    }


def in_groups(folder: Path, architecture: str) -> LoadedFamily:
    """Shapes that two processes can share, with a part in patches and a growth after which coordinates differ."""
    fields: dict[str, Any] = {"model": {"context_length": CONTEXT, "architecture": architecture}}
    shapes = [SMALL | {"num_key_value_heads": 2}, LARGE]
    recipe = {"checkpoints": {"steps": 6}, "sequences_per_micro_batch": 2, "schedule": {"decay_share": 0.3}}
    if architecture == "qwen3":
        recipe["optimizer"] = {"matrices": "muon", "weight_decay_rule": "cautious"}
        growth = {"optimizer": "asymmetric", "rates": "rewarm_new", "rewarm_steps": 9}
    else:
        growth = {"rates": "inherit"}
    return family(
        folder,
        **fields,
        members=[
            {"name": name, "shape": shape, "tokens": 20 * SEQUENCES_PER_STEP * CONTEXT}
            for name, shape in zip(("small", "large"), shapes, strict=True)
        ],
        growth=growth,
        patch={"size": 2, "share": 0.3},
        recipe=recipe,
    )


def check_agrees(run: Path, other: Path) -> None:
    expected, found = figures(other), figures(run)
    assert expected.keys() == found.keys() and len(expected) > 60
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4 if key[2] != "gradient_norm" else 1e-3), key
    for member in ("small", "large"):
        one, two = (load_file(each / "members" / member / "model.safetensors") for each in (other, run))
        for name, tensor in one.items():
            assert torch.linalg.norm(two[name] - tensor) < 1e-3 * torch.linalg.norm(tensor), name
        for file in ("config.json", "tokenizer.json"):
            texts = {(each / "members" / member / file).read_text() for each in (other, run)}
            assert len(texts) == 1
    assert leftovers(run) == []


def test_two_processes_train_what_one_trains(alone: Path, tmp_path: Path) -> None:
    loaded, log = longer(alone), tmp_path / "log"
    assert in_ranks(lambda: build(loaded, tmp_path / "run", RecordingView()), log) == [0, 0], log.read_text()
    check_agrees(tmp_path / "run", alone / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    counts = [len(ledger.events(kind)) for kind in ("data_prepared", "build_started", "build_finished", "grown")]
    assert counts == [1, 1, 1, 1]
    assert ledger.events("build_started")[0]["machine"]["processes"] == 2
    for board in (tmp_path / "run" / "stages").glob("*/tensorboard"):
        assert len(list(board.iterdir())) == 1  # one process writes


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [7, 38])
def test_one_process_goes_on_where_two_stopped(alone: Path, tmp_path: Path, rank: int, step: int) -> None:
    """Whichever process the signal reaches: all of them stop together, after saving."""
    loaded, log, folder = longer(alone), tmp_path / "log", tmp_path / "run"

    def work() -> None:
        def stop(count: int) -> None:
            if count == step:
                os.kill(os.getpid() if rank == 0 else int((tmp_path / "rank1").read_text()), signal.SIGTERM)

        if os.environ["RANK"] == "1":
            (tmp_path / "rank1").write_text(str(os.getpid()))
        build(loaded, folder, RecordingView(stop))

    assert in_ranks(work, log) == [143, 143], log.read_text()
    assert len(Ledger(folder / "ledger.jsonl").events("interrupted")) == 1
    assert in_child(lambda: build(loaded, folder, RecordingView()), log) == 0, log.read_text()
    check_agrees(folder, alone / "run")


def test_two_processes_go_on_where_one_stopped(alone: Path, tmp_path: Path) -> None:
    loaded, log, folder = longer(alone), tmp_path / "log", tmp_path / "run"

    def stop(count: int) -> None:
        if count == 35:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: build(loaded, folder, RecordingView(stop)), log) == -signal.SIGKILL
    assert in_ranks(lambda: build(loaded, folder, RecordingView()), log) == [0, 0], log.read_text()
    check_agrees(folder, alone / "run")


def test_four_processes_go_on_where_one_of_two_was_killed(alone: Path, tmp_path: Path) -> None:
    """As two replicas of two shards, saving in the background and computing activations again: the same losses."""
    loaded, log, folder = longer(alone), tmp_path / "log", tmp_path / "run"

    def work() -> None:
        def stop(count: int) -> None:
            if count == 35:
                os.kill(int((tmp_path / "rank1").read_text()), signal.SIGKILL)

        if os.environ["RANK"] == "1":
            (tmp_path / "rank1").write_text(str(os.getpid()))
        build_family(loaded, folder, RecordingView(stop), layout=Layout(background_saving=True))

    codes = in_ranks(work, log)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None), log.read_text()
    layout = Layout(replicas=2, recompute=True, background_saving=True)
    codes = in_ranks(lambda: build_family(loaded, folder, RecordingView(), layout=layout), log, count=4)
    assert codes == [0] * 4, log.read_text()
    check_agrees(folder, alone / "run")
    started = Ledger(folder / "ledger.jsonl").events("build_started")
    assert [event["machine"]["layout"]["replicas"] for event in started] == [1, 2]
    assert Ledger(folder / "ledger.jsonl").events("stage_resumed")


def test_processes_that_share_matrices_train_what_one_trains(tmp_path: Path) -> None:
    loaded, log = in_groups(tmp_path, "llama"), tmp_path / "log"
    build(loaded, tmp_path / "alone", RecordingView())
    layout = Layout(tensor_parallel=2, recompute=True)
    codes = in_ranks(lambda: build_family(loaded, tmp_path / "run", RecordingView(), layout=layout), log)
    assert codes == [0, 0], log.read_text()
    check_agrees(tmp_path / "run", tmp_path / "alone")


def test_a_run_goes_on_under_another_way_of_sharing_matrices(tmp_path: Path) -> None:
    """Two tensor groups of two are stopped in the patch part, one process is killed after it, one group ends it."""
    loaded, log, folder = in_groups(tmp_path, "qwen3"), tmp_path / "log", tmp_path / "run"
    build(loaded, tmp_path / "alone", RecordingView())
    stops, layout = Stops(3, signal.SIGTERM), Layout(tensor_parallel=2, recompute=True)
    codes = in_ranks(lambda: build_family(loaded, folder, stops, layout=layout), log, count=4)
    assert codes == [143] * 4, log.read_text()
    stops, layout = Stops(14, signal.SIGKILL), Layout(tensor_parallel=2)
    assert in_child(lambda: build(loaded, folder, stops), log) == -signal.SIGKILL, log.read_text()
    codes = in_ranks(lambda: build_family(loaded, folder, RecordingView(), layout=layout), log)
    assert codes == [0, 0], log.read_text()
    check_agrees(folder, tmp_path / "alone")
    started = Ledger(folder / "ledger.jsonl").events("build_started")
    assert [event["machine"]["layout"]["tensor_parallel"] for event in started] == [2, 1, 2]


def test_shapes_that_cannot_be_shared_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    log, layout = tmp_path / "log", Layout(tensor_parallel=2)
    loaded = family(tmp_path)
    codes = in_ranks(lambda: build_family(loaded, tmp_path / "run", RecordingView(), layout=layout), log)
    assert codes == [2, 3] and not (tmp_path / "run").exists()
    assert "--tensor-parallel, stage small: num_key_value_heads 1 does not divide among 2" in log.read_text()


def test_what_only_the_main_process_can_say_ends_all(alone: Path, tmp_path: Path) -> None:
    """Neither a refusal, nor a diverging run, nor a fault of one process alone leaves the others waiting."""
    log = tmp_path / "log"
    other = longer(alone, "recipe.seed=9")
    assert in_ranks(lambda: build(other, alone / "run", RecordingView()), log) == [2, 3]
    assert log.read_text().count("error:") == 1 and "recipe.seed was 0" in log.read_text()

    assert in_ranks(lambda: build(family(alone), tmp_path / "run", RecordingView()), log, count=3) == [2, 3, 3]
    assert "does not divide among 3 processes" in log.read_text()
    assert not (tmp_path / "run").exists()

    diverging = family(alone, "recipe.peak_learning_rate=1e30")
    assert in_ranks(lambda: build(diverging, tmp_path / "run", RecordingView()), log) == [2, 3]
    assert "peak_learning_rate" in log.read_text() and log.read_text().count("error:") == 3


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_dies_does_not_leave_the_other_waiting(alone: Path, tmp_path: Path, rank: str) -> None:
    loaded = longer(alone)

    def work() -> None:
        from kinfolk.train import stage

        real, calls = stage.clip, []

        def clip(*arguments: object) -> float:
            calls.append(1)
            if os.environ["RANK"] == rank and len(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)  # type: ignore[arg-type]

        stage.clip = clip  # type: ignore[assignment]
        build(loaded, tmp_path / "run", RecordingView())

    codes = in_ranks(work, tmp_path / "log")
    assert codes[int(rank)] == -signal.SIGKILL and codes[1 - int(rank)] == 1
