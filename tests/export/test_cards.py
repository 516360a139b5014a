"""Model cards: valid for the hub, and with the very figures of the ledger."""

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_stub import TOKEN, metadata_faults, running_hub
from huggingface_hub import EvalResult, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from micro import RecordingView, family
from typer.testing import CliRunner

from kinfolk.build.build import build
from kinfolk.build.ledger import Ledger
from kinfolk.build.material import digest_of
from kinfolk.build.renew import renewed_card, write_renewed
from kinfolk.build.snapshot import export_stage
from kinfolk.card.card import Card, Facts, Part, Result, Table, render
from kinfolk.card.marker import is_unedited
from kinfolk.card.metadata import facts_of
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.files import sha256


def figures(text: str) -> dict[tuple[str, str], EvalResult]:
    """The results in a card's metadata, by data set and metric."""
    return {(each.dataset_type, each.metric_type): each for each in ModelCard(text).data.eval_results}


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the table whose first heading this is."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([each.strip() for each in line.strip("|").split("|")])
    return found


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("member", ["small", "large"])
def test_a_card_says_what_the_ledger_says(finished: Path, member: str, renewed: bool) -> None:
    folder = finished / "members" / member
    text = renewed_card(folder) if renewed else (folder / "README.md").read_text()
    assert metadata_faults(text) == [] and is_unedited(text)
    data = ModelCard(text).data
    assert (data.license, data.language, data.library_name) == ("cc-by-4.0", ["en", "zh"], "transformers")
    assert data.tags == ["kinfolk", "llama"] and data.pipeline_tag == "text-generation" and data.base_model is None
    ledger = Ledger(finished / "ledger.jsonl")
    (event,) = [event for event in ledger.events("member_finished") if event["member"] == member]
    measured = figures(text)
    for metric in ("loss", "perplexity", "bits_per_byte"):
        result = measured["micro", metric]
        assert result.metric_value == event["held_out"][metric]  # to the last bit
        assert result.metric_args["stride"] == event["held_out"]["stride"]
    interval = measured["micro", "bits_per_byte"].metric_args["interval"]
    assert interval == [event["held_out"]["bits_per_byte_low"], event["held_out"]["bits_per_byte_high"]]
    plan = json.loads((finished / "plan.json").read_text())
    names = ["small", "large"][: 1 + (member == "large")]
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert [row[0] for row in rows(text, "stage")] == names
    total = sum(stages[name]["flops"]["six_nd"] for name in names)
    assert f"| all stages of this lineage | {total:.4g} |" in text
    if member == "large":
        (grown,) = ledger.events("grown")
        assert f"{grown['verification']['float64']['max_abs_logit_difference']:.2e}" in text
        assert "yes, verified" in text
    files = sorted((finished.parent / "corpus").iterdir())
    listed = "".join(f"{sha256(path)}\n" for path in files)
    assert f"`{hashlib.sha256(listed.encode()).hexdigest()}`" in text
    assert f"`{sha256(finished / 'data' / 'train.bin')}`" in text


def test_time_hardware_commands_and_savings_come_with_renewal(finished: Path) -> None:
    folder = finished / "members" / "large"
    built, renewed = (folder / "README.md").read_text(), renewed_card(folder)
    ledger = Ledger(finished / "ledger.jsonl")
    seconds = sum(event["seconds"] for event in ledger.events("stage_finished"))
    (started,) = ledger.events("build_started")
    plan = json.loads((finished / "plan.json").read_text())
    for words in (
        f"{seconds:,.1f} s",
        started["machine"]["name"],
        f"torch {started['versions']['torch']}",
        f"costs {plan['saving']:.1%} less than",
    ):
        assert words in renewed and words not in built, words
    assert str(finished.parent) not in renewed


