"""A member is finished by all processes of a job, none of which has its whole model, as one process finishes it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dying import wrap
from micro import LARGE, SMALL, RecordingView, family, in_child, in_ranks, members_of

from kinfolk.build.alikeness import compare_members
from kinfolk.build.build import build
from kinfolk.build.finish import finish_member
from kinfolk.build.members import export_member, export_saved, spread_member
from kinfolk.build.origin import last_checkpoint, load_stage_model, stage_config
from kinfolk.build.run import Run, open_run
from kinfolk.family.load import load_family
from kinfolk.train.engine import Engine, alone, start_engine
from kinfolk.train.layout import Layout
from kinfolk.train.model import parameters_of
from kinfolk.train.shards import local


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with shapes of several blocks, the larger one with a head of its own."""
    folder = tmp_path_factory.mktemp("trained")
    members = [
        {"name": "small", "shape": SMALL | {"num_hidden_layers": 2}, "tokens": 512},
        {"name": "large", "shape": LARGE | {"num_hidden_layers": 3, "tie_word_embeddings": False}, "tokens": 1024},
    ]
    build(family(folder, members=members), folder / "run", RecordingView())
    return folder / "run"


def opened(folder: Path) -> Run:
    return open_run(load_family(str(folder / "family.yaml")), folder)


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def last_event(folder: Path, kind: str) -> dict[str, Any]:
    events = opened(folder).ledger.events(kind)
    return {name: value for name, value in events[-1].items() if name != "time"}


def with_engine(work: Callable[[Engine], object], layout: Layout = Layout()) -> Callable[[], None]:  # noqa: B008 (frozen)
    def do() -> None:
        torch.set_num_threads(1)
        with start_engine(layout) as engine:
            work(engine)

    return do


def finish_large(folder: Path) -> Callable[[Engine], None]:
    def work(engine: Engine) -> None:
        run = opened(folder)
        finish_member(run, run.plan.stages[-1], engine, RecordingView(), lambda: None)

    return work


@pytest.mark.parametrize(("count", "layout"), [(2, Layout()), (3, Layout()), (4, Layout(replicas=2))])
def test_processes_finish_a_member_as_one_does(trained: Path, tmp_path: Path, count: int, layout: Layout) -> None:
    """To the last bit: a process computes with whole blocks, and batches are dealt and not divided."""
    log, one, several = tmp_path / "log", copy_of(trained, tmp_path / "one"), copy_of(trained, tmp_path / "several")
    for folder in (one, several):
        shutil.rmtree(folder / "members" / "large")
    assert in_child(with_engine(finish_large(one)), log) == 0, log.read_text()
    assert in_ranks(with_engine(finish_large(several), layout), log, count) == [0] * count, log.read_text()
    assert members_of(one) == members_of(several) == members_of(trained)
    assert last_event(one, "member_finished") == last_event(several, "member_finished")
    assert last_event(several, "member_finished")["kl_from_earlier"][0]["kl_small_to_large"] > 0


@pytest.mark.parametrize("count", [2, 3])
def test_no_process_has_more_than_its_part_of_a_block(trained: Path, tmp_path: Path, count: int) -> None:
    def work(engine: Engine) -> None:
        run = opened(trained)
        stage = run.plan.stages[-1]
        models = {
            "stage": load_stage_model(stage, run.family, run.store, run.stages, engine=engine),
            "member": spread_member(run.member("large"), stage_config(stage, run.family, run.store), engine),
        }
        sizes = {
            name: {key: local(tensor).numel() for key, tensor in parameters_of(model).items()}
            for name, model in models.items()
        }
        (tmp_path / str(engine.rank)).write_text(json.dumps(sizes))

    log = tmp_path / "log"
    assert in_ranks(with_engine(work), log, count) == [0] * count, log.read_text()
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(count)]
    run = opened(trained)
    whole = parameters_of(load_stage_model(run.plan.stages[-1], run.family, run.store, run.stages))
    for kind in ("stage", "member"):
        for name, tensor in whole.items():
            parts = [each[kind][name] for each in found]
            if ".layers." in name:
                assert sum(parts) == tensor.numel() and max(parts) <= -(-tensor.shape[0] // count) * tensor[0].numel()
            else:
                assert parts == [tensor.numel()] * count


def test_members_that_were_not_compared_are_by_all_processes(trained: Path, tmp_path: Path) -> None:
    """As several jobs leave it, where the larger member was finished before the smaller."""
    event = last_event(trained, "member_finished")
    for name in ("one", "several"):
        run = opened(copy_of(trained, tmp_path / name))
        run.ledger.append("members_compared", member="large", kl_from_earlier=[], kl_from_previous=None)

    def work(folder: Path) -> Callable[[Engine], None]:
        return lambda engine: compare_members(opened(folder), engine, lambda: None)

    log = tmp_path / "log"
    assert in_child(with_engine(work(tmp_path / "one")), log) == 0, log.read_text()
    assert in_ranks(with_engine(work(tmp_path / "several")), log) == [0, 0], log.read_text()
    found = [last_event(tmp_path / name, "members_compared") for name in ("one", "several")]
    assert found[0] == found[1]
    assert found[0]["kl_from_earlier"] == event["kl_from_earlier"] == [found[0]["kl_from_previous"]]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_while_processes_evaluate_ends_all_and_the_build_goes_on(
    trained: Path, tmp_path: Path, rank: int
) -> None:
    folder, log = copy_of(trained, tmp_path / "run"), tmp_path / "log"
    shutil.rmtree(folder / "members" / "large")
    loaded = load_family(str(folder / "family.yaml"))

    def work() -> None:
        def ask_to_stop() -> None:
            if os.environ["RANK"] == str(rank):
                os.kill(os.getpid(), signal.SIGTERM)

        wrap("kinfolk.evaluate.loss:_window_losses", ask_to_stop, lambda: None)
        build(loaded, folder, RecordingView())

    assert in_ranks(work, log) == [143, 3], log.read_text()
    assert not (folder / "members" / "large").exists()
    assert in_ranks(lambda: build(loaded, folder, RecordingView()), log) == [0, 0], log.read_text()
    assert members_of(folder) == members_of(trained)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_from_files_is_what_transformers_writes_of_the_model(tmp_path: Path, tied: bool) -> None:
    members = [{"name": "only", "shape": LARGE | {"tie_word_embeddings": tied}, "tokens": 256}]
    for architecture in ("llama", "qwen3"):
        folder = tmp_path / architecture
        folder.mkdir()
        build(family(folder, members=members, model={"architecture": architecture}), folder / "run", RecordingView())
        run = opened(folder / "run")
        (stage,) = run.plan.stages
        model = load_stage_model(stage, run.family, run.store, run.stages, engine=alone())
        digests = (
            export_saved(folder / "files", last_checkpoint(stage, run.stages), model, run.tokenizer, "card"),
            export_member(folder / "model", model, run.tokenizer, "card"),
        )
        assert digests[0] == digests[1]
        written = ({path.name: path.read_bytes() for path in (folder / each).iterdir()} for each in ("files", "model"))
        assert next(written) == next(written)
