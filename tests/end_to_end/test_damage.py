"""Whatever is damaged in a run directory is noticed and said, and the build ends with the bytes that it would have."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from micro import RecordingView, check_whole, family, members_of

from kinfolk import files
from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.errors import KinfolkError
from kinfolk.lines import line_of, parse_lines, read_lines

Uninterrupted = tuple[Path, dict[str, bytes]]
Harm = Callable[[bytes], bytes]


class StopError(Exception):
    """Ends a build as a fault of the machine would."""


def flip(content: bytes) -> bytes:
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


HARMS = [flip, truncate]


def harm(path: Path, how: Harm) -> None:
    path.write_bytes(how(path.read_bytes()))


@pytest.fixture(scope="module")
def stopped(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that ended in the second stage behind its step 9: checkpoints of steps 4 and 8 are there."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    loaded = family(uninterrupted[0])

    def stop(count: int) -> None:
        if count == 12 + 9:
            raise StopError

    with pytest.raises(StopError):
        build(loaded, folder, RecordingView(stop))
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture
def finished(uninterrupted: Uninterrupted, tmp_path: Path) -> Path:
    return shutil.copytree(uninterrupted[0] / "run", tmp_path / "finished")


def go_on(uninterrupted: Uninterrupted, run: Path) -> RecordingView:
    view = RecordingView()
    build(family(uninterrupted[0]), run, view)
    assert members_of(run) == uninterrupted[1]
    return view


def saves(run: Path, stage: str = "large") -> list[Path]:
    return sorted((run / "stages" / stage / "checkpoints").glob("step-*"))


def warned(view: RecordingView, *words: str) -> bool:
    return any(said.startswith("warning: ") and all(word in said for word in words) for said in view.said)


def test_two_checkpoints_are_there_between_saves_and_one_at_the_end(run: Path, finished: Path) -> None:
    assert [path.name for path in saves(run)] == ["step-00000004", "step-00000008"]
    assert len(saves(finished)) == len(saves(finished, "small")) == 1


@pytest.mark.parametrize(("how", "file"), [(flip, "*.safetensors"), (truncate, "*.safetensors"), (flip, "state.json")])
def test_the_checkpoint_before_a_damaged_one_is_used(
    uninterrupted: Uninterrupted, run: Path, how: Harm, file: str
) -> None:
    harm(next(saves(run)[-1].glob(file)), how)
    view = go_on(uninterrupted, run)
    assert warned(view, "step-00000008", "goes on from its step 4")
    assert view.started == [("large", 4)]
    (event,) = Ledger(run / "ledger.jsonl").events("damaged")
    assert re.fullmatch(f"stages/large/checkpoints/step-00000008/{file.replace('*', '.*')}", event["path"])
    aside = run / "stages" / "large" / "checkpoints" / "damaged-step-00000008"
    assert aside.is_dir()
    shutil.rmtree(aside)
    check_whole(run, uninterrupted[1])


def test_looking_through_what_is_saved_shows_how_far_it_is(
    uninterrupted: Uninterrupted, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.sha256_each

    def slow(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[str]:
        if progress is not None:
            progress(1, 2)
        return real(paths)

    monkeypatch.setattr(files, "sha256_each", slow)
    view = go_on(uninterrupted, run)
    assert {"reading what is saved of small", "reading what is saved of large"} <= view.prepared_for


def test_where_no_checkpoint_is_whole_the_stage_begins_anew(uninterrupted: Uninterrupted, run: Path) -> None:
    for path in saves(run):
        harm(path / "state.json", truncate)
    view = go_on(uninterrupted, run)
    assert warned(view, "the stage goes on from its beginning") and view.started == [("large", 0)]


def test_where_the_parent_is_damaged_too_it_is_trained_again(uninterrupted: Uninterrupted, run: Path) -> None:
    for path in [*saves(run), *saves(run, "small")]:
        harm(next(path.glob("*.safetensors")), flip)
    assert go_on(uninterrupted, run).started == [("small", 0), ("large", 0)]


def test_a_damaged_parent_that_nothing_needs_is_left_alone(uninterrupted: Uninterrupted, run: Path) -> None:
    harm(next(saves(run, "small")[0].glob("*.safetensors")), flip)
    assert go_on(uninterrupted, run).started == [("large", 8)]


@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_member_is_set_aside_and_exported_again(
    uninterrupted: Uninterrupted, finished: Path, how: Harm
) -> None:
    harm(finished / "members" / "large" / "model.safetensors", how)
    view = go_on(uninterrupted, finished)
    assert warned(view, "members/large", "set aside", "exported again") and view.started == []
    assert (finished / "damaged" / "large" / "config.json").is_file()
    (event,) = Ledger(finished / "ledger.jsonl").events("damaged")
    assert event["path"] == "members/large"
    assert RecordingView().said == [] and not warned(go_on(uninterrupted, finished), "")


def test_a_member_that_nothing_harmed_is_not_touched(uninterrupted: Uninterrupted, finished: Path) -> None:
    """A user may write into the card of a member."""
    card = finished / "members" / "large" / "README.md"
    card.write_text("my own words")
    view = RecordingView()
    build(family(uninterrupted[0]), finished, view)
    assert card.read_text() == "my own words" and "nothing to do" in view.said[-1]


@pytest.mark.parametrize(
    ("how", "file"),
    [
        (flip, "train.bin"),
        (truncate, "held_out_documents.bin"),
        (flip, "data.json"),
        (truncate, "tokenizer/tokenizer.json"),
    ],
)
def test_damaged_tokens_are_made_again(uninterrupted: Uninterrupted, run: Path, how: Harm, file: str) -> None:
    before = (run / "data" / file).read_bytes()
    harm(run / "data" / file, how)
    assert warned(go_on(uninterrupted, run), "tokenised again")
    assert (run / "data" / file).read_bytes() == before


def test_tokens_that_would_come_out_otherwise_are_refused(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """The data folder is gone and a text has changed: nobody but the ledger knows."""
    shutil.copytree(uninterrupted[0] / "corpus", tmp_path / "corpus")
    loaded = family(tmp_path)
    build(loaded, tmp_path / "run", RecordingView())
    shutil.rmtree(tmp_path / "run" / "data")
    text = tmp_path / "corpus" / "003.txt"
    before = text.read_bytes()
    text.write_bytes(before + b"And more.")
    with pytest.raises(KinfolkError, match="not those that this run was begun with"):
        build(loaded, tmp_path / "run", RecordingView())
    text.write_bytes(before)
    shutil.rmtree(tmp_path / "run" / "data")
    build(loaded, tmp_path / "run", RecordingView())


def test_a_text_that_changes_between_runs_is_refused(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted[0] / "corpus", tmp_path / "corpus")
    loaded = family(tmp_path)
    build(loaded, tmp_path / "run", RecordingView())
    harm(tmp_path / "corpus" / "003.txt", truncate)
    with pytest.raises(KinfolkError, match=r"003\.txt has changed since this run was begun"):
        build(loaded, tmp_path / "run", RecordingView())


def test_no_damaged_line_of_the_ledger_stops_a_build(uninterrupted: Uninterrupted, finished: Path) -> None:
    """Every line in turn; what it said is found out again, and no member changes."""
    ledger = finished / "ledger.jsonl"
    whole = ledger.read_bytes().splitlines(keepends=True)
    for number in range(len(whole)):
        lines = list(whole)
        lines[number] = flip(lines[number][:-1]) + b"\n"
        ledger.write_bytes(b"".join(lines))
        assert warned(go_on(uninterrupted, finished), f"line {number + 1} is damaged"), lines[number]


def test_a_damaged_line_of_the_metrics_is_told_and_left_out(uninterrupted: Uninterrupted, run: Path) -> None:
    metrics = run / "stages" / "large" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"loss": ', b'"loss": 1')
    metrics.write_bytes(b"".join(lines))
    assert warned(go_on(uninterrupted, run), "what stood in line 3 is lost")
    steps = [record["step"] for _, record in read_lines(metrics).records if "loss" in record]
    assert steps == [1, 2, *range(4, 12)]


def test_no_flipped_bit_of_a_line_reads_as_another_record() -> None:
    record = {"event": "x", "step": 12, "loss": 3.25, "text": "née ü", "nested": {"a": [1, None]}}
    line = line_of(record)
    assert json.loads(line) == record | {"crc32": line[-10:-2]}
    assert parse_lines(f"{line}\n\n{json.dumps(record)}\n").records == ((1, record), (3, record))
    for place in range(len(line)):
        for bit in range(7):
            harmed = line[:place] + chr(ord(line[place]) ^ 1 << bit) + line[place + 1 :]
            found = [{name: each[name] for name in record} for _, each in parse_lines(harmed).records]
            assert found in ([], [record])
    with pytest.raises(ValueError):
        line_of({"loss": float("nan")})
