"""Publishing to a hub on loopback, by huggingface_hub's own client."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_stub import TOKEN, Hub, Repository, metadata_faults, running_hub
from typer.testing import CliRunner

from kinfolk.build.snapshot import export_stage
from kinfolk.card.marker import is_unedited
from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.publish.contents import contents_of
from kinfolk.publish.publish import Published, plan_publications, publish

PATTERN = "me/{family}-{member}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the stub speaks LFS
    huggingface_hub.utils.disable_progress_bars()
    with running_hub() as running:
        yield running


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def send(hub: Hub, source: Path, to: str = PATTERN, private: bool = True, **options: Any) -> list[Published]:
    plan = plan_publications(source, to, options.pop("bases", ()), options.pop("force", False))
    return publish(plan, private, lambda _: True, hub.endpoint)


def test_every_byte_arrives_and_nothing_else(hub: Hub, run: Path) -> None:
    member = run / "members" / "large"
    for name in ("optimizer.safetensors", "train.bin", "token", "metrics.jsonl", "pytorch_model.bin", ".env"):
        (member / name).write_bytes(b"private")
    (member / "checkpoints").mkdir()
    made = send(hub, run)
    assert [each.status for each in made] == ["published", "published"]
    assert set(hub.repositories) == {"me/micro-small", "me/micro-large"}
    for member in ("small", "large"):
        repository = hub.repositories[f"me/micro-{member}"]
        folder = run / "members" / member
        assert repository.private and len(repository.commits) == 1
        assert repository.large == {"model.safetensors"}
        wanted = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
        assert set(repository.files) == wanted | {"tokenizer_config.json"}
        for name, content in repository.files.items():
            assert content == (folder / name).read_bytes(), name
    assert made[1].publication.left_out[:2] == (".env", "checkpoints")
    card = hub.repositories["me/micro-large"].files["README.md"].decode()
    assert 'from_pretrained("me/micro-large")' in card and is_unedited(card) and not metadata_faults(card)
    data = huggingface_hub.ModelCard(card).data
    assert data.base_model == ["me/micro-small"] and data["base_model_relation"] == "finetune"
    assert huggingface_hub.ModelCard((run / "members/small/README.md").read_text()).data.base_model is None


def test_a_second_time_sends_nothing_and_a_change_only_itself(hub: Hub, run: Path) -> None:
    send(hub, run)
    before = len(hub.sent), len(hub.writes)
    asked: list[object] = []
    plan = plan_publications(run, PATTERN, (), False)
    again = publish(plan, True, lambda lacking: asked.append(lacking) or True, hub.endpoint)
    assert [each.status for each in again] == ["unchanged", "unchanged"] and not asked
    assert (len(hub.sent), len(hub.writes)) == before
    config = run / "members" / "small" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    changed = send(hub, run)
    assert [each.uploaded for each in changed] == [("generation_config.json",), ()]
    assert len(hub.sent) == before[0] and len(hub.repositories["me/micro-small"].commits) == 2


def test_an_upload_that_failed_goes_on(hub: Hub, run: Path) -> None:
    hub.fail_commits = 1
    with pytest.raises(KinfolkError, match=r"upload to me/micro-small failed.*goes on"):
        send(hub, run)
    assert len(hub.sent) == 1 and not hub.repositories["me/micro-small"].files
    send(hub, run)
    assert len(hub.sent) == 2  # that of the other member: what had arrived was not sent again


def test_a_hub_that_holds_other_bytes_is_found_out(hub: Hub, run: Path) -> None:
    hub.corrupt = True
    with pytest.raises(KinfolkError, match="does not hold what was sent"):
        send(hub, run / "members" / "small", "me/x")


def test_nothing_is_sent_where_nobody_agrees(hub: Hub, run: Path) -> None:
    before = (run / "members/small/README.md").read_bytes()
    plan = plan_publications(run, PATTERN, (), False)
    assert publish(plan, True, lambda _: False, hub.endpoint) == []
    assert not hub.writes and (run / "members/small/README.md").read_bytes() == before


def test_a_card_that_was_edited_goes_up_as_it_is(hub: Hub, run: Path) -> None:
    path = run / "members/small/README.md"
    path.write_text(path.read_text().replace("A member of", "My very own member of"))
    edited = path.read_bytes()
    with pytest.raises(KinfolkError, match="card is not as kinfolk wrote it"):
        send(hub, run / "members/small", "me/x", bases=["me/y"])
    send(hub, run / "members/small", "me/x")
    assert hub.repositories["me/x"].files["README.md"] == edited == path.read_bytes()


def test_base_models_are_put_into_the_card(hub: Hub, run: Path, finished: Path) -> None:
    folder = export_stage(run, "small", None, False).folder
    send(hub, folder, "org/x", force=True, bases=["org/base"])
    card = hub.repositories["org/x"].files["README.md"].decode()
    assert huggingface_hub.ModelCard(card).data.base_model == ["org/base"] and is_unedited(card)
    assert 'from_pretrained("org/x")' in card


@pytest.mark.parametrize(
    ("to", "problem"),
    [
        ("name", "does not say whose"),
        ("me/a--b", "no name of a repository"),
        ("me/a/b", "no name of a repository"),
        ("me/" + "a" * 97, "no name of a repository"),
        ("me/{size}", "stands for nothing"),
        ("me/{", "no pattern"),
        ("you/x", "who has no part in you"),
    ],
)
def test_names_are_refused_before_any_upload(hub: Hub, run: Path, to: str, problem: str) -> None:
    with pytest.raises(KinfolkError, match=problem):
        send(hub, run / "members" / "small", to)
    assert not hub.writes


def test_several_members_need_a_pattern(hub: Hub, run: Path) -> None:
    with pytest.raises(KinfolkError, match="2 members and one name"):
        send(hub, run, "me/x")


def test_rights_are_looked_at_first(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = run / "members" / "small"
    hub.role = "read"
    with pytest.raises(KinfolkError, match="may only read"):
        send(hub, member, "me/x")
    hub.role = "write"
    hub.repositories["me/x"] = Repository(private=False)
    with pytest.raises(KinfolkError, match="the repository is public already"):
        send(hub, member, "me/x")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(KinfolkError, match="does not accept the token") as refused:
        send(hub, member, "me/y")
    assert "hf_x" not in str(refused.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(KinfolkError, match="no access token"):
        send(hub, member, "me/y")
    assert not hub.writes


def test_no_network(hub: Hub, run: Path) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    with pytest.raises(KinfolkError, match="cannot be reached"):
        send(hub, run / "members" / "small", "me/x")


def test_what_is_not_finished_is_refused(hub: Hub, run: Path) -> None:
    snapshot = export_stage(run, "small", None, False).folder
    with pytest.raises(KinfolkError, match="training that was not over"):
        plan_publications(snapshot, "me/x", (), False)
    member = run / "members" / "small"
    config = json.loads((member / "config.json").read_text())
    (member / "config.json").write_text(json.dumps(config | {"token_ready": False}))
    with pytest.raises(KinfolkError, match="trained on patches last"):
        contents_of(member, False)
    assert contents_of(member, True).names
    shutil.rmtree(member)
    with pytest.raises(KinfolkError, match="1 of 2 members are not finished: small"):
        plan_publications(run, PATTERN, (), False)
    assert len(plan_publications(run, PATTERN, (), True)) == 1
    with pytest.raises(KinfolkError, match="no such folder"):
        plan_publications(member, "me/x", (), False)


def test_tokens_and_other_weights_are_refused(run: Path) -> None:
    member = run / "members" / "small"
    card = (member / "README.md").read_text()
    (member / "README.md").write_text(card + TOKEN)
    with pytest.raises(KinfolkError, match=r"README.md holds what looks like an access token"):
        plan_publications(member, "me/x", (), False)
    (member / "README.md").write_text(card)
    weights = member / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(KinfolkError, match="not those that the build wrote"):
        plan_publications(member, "me/x", (), False)


def test_the_command(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    line = ["publish", str(run), "--to", PATTERN]
    runner = CliRunner()
    asked = runner.invoke(app, line)
    assert isinstance(asked.exception, KinfolkError) and "--yes" in str(asked.exception) and not hub.requests
    looked = runner.invoke(app, [*line, "--dry-run", "--json"])
    assert [each["status"] for each in json.loads(looked.stdout)] == ["dry run", "dry run"] and not hub.requests
    table = runner.invoke(app, [*line, "--dry-run"]).stdout
    assert "model.safetensors" in table and "private" in table and not hub.requests
    sent = runner.invoke(app, [*line, "--yes", "--json"])
    answer = json.loads(sent.stdout)
    assert [each["status"] for each in answer] == ["published", "published"]
    for each in answer:
        assert {file["name"]: file["bytes"] for file in each["files"]} == {
            name: len(content) for name, content in hub.repositories[each["repository"]].files.items()
        }
    assert TOKEN not in sent.output
    again = runner.invoke(app, [*line, "--yes"])
    assert "me/micro-small: unchanged" in again.stdout
