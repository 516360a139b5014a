import json
from pathlib import Path

import numpy as np
import pytest
from tiny_corpora import story, write_json_lines

from kinfolk.data.corpus import held_out_fraction
from kinfolk.data.joined import JoinedTokens
from kinfolk.data.loader import Reading, read
from kinfolk.data.tokenizer import document_encoder, load_tokenizer
from kinfolk.data.tokens import prepare
from kinfolk.data.versions import joined, open_versions, prepare_versions
from kinfolk.errors import KinfolkError

TEXTS = {"2026": [story(n) for n in range(100, 130)], "2027": [story(n) for n in range(200, 260)]}


@pytest.fixture
def versioned(family, tmp_path):
    """Builds the family with versions of the data; keywords change its `data`."""
    for name, texts in TEXTS.items():
        write_json_lines(tmp_path / f"{name}.jsonl", texts)

    def build(*names, **changes):
        versions = [{"name": name, "train": [{"path": f"{name}.jsonl"}]} for name in names]
        data = {"train": [{"path": "corpus.jsonl"}], "held_out": {"share": 0.2}, "versions": versions}
        return family(data={**data, **changes})

    return build


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_of(store, tokens, documents):
    encoder = document_encoder(load_tokenizer("tokenizer", store.folder, "test"))
    ends = [*documents.starts[1:], len(tokens)]
    pieces = [tokens[np.arange(a + 1, b)].tolist() for a, b in zip(documents.starts, ends, strict=True)]
    return [encoder.decode(ids, skip_special_tokens=False) for ids in pieces]


def test_a_version_is_tokenised_as_the_first_was(versioned, tmp_path):
    """One tokenizer, trained on the first version alone; the hash of a text says in every version if it is held out."""
    stores = prepare_versions(versioned("2026", "2027"), tmp_path, tmp_path / "data")
    alone = prepare(versioned(), tmp_path, tmp_path / "alone")
    assert files_of(alone.folder).items() <= files_of(tmp_path / "data").items()
    assert not list((tmp_path / "data" / "versions").rglob("tokenizer*"))
    for name, texts in TEXTS.items():
        store = stores[name]
        sides = [[text for text in texts if (held_out_fraction(text) < 0.2) is side] for side in (False, True)]
        assert texts_of(store, store.train, store.train_documents) == sides[0]
        assert texts_of(store, store.held_out, store.held_out_documents) == sides[1]
        assert sides[0] and sides[1] and store.vocab_size == 300


def test_a_version_can_be_added_and_changes_nothing(versioned, tmp_path):
    prepare_versions(versioned("2026", "2027"), tmp_path, tmp_path / "whole")
    prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    before = files_of(tmp_path / "data")
    for name in ("2027", "gone"):  # of a build that was killed, and of a version that has left the file again
        leftover = tmp_path / "data" / "versions" / f"{name}.unfinished"
        leftover.mkdir()
        (leftover / "train.bin").write_bytes(b"half")
    said = []
    prepare_versions(versioned("2026", "2027"), tmp_path, tmp_path / "data", lambda what, *_: said.append(what))
    assert set(said) == {"tokenising 2027"}
    after = files_of(tmp_path / "data")
    assert before.items() < after.items() and after == files_of(tmp_path / "whole")


def test_changed_data_of_a_version_are_refused(versioned, tmp_path):
    prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    write_json_lines(tmp_path / "2026.jsonl", TEXTS["2026"][:-1])
    with pytest.raises(KinfolkError, match=r"data\.versions\[0\]\.train\[0\]: 2026\.jsonl has changed since"):
        prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    other = [{"name": "2026", "train": [{"path": "2027.jsonl"}]}]
    with pytest.raises(KinfolkError, match="version 2026 in the family file has changed"):
        prepare_versions(versioned(versions=other), tmp_path, tmp_path / "data")


def test_a_damaged_version_is_noticed(versioned, tmp_path):
    prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    path = tmp_path / "data" / "versions" / "2026" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(KinfolkError, match=r"train\.bin has"):
        open_versions(versioned("2026").data, tmp_path / "data")


def test_a_missing_source_is_told_before_anything_is_tokenised(versioned, tmp_path):
    with pytest.raises(KinfolkError, match="lost") as caught:
        prepare_versions(versioned("2026", "lost"), tmp_path, tmp_path / "data", where="mine.yaml")
    assert caught.value.where == "mine.yaml: data.versions[1].train[0]"
    assert not (tmp_path / "data").exists()


