"""A family whose data have versions: what is trained on what, killed anywhere, and extended by a version."""

import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from micro import CONTEXT, SEQUENCES_PER_STEP, RecordingView, family, in_child, leftovers, members_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.run import Run, open_run
from kinfolk.build.snapshot import average_stage, export_stage
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.measure import measure
from kinfolk.family.load import LoadedFamily
from kinfolk.laws.own_runs import own_rows
from kinfolk.report.page import write_report
from kinfolk.train import checkpoint, stage

TOKENS = SEQUENCES_PER_STEP * CONTEXT
NAMES = ("2026", "2027")
STEPS = {"2026": 10, "2027": 8}


def write_news(path: Path, seed: int, documents: int = 40) -> None:
    draw = random.Random(seed)
    path.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        words = [draw.choice(["comet", "harbour", "violin", "tunnel", "学校"]) for _ in range(60)]
        (path / f"{number:03}.txt").write_text(f"News {seed}-{number}: {' '.join(words)}.\n", "utf-8")


def versioned(folder: Path, *overrides: str, names: Sequence[str] = NAMES, members: int = 1) -> LoadedFamily:
    """A trunk of the micro family's first members with these versions; saved every 2 steps."""
    for seed, name in enumerate(STEPS, start=2026):
        if not (folder / name).exists():
            write_news(folder / name, seed)
    listed = [
        {"name": each.name, "shape": each.shape.model_dump(), "tokens": steps * TOKENS}
        for each, steps in zip(family(folder).family.members, (12, 20), strict=True)
        if each.shape
    ]
    versions = [{"name": name, "train": [{"path": name}], "tokens": STEPS[name] * TOKENS} for name in names]
    return family(
        folder,
        "strategy=trunk",
        "patch={size: 4, share: 0.5}",
        *overrides,
        members=listed[:members],
        data={"versions": versions},
        recipe={"schedule": {"warmup_share": 0.1, "decay_share": 0.4}, "checkpoints": {"steps": 2, "keep": 3}},
    )


Rows = dict[str, list[tuple[str, list[Any]]]]
"""By stage: for each step, the folder of the tokens that it reads, and its rows."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A build that nothing disturbed, and all that it read."""
    folder, view, rows, real = tmp_path_factory.mktemp("versions"), RecordingView(), Rows(), stage.read

    def spy(tokens: Any, *arguments: Any) -> Any:
        found = real(tokens, *arguments)
        rows.setdefault(view.started[-1][0], []).append((Path(tokens.filename).parent.name, found.tolist()))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "read", spy)
        build(versioned(folder), folder / "run", view)
    return folder, rows


@pytest.fixture
def whole(built: tuple[Path, Rows]) -> Path:
    return built[0]


def run_of(folder: Path) -> Run:
    return open_run(versioned(folder), folder / "run")


STAGES = ["small-patch", "small-undecayed", "small", "small-rest"]
STAGES += ["small-2026-undecayed", "small-2026", "small-2026-rest", "small-2027-undecayed", "small-2027"]


def test_what_is_recorded(whole: Path) -> None:
    run = run_of(whole)
    assert [each.name for each in run.plan.stages] == STAGES
    finished = {event["stage"]: event for event in run.ledger.events("stage_finished")}
    assert list(finished) == STAGES
    started = {event["stage"]: event["data"] for event in run.ledger.events("stage_started")}
    assert started["small-rest"] == ["first"] and started["small-2027"] == ["2027"]
    saved = {name: checkpoint.position_of(checkpoint.latest(run.checkpoints(name))) for name in STAGES}  # type: ignore[arg-type]
    for member in ("small", "small-2026"):  # the rest ends where the branch has ended, at another rate
        assert saved[f"{member}-rest"].sequences == saved[member].sequences > saved[f"{member}-undecayed"].sequences
    assert saved["small-2026"].sequences == STEPS["2026"] * SEQUENCES_PER_STEP
    per_epoch = (len(run.stores["2026"].train) - 4) // (4 * CONTEXT) * 4  # whole blocks
    assert finished["small-2026"]["epochs"] == pytest.approx(STEPS["2026"] * SEQUENCES_PER_STEP / per_epoch)
    prepared = {event["version"]: event for event in run.ledger.events("version_prepared")}
    assert {name: event["train_tokens"] for name, event in prepared.items()} == run.document["data"]["version_tokens"]
    assert len(run.ledger.events("data_prepared")) == 1
    assert run.document["versions"][-1]["saving"] > 0.1


