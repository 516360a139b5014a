import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from micro import CONTEXT, family, in_child
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from kinfolk import files
from kinfolk.build.ledger import Ledger
from kinfolk.build.members import export_member
from kinfolk.build.origin import load_stage_model
from kinfolk.build.run import Run, open_run
from kinfolk.cli.app import app
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.evaluate.loss import held_out_documents, score
from kinfolk.evaluate.samples import TEMPERATURE, TOP_P, sample_text
from kinfolk.train.stage import held_out_sample


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return open_run(family(finished.parent), finished)


@pytest.mark.parametrize("member", ["small", "large"])
def test_a_member_is_the_trained_model_and_loads_with_plain_transformers(run: Run, member: str) -> None:
    stage = next(stage for stage in run.plan.stages if stage.member == member)
    trained = load_stage_model(stage, run.family, run.store, run.stages).eval()
    loaded = AutoModelForCausalLM.from_pretrained(run.member(member)).eval()
    sequences = held_out_sample(run.store, CONTEXT)
    with torch.no_grad():
        assert torch.equal(loaded(sequences).logits, trained(sequences).logits)
    assert loaded.config.vocab_size == 300 and loaded.config.max_position_embeddings == CONTEXT
    assert loaded.config.eos_token_id == run.store.separator_id
    assert next(loaded.parameters()).dtype == torch.float32
    assert loaded.config.tie_word_embeddings and loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("member", ["small", "large"])
def test_the_tokenizer_round_trips(run: Run, member: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.member(member))
    text = "The raven mends the façade. 学校 \n\t 🦜 <b>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    ids, size = next(held_out_documents(run.store))
    document = tokenizer.decode(ids.tolist())
    assert len(document.encode()) == size
    assert tokenizer(document, add_special_tokens=False)["input_ids"] == ids.tolist()


@pytest.mark.parametrize("member", ["small", "large"])
def test_the_folder_holds_weights_tokenizer_and_card_and_no_trace_of_the_machine(run: Run, member: str) -> None:
    folder = run.member(member)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    for path in folder.iterdir():
        content = path.read_bytes()
        for trace in (str(run.folder), str(Path.home()), "/tmp", os.uname().nodename + "/"):
            assert trace.encode() not in content, (path.name, trace)
    card = (folder / "README.md").read_text()
    assert not re.search(r"\d\d:\d\d|20[0-9]{2}-[01]\d", card)
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Sources: corpus." in card and f"# {member}\n" in card


def test_the_ledger_says_what_was_measured(run: Run) -> None:
    events = run.ledger.events("member_finished")
    assert [event["member"] for event in events] == ["small", "large"]
    small, large = (AutoModelForCausalLM.from_pretrained(run.folder / event["path"]) for event in events)
    for event, model in zip(events, (small, large), strict=True):
        assert event["sha256"] == files.sha256(run.folder / event["path"] / "model.safetensors")
        again = score(model, held_out_documents(run.store), run.store.separator_id, CONTEXT, "cpu")
        assert event["held_out"] == json.loads(json.dumps(again.to_dict()))
        assert len(event["samples"]) == 2 and all(sample["prompt"] for sample in event["samples"])
    assert events[0]["kl_from_previous"] is None
    kl = adjacent_kl(small, large, held_out_sample(run.store, CONTEXT), "cpu").to_dict()
    assert events[1]["kl_from_previous"] == {"previous": "small", **json.loads(json.dumps(kl))}
    assert events[1]["kl_from_earlier"] == [events[1]["kl_from_previous"]] and events[0]["kl_from_earlier"] == []


def test_a_sample_can_be_written_again_from_its_record(run: Run) -> None:
    event = run.ledger.events("member_finished")[1]
    model = AutoModelForCausalLM.from_pretrained(run.member("large"))
    prompts, sampling = [sample["prompt"] for sample in event["samples"]], event["sampling"]
    assert (sampling["temperature"], sampling["top_p"]) == (TEMPERATURE, TOP_P)
    again = sample_text(model, run.tokenizer, prompts, sampling["max_new_tokens"], sampling["seed"], "cpu")
    assert again == event["samples"]


def test_exporting_is_silent_repeatable_and_atomic(run: Run, tmp_path: Path) -> None:
    stage = run.plan.stages[-1]
    model = load_stage_model(stage, run.family, run.store, run.stages)

    def export() -> None:
        for name in ("one", "two", "two"):
            export_member(tmp_path / name, model, run.tokenizer, "card")

    assert in_child(export, tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == ""
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and one["README.md"] == b"card"
    assert one["model.safetensors"] == (run.member("large") / "model.safetensors").read_bytes()
    with pytest.raises(TypeError):
        export_member(tmp_path / "one", model, run.tokenizer, None)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "one", "two"]


def test_a_family_whose_larger_member_is_untied(tmp_path: Path) -> None:
    from micro import LARGE, SMALL, RecordingView

    from kinfolk.build.build import build

    members = [
        {"name": "small", "shape": SMALL, "tokens": 512},
        {"name": "large", "shape": LARGE | {"tie_word_embeddings": False}, "tokens": 1024},
    ]
    build(family(tmp_path, members=members), tmp_path / "run", RecordingView())
    (grown,) = Ledger(tmp_path / "run" / "ledger.jsonl").events("grown")
    assert grown["verification"]["passed"] is True and "embeddings untied" in grown["description"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "members" / "large")
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_family_of_qwen3_with_untied_heads(tmp_path: Path) -> None:
    from micro import SMALL, RecordingView

    from kinfolk.build.build import build

    shape = SMALL | {"tie_word_embeddings": False}
    members = [{"name": "only", "shape": shape, "tokens": 128}]
    build(family(tmp_path, model={"architecture": "qwen3"}, members=members), tmp_path / "run", RecordingView())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "members" / "only")
    assert model.config.model_type == "qwen3"
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert len(Ledger(tmp_path / "run" / "ledger.jsonl").events("member_finished")) == 1


def test_consistency_of_a_run_is_kept_in_it_under_the_ledgers_hashes(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    command = ["consistency", str(folder), "--json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    kept = json.loads((folder / "evaluation" / "consistency.json").read_text())
    assert kept["matrices"] == json.loads(result.stdout)["matrices"]
    hashes = {event["member"]: event["sha256"] for event in run.ledger.events("member_finished")}
    assert {each["member"]: each["sha256"] for each in kept["members"]} == hashes
    assert [(pair["first"], pair["second"]) for pair in kept["pairs"]] == [("small", "large")]
    # Another text is none of the run's results.
    (folder / "evaluation" / "consistency.json").unlink()
    (tmp_path / "text.txt").write_text("A raven mends a wheel. " * 20)
    CliRunner().invoke(app, [*command, "--text", str(tmp_path / "text.txt")], catch_exceptions=False)
    assert not (folder / "evaluation" / "consistency.json").exists()
