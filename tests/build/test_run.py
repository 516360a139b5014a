import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import RecordingView, exit_code, family, in_child, leftovers, members_of, start_child

from kinfolk.build import build as building
from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.locks import only_build_in
from kinfolk.build.remaining import stages_to_train, unfinished_members
from kinfolk.build.run import open_run
from kinfolk.errors import KinfolkError


def events(folder: Path) -> list[str]:
    return [event["event"] for event in Ledger(folder / "ledger.jsonl").events()]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, at the same family file."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_the_same_family_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    build(family(finished.parent), tmp_path / "again", RecordingView())
    assert members_of(tmp_path / "again") == members_of(finished)
    assert leftovers(tmp_path) == []


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    view = RecordingView()
    build(family(finished.parent), finished, view)
    assert "nothing to do" in view.said[-1] and view.steps == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_independent_members_are_trained_alone(finished: Path, tmp_path: Path) -> None:
    build(family(finished.parent, "strategy=independent"), tmp_path / "run", RecordingView())
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    assert [event["source"]["kind"] for event in ledger.events("stage_started")] == ["scratch", "scratch"]
    assert not ledger.events("grown")
    assert members_of(tmp_path / "run").keys() == members_of(finished).keys()
    kl = ledger.events("member_finished")[1]["kl_from_previous"]
    assert kl["previous"] == "small"


@pytest.mark.parametrize("gone", ["everything", "a member"])
def test_threads_follow_from_shapes_alone_and_are_left_as_they_were(
    finished: Path, tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums depend on their number: a member that is finished by a later call must be measured with the same."""
    run, found = tmp_path / "run", []
    if gone == "a member":
        shutil.copytree(finished, run)
        shutil.rmtree(run / "members" / "large")
    real = building.finish_member

    def watched(*arguments: Any) -> None:
        found.append(torch.get_num_threads())
        real(*arguments)

    monkeypatch.setattr(building, "finish_member", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        build(family(finished.parent), run, RecordingView())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found == [1] * len(found) and len(found) == (2 if gone == "everything" else 1)
    assert members_of(run) == members_of(finished)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("recipe.seed=5", "recipe.seed was 0 and is now 5"),
        ("members.1.tokens=5000", "members[1].tokens"),
        ("strategy=independent", "strategy was 'progressive' and is now 'independent'"),
        ("growth.noise=0.1", "growth.noise"),
    ],
)
def test_another_family_is_refused_by_field(finished: Path, change: str, field: str) -> None:
    before = events(finished)
    with pytest.raises(KinfolkError) as caught:
        build(family(finished.parent, change), finished, RecordingView())
    assert field in str(caught.value) and str(finished) in str(caught.value) and "--run" in str(caught.value)
    assert events(finished) == before


def test_changed_data_are_refused(tmp_path: Path) -> None:
    loaded = family(tmp_path, members=[{"name": "only", "parameters": 100}])
    with pytest.raises(KinfolkError, match="no shape"):
        build(loaded, tmp_path / "run", RecordingView())
    assert not (tmp_path / "run").exists()
    build(family(tmp_path), tmp_path / "run", RecordingView())
    (tmp_path / "corpus" / "000.txt").write_text("something else")
    with pytest.raises(KinfolkError, match=r"000\.txt has changed"):
        build(family(tmp_path), tmp_path / "run", RecordingView())


def test_a_second_build_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    loaded, log = family(tmp_path), tmp_path / "log"
    folder = tmp_path / "run"
    folder.mkdir()
    with only_build_in(folder):
        assert in_child(lambda: build(loaded, folder, RecordingView()), log) == 2
    assert "another build is at work" in log.read_text()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    build(loaded, folder, RecordingView())


def test_a_build_that_could_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    loaded = family(tmp_path, data={"train": [{"path": "nowhere"}]})
    with pytest.raises(KinfolkError, match="nowhere"):
        build(loaded, tmp_path / "run", RecordingView())
    assert not (tmp_path / "run").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(KinfolkError, match="nowhere"):
        build(loaded, tmp_path / "own", RecordingView())
    assert (tmp_path / "own" / "notes.txt").read_text() == "mine"


def test_a_lost_member_is_exported_again(copy: Path, finished: Path) -> None:
    shutil.rmtree(copy / "members" / "large")
    view = RecordingView()
    build(family(finished.parent), copy, view)
    assert view.steps == 0 and members_of(copy) == members_of(finished)


def test_checkpoints_that_nobody_needs_may_be_deleted(copy: Path, finished: Path) -> None:
    shutil.rmtree(copy / "stages")
    view = RecordingView()
    build(family(finished.parent), copy, view)
    assert view.steps == 0


def test_a_lost_checkpoint_is_trained_again_if_it_is_needed(copy: Path, finished: Path) -> None:
    """As an unreadable one is that is deleted."""
    run = open_run(family(finished.parent), copy)
    shutil.rmtree(run.member("large"))
    last = run.plan.stages[-1]
    for stage in run.plan.stages:  # the parent's is gone as well, so it has to be made again first
        shutil.rmtree(run.checkpoints(stage.name))
    assert last.name in stages_to_train(run) and last.parent in stages_to_train(run)
    assert unfinished_members(run) == {"large"}
    build(family(finished.parent), copy, RecordingView())
    assert members_of(copy) == members_of(finished)


def test_contexts_and_prompts_may_be_tiny(tmp_path: Path) -> None:
    small = {"name": "only", "shape": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}}
    small["shape"] |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8}
    recipe = {"tokens_per_step": 16}
    loaded = family(tmp_path, model={"context_length": 8}, members=[small | {"tokens": 16}], recipe=recipe)
    build(loaded, tmp_path / "run", RecordingView())
    assert members_of(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_tokenising_leaves_nothing(tmp_path: Path, number: int) -> None:
    loaded = family(tmp_path)

    class Impatient(RecordingView):
        def prepared(self, what: str, done: int, total: int | None) -> None:
            if what == "tokenising":
                os.kill(os.getpid(), number)

    child = start_child(lambda: build(loaded, tmp_path / "run", Impatient()), tmp_path / "log")
    assert exit_code(child) == 128 + number
    assert not (tmp_path / "run").exists()