def test_the_members_of_a_trunk_with_versions(whole: Path) -> None:
    run = run_of(whole)
    events = {event["member"]: event for event in run.ledger.events("member_finished")}
    assert list(events) == ["small", "small-2026", "small-2027"]
    # All are measured on one held-out part; versions also on what is held out of their newest data.
    assert len({event["held_out"]["bytes"] for event in events.values()}) == 1
    assert events["small"]["held_out_of_version"] is None
    newest = events["small-2026"]["held_out_of_version"]
    assert newest["version"] == "2026"
    assert newest["bytes"] == run.stores["2026"].held_out_documents.total_bytes
    assert newest["loss"] != events["small-2026"]["held_out"]["loss"]
    assert events["small-2027"]["kl_from_previous"]["previous"] == "small-2026"
    earlier = events["small-2027"]["kl_from_earlier"]
    assert [each["previous"] for each in earlier] == ["small", "small-2026"]
    assert earlier[1] == events["small-2027"]["kl_from_previous"] != {**earlier[0], "previous": "small-2026"}
    card = (run.member("small-2027") / "README.md").read_text()
    for words in ("Sources: corpus, 2026, 2027.", "version 2027 of the data", "small-2026-rest | continues"):
        assert words in card, words
    assert "version" not in (run.member("small") / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(run.member("small-2026"))
    first = AutoTokenizer.from_pretrained(run.member("small")).get_vocab()
    assert AutoTokenizer.from_pretrained(run.member("small-2027")).get_vocab() == first
    score = measure(str(run.member("small-2027")), text=None, run=run.folder)
    assert score.loss == pytest.approx(events["small-2027"]["held_out"]["loss"])


def test_other_commands_know_versions(whole: Path, tmp_path: Path) -> None:
    page = write_report([whole / "run"], tmp_path / "report.html").read_text()
    assert "small-2026-rest" in page and "small-2027" in page
    made = average_stage(whole / "run", "small-2026-undecayed", 3, "linear", tmp_path / "mean")
    assert len(made.steps) == 3
    assert export_stage(whole / "run", "small-rest", tmp_path / "rest", force=False).held_out["loss"] > 0


def test_what_stages_read(built: tuple[Path, Rows]) -> None:
    """The tokens of their own version, none of them twice; and the rest the very rows of the branch."""
    _, rows = built
    folders = {name: {folder for folder, _ in found} for name, found in rows.items()}
    assert folders == {name: {next((n for n in NAMES if n in name), "data")} for name in STAGES}
    for member in ("small", "small-2026"):
        assert rows[f"{member}-rest"] == rows[member]
    trained = [tuple(row) for name in ("small-2026-undecayed", "small-2026") for _, step in rows[name] for row in step]
    assert len(set(trained)) == len(trained) == STEPS["2026"] * SEQUENCES_PER_STEP


class Deadly(RecordingView):
    """Kills the process at a step of a stage, or when something is prepared."""

    def __init__(self, what: str, step: int = 0) -> None:
        super().__init__()
        self.what, self.step = what, step

    def prepared(self, what: str, done: int, total: int | None) -> None:
        if what == self.what:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepped(self, record: dict[str, Any]) -> None:
        if (self.started[-1][0], record["step"]) == (self.what, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_version_that_is_added_is_as_if_it_had_been_there(whole: Path, tmp_path: Path) -> None:
    """One by one, into a run that was finished, and killed on the way; only what is missing is trained."""
    run, log = tmp_path / "run", tmp_path / "log"
    ledger = Ledger(run / "ledger.jsonl")
    deaths = {
        (): [],
        NAMES[:1]: [Deadly("small-rest", 3), Deadly("small-2026", 3)],
        NAMES: [Deadly("tokenising 2027"), Deadly("small-2027-undecayed", 3)],
    }
    counts = [3, 6, 9]
    before: dict[str, bytes] = {}
    for (names, views), count in zip(deaths.items(), counts, strict=True):
        loaded = versioned(whole, names=names)
        for view in views:
            assert in_child(lambda v=view, f=loaded: build(f, run, v), log) == -signal.SIGKILL, log.read_text()
        build(loaded, run, RecordingView())
        assert [event["stage"] for event in ledger.events("stage_started")] == STAGES[:count]
        after = members_of(run)
        assert before.items() <= after.items()
        before = after
    resumed = [(event["stage"], event["step"]) for event in ledger.events("stage_resumed")]
    assert resumed == [("small-rest", 2), ("small-2026", 2), ("small-2027-undecayed", 2)]
    assert before == members_of(whole / "run")
    plans = [json.loads((folder / "run" / "plan.json").read_text()) for folder in (whole, tmp_path)]
    assert plans[0] == plans[1]
    assert [event["versions"] for event in ledger.events("extended")] == [["2026"], ["2027"]]
    assert leftovers(run) == []
    view = RecordingView()
    build(versioned(whole), run, view)
    assert "nothing to do" in view.said[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": NAMES[:1]}, "data.versions"),
        ({"names": NAMES[::-1]}, "data.versions"),
        ({"overrides": ["data.versions.0.tokens=5000"]}, "data.versions[0].tokens was 1280.0 and is now 5000.0"),
        ({"members": 2}, "large cannot be added: versions of the data continue the largest member"),
    ],
)
def test_other_changes_are_refused(whole: Path, changes: dict[str, Any], words: str) -> None:
    files = [whole / "run" / name for name in ("ledger.jsonl", "plan.json", "family.yaml")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(KinfolkError) as caught:
        build(versioned(whole, *changes.pop("overrides", []), **changes), whole / "run", RecordingView())
    assert words in str(caught.value)
    assert [file.read_bytes() for file in files] == before


def test_a_version_with_a_fault_leaves_a_finished_run_as_it_was(whole: Path, tmp_path: Path) -> None:
    """A text that is held out of the first data, and a source that is not there."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "k.txt").write_text("Kept away from every version. " * 30)
    held_out = 'data.held_out={sources: [{path: "kept"}]}'
    build(versioned(tmp_path, held_out, names=()), tmp_path / "run", RecordingView())
    (tmp_path / "2026" / "copy.txt").write_text("Kept away from every version. " * 30)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "lock"}
    for override, words in (("recipe.seed=0", "is also held out"), ("data.versions.0.train.0.path=nowhere", "nowhere")):
        with pytest.raises(KinfolkError, match=words):
            build(versioned(tmp_path, held_out, override, names=NAMES[:1]), tmp_path / "run", RecordingView())
        left = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert {path: time for path, time in kept.items() if path.is_file()}.items() <= left.items() | set()
        assert not (tmp_path / "run" / "data" / "versions" / "2026").exists()


@pytest.mark.parametrize("strategy", ["independent", "progressive"])
def test_other_strategies(whole: Path, tmp_path: Path, strategy: str) -> None:
    """From scratch on all data so far, and continued from the finished one."""
    build(versioned(whole, f"strategy={strategy}", "patch=null", names=NAMES[:1]), tmp_path / "run", RecordingView())
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    data = {event["stage"]: event["data"] for event in ledger.events("stage_started")}
    kinds = [event["source"]["kind"] for event in ledger.events("stage_started")]
    if strategy == "independent":
        assert data == {"small": ["first"], "small-2026": ["first", "2026"]}
        assert kinds == ["scratch", "scratch"]
    else:
        assert data == {"small": ["first"], "small-2026": ["2026"]}
        assert kinds == ["scratch", "continue"]
    assert [event["member"] for event in ledger.events("member_finished")] == ["small", "small-2026"]
    rows, findings = own_rows(tmp_path / "run")  # a law is fitted to those that have read the same data
    assert [row.name for row in rows] == ["run/small"]
    assert any("small-2026 is left out" in finding for finding in findings)