def test_results_of_tasks_are_taken_in(run: Path) -> None:
    folder = run / "members" / "small"
    result = {
        "member": "small", "checkpoint": None, "task": "piqa", "metric": "acc", "value": 0.1 + 0.2, "stderr": 0.01,
        "interval": [0.28, 0.32], "examples": 1838, "version": 1.0, "limit": None,
    }  # fmt: skip
    other = result | {"member": "large", "value": 0.9}
    stale = result | {"task": "copa", "checkpoint": "0" * 64}
    empty = result | {"task": "gsm8k", "metric": "exact_match", "value": None, "interval": None}
    filtered = result | {"task": "gsm8k", "metric": "exact_match", "filter": "strict-match", "shots": 5, "value": 0.5}
    tasks = run / "evaluation" / "tasks.json"
    tasks.parent.mkdir()
    tasks.write_text(json.dumps({"format": 1, "results": [result, other, stale, empty, filtered]}))
    text = renewed_card(folder)
    assert figures(text)["piqa", "acc"].metric_value == 0.1 + 0.2
    assert rows(text, "task") == [
        ["piqa (version 1.0)", "acc", "0.3000", "0.2800 to 0.3200", "-", "1,838"],
        ["gsm8k (version 1.0)", "exact_match,strict-match", "0.5000", "0.2800 to 0.3200", "5", "1,838"],
    ]
    assert figures(text)["gsm8k", "exact_match,strict-match"].metric_args["shots"] == 5
    assert "copa" not in text and metadata_faults(text) == []
    answer = CliRunner().invoke(app, ["card", str(run), "--json"])
    assert [each["written"] for each in json.loads(answer.stdout)] == [True, True]
    assert "piqa" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("# Mine\n")
    assert not write_renewed(folder, text) and (folder / "README.md").read_text() == "# Mine\n"
    for broken in ("{", '{"format": 2, "results": []}', '{"format": 1, "results": [{"member": "small"}]}'):
        tasks.write_text(broken)
        with pytest.raises(KinfolkError, match=r"tasks.json"):
            renewed_card(folder)


def test_what_the_card_states_can_be_changed_later(tmp_path: Path) -> None:
    members = [{"name": "only", "shape": family(tmp_path).family.members[0].shape.model_dump(), "tokens": 512}]
    build(family(tmp_path, members=members), tmp_path / "run", RecordingView())
    folder = tmp_path / "run" / "members" / "only"
    assert facts_of(folder) == Facts() and "states no licence" in (folder / "README.md").read_text()
    build(family(tmp_path, members=members, card={"license": "mit"}), tmp_path / "run", RecordingView())
    assert ModelCard(renewed_card(folder)).data.license == "mit"


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({"license": "Apache-2.0"}, "did you mean apache-2.0"),
        ({"license": "other"}, "licence other has a name"),
        ({"license": "mit", "license_name": "mine"}, "licence other has a name"),
        ({"languages": ["English"]}, "no ISO 639 code"),
    ],
)
def test_statements_that_the_hub_would_refuse(tmp_path: Path, stated: dict[str, Any], problem: str) -> None:
    with pytest.raises(KinfolkError, match=problem):
        family(tmp_path, card=stated)


def test_an_export_of_a_stage_carries_a_card(finished: Path, tmp_path: Path) -> None:
    made = export_stage(finished, "large", tmp_path / "export", False)
    text = (made.folder / "README.md").read_text()
    assert metadata_faults(text) == [] and ModelCard(text).data.license == "cc-by-4.0" and is_unedited(text)
    assert figures(text)["micro", "loss"].metric_value == made.held_out["loss"]
    assert "unfinished" in text and "better" in text
    assert json.loads((made.folder / "snapshot.json").read_text())["held_out"] == made.held_out


def test_the_hubs_own_validation(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelCard.validate asks the hub, which here is the stub."""
    import huggingface_hub.repocard

    if "https://huggingface.co/api" in inspect.getsource(ModelCard.validate):
        pytest.skip("this huggingface_hub asks huggingface.co, whatever the endpoint")
    text = (finished / "members" / "small" / "README.md").read_text()
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        session = huggingface_hub.repocard.get_session()
        monkeypatch.setitem(session.headers, "Authorization", f"Bearer {TOKEN}")
        ModelCard(text).validate()
        with pytest.raises(ValueError, match="license"):
            ModelCard(text.replace("license: cc-by-4.0", "license: mine")).validate()
        assert [path for _, path in hub.requests] == ["/api/validate-yaml"] * 2


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(texts.filter(str.strip), texts, st.lists(st.tuples(texts, texts), max_size=3), numbers)
def test_whatever_a_card_holds_its_metadata_and_tables_stay_whole(
    name: str, cell: str, cells: list[tuple[str, str]], value: float
) -> None:
    card = Card(
        title="T",
        summary="S",
        tags=("kinfolk",),
        measured=(Result(name, name, "loss", name, value),),
        results=Part("", (Table(("name", "value"), ((name, cell), *cells)),)),
    )
    text = render(card)
    assert is_unedited(text)
    block = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    (result,) = block["model-index"][0]["results"]
    assert result["dataset"]["type"] == name and result["metrics"][0]["value"] == value
    body = text.split("## Results")[1].split("\nMade with")[0].strip().split("\n")
    assert len(body) == 3 + len(cells)


def test_one_hash_for_several_files() -> None:
    one, two = "a" * 64, "b" * 64
    assert digest_of([one]) == one
    assert digest_of([one, two]) == hashlib.sha256(f"{one}\n{two}\n".encode()).hexdigest()