def test_held_out_sources_are_compared_with_every_version(versioned, tmp_path):
    kept = [story(n) for n in range(300, 310)]
    write_json_lines(tmp_path / "kept.jsonl", kept)
    held_out = {"sources": [{"path": "kept.jsonl"}]}
    stores = prepare_versions(versioned("2026", held_out=held_out), tmp_path, tmp_path / "data")
    assert len(stores["2026"].train_documents) == 30 and len(stores["2026"].held_out_documents) == 0
    assert len(stores["2026"].held_out) == 0 and len(stores["first"].held_out_documents) == 10
    write_json_lines(tmp_path / "2027.jsonl", [*TEXTS["2027"], kept[3]])
    with pytest.raises(KinfolkError, match=r"2027\.jsonl:61 is also held out, as kept\.jsonl:4") as caught:
        prepare_versions(versioned("2026", "2027", held_out=held_out), tmp_path, tmp_path / "data")
    assert caught.value.where == "family.yaml: data.versions[1].train[0]"
    assert not (tmp_path / "data" / "versions" / "2027").exists()


def test_a_text_that_was_held_out_of_the_first_is_never_trained_on_later(versioned, family, tmp_path):
    """A version may repeat documents: they fall on the side on which they were."""
    first = [story(n) for n in range(60)]
    write_json_lines(tmp_path / "2026.jsonl", [*first, *TEXTS["2026"]])
    stores = prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    held_out = set(texts_of(stores["first"], stores["first"].held_out, stores["first"].held_out_documents))
    trained = set(texts_of(stores["2026"], stores["2026"].train, stores["2026"].train_documents))
    assert held_out and not held_out & trained and trained & set(first)


def test_a_version_need_not_have_documents_to_hold_out(versioned, tmp_path):
    kept = [text for text in TEXTS["2026"] if held_out_fraction(text) >= 0.2]
    write_json_lines(tmp_path / "2026.jsonl", kept)
    store = prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")["2026"]
    assert len(store.train_documents) == len(kept) and len(store.held_out_documents) == 0
    write_json_lines(tmp_path / "2027.jsonl", [text for text in TEXTS["2027"] if held_out_fraction(text) < 0.2])
    with pytest.raises(KinfolkError, match=r"of version 2027 .* leaves none left to train on"):
        prepare_versions(versioned("2026", "2027"), tmp_path, tmp_path / "data")


def test_a_version_too_small_for_a_sequence_is_refused(versioned, tmp_path):
    assert held_out_fraction("z") > 0.2
    write_json_lines(tmp_path / "2026.jsonl", ["z"])
    with pytest.raises(KinfolkError, match="fewer than the 17") as caught:
        prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    assert caught.value.where == "family.yaml: data.versions[0].train"
    assert not (tmp_path / "data" / "versions" / "2026").exists()


@pytest.mark.parametrize("patch_size", [1, 4])
def test_joined_versions_are_read_as_one(versioned, tmp_path, patch_size):
    stores = prepare_versions(versioned("2026", "2027"), tmp_path, tmp_path / "data")
    names = ("first", "2026", "2027")
    store = joined(stores, names)
    assert isinstance(store.train, JoinedTokens)
    whole = np.concatenate([np.asarray(stores[name].train) for name in names])
    assert len(store.train) == len(whole)
    reading = Reading(16, patch_size, patch_size, first=0, sequences=400)
    assert np.array_equal(read(store.train, reading, 0, 100, seed=3), read(whole, reading, 0, 100, seed=3))
    texts = [texts_of(stores[n], stores[n].train, stores[n].train_documents) for n in names]
    assert texts_of(store, store.train, store.train_documents) == [text for each in texts for text in each]
    assert np.array_equal(store.held_out, stores["first"].held_out)
    for places in (np.array([len(whole)]), np.array([-1])):
        with pytest.raises(IndexError):
            store.train[places]
    one = joined(stores, ["2026"])
    assert np.array_equal(one.train, stores["2026"].train) and np.array_equal(one.held_out, store.held_out)


def test_what_data_json_says_of_a_version(versioned, tmp_path):
    prepare_versions(versioned("2026"), tmp_path, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "versions" / "2026" / "data.json").read_text())
    assert manifest["parts"]["train"]["documents"] + manifest["parts"]["held_out"]["documents"] == 30
    assert list(manifest["made_from"]["fingerprints"]) == ["data.versions[0].train[0]"]
