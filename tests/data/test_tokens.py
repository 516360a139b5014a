import json
import shutil

import numpy as np
import pytest
from tiny_corpora import story, write_json_lines

from kinfolk.data import encoding
from kinfolk.data.corpus import split
from kinfolk.data.tokenizer import document_encoder, load_tokenizer
from kinfolk.data.tokens import open_store, prepare
from kinfolk.errors import KinfolkError


def texts_of(store, tokens, documents):
    """The texts that a part of a store holds, decoded document by document."""
    encoder = document_encoder(load_tokenizer("tokenizer", store.folder, "test"))
    ends = [*documents.starts[1:], len(tokens)]
    assert all(tokens[start] == store.separator_id for start in documents.starts)
    pieces = [tokens[a + 1 : b].tolist() for a, b in zip(documents.starts, ends, strict=True)]
    return [encoder.decode(ids, skip_special_tokens=False) for ids in pieces]


def expected(family, folder):
    both = list(split(family.data, folder, "family.yaml"))
    return [[d.text for d, held_out in both if held_out is side] for side in (False, True)]


def save_tokenizer(folder, vocabulary, **special):
    """A word-level tokenizer: as lossy as they come."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def test_a_store_holds_every_document_and_its_bytes(family, tmp_path):
    store = prepare(family(), tmp_path, tmp_path / "data")
    train, held_out = expected(family(), tmp_path)
    assert texts_of(store, store.train, store.train_documents) == train
    assert texts_of(store, store.held_out, store.held_out_documents) == held_out
    assert store.train_documents.bytes.tolist() == [len(text.encode()) for text in train]
    assert store.held_out_documents.total_bytes == sum(len(text.encode()) for text in held_out)
    assert len(store.train_documents) + len(store.held_out_documents) == 60
    assert store.train.dtype == np.uint16 and store.vocab_size == 300
    assert not store.train.flags.writeable
    parts = json.loads((store.folder / "data.json").read_text())["parts"]
    assert parts["train"]["tokens"] == len(store.train) and parts["held_out"]["documents"] == len(held_out)


def test_a_large_vocabulary_takes_four_bytes(family, tmp_path):
    vocabulary = ["?", "<s>", *(f"w{n}" for n in range(70_000))]
    save_tokenizer(tmp_path / "words", vocabulary, eos_token="<s>")
    write_json_lines(tmp_path / "a.jsonl", ["w69999 w5 " * 10])
    write_json_lines(tmp_path / "b.jsonl", ["w7"])
    data = {"train": [{"path": "a.jsonl"}], "held_out": {"sources": [{"path": "b.jsonl"}]}}
    store = prepare(family(data=data, tokenizer={"load": "words"}), tmp_path, tmp_path / "data")
    assert store.train.dtype == np.uint32 and store.vocab_size == 70_002
    assert store.train[:3].tolist() == [1, 70_001, 7] and store.held_out.tolist() == [1, 9]


def test_a_separator_in_a_text_is_ordinary_text(family, tmp_path):
    texts = [f"{story(n)} <|endoftext|> {n}" for n in range(60)]
    write_json_lines(tmp_path / "corpus.jsonl", texts)
    store = prepare(family(), tmp_path, tmp_path / "data")
    assert (store.train == store.separator_id).sum() == len(store.train_documents)
    assert texts_of(store, store.train, store.train_documents) == expected(family(), tmp_path)[0]


def test_long_documents_are_cut_without_a_trace(family, tmp_path, monkeypatch):
    plain = prepare(family(), tmp_path, tmp_path / "plain")
    monkeypatch.setattr(encoding, "_PIECE", 40)
    cut = prepare(family(), tmp_path, tmp_path / "cut")
    assert np.array_equal(plain.train, cut.train) and np.array_equal(plain.held_out, cut.held_out)
    assert np.array_equal(plain.train_documents.starts, cut.train_documents.starts)
    assert np.array_equal(plain.train_documents.bytes, cut.train_documents.bytes)


def test_two_stores_of_one_corpus_are_equal_byte_for_byte(family, tmp_path):
    for name in ("one", "two"):
        prepare(family(), tmp_path, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) >= 6
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_progress_is_told(family, tmp_path):
    told = []
    store = prepare(family(), tmp_path, tmp_path / "data", lambda *step: told.append(step))
    size = store.train_documents.total_bytes
    assert told[-1] == ("tokenising", size + store.held_out_documents.total_bytes, None)
    assert ("training the tokenizer", size, None) in told


# Using a store again


def test_a_store_is_used_again_while_nothing_has_changed(family, tmp_path):
    prepare(family(), tmp_path, tmp_path / "data")
    before = (tmp_path / "data" / "train.bin").stat()
    store = prepare(
        family(name="other", recipe={"seed": 7}), tmp_path, tmp_path / "data", lambda *_: pytest.fail("work")
    )
    after = (tmp_path / "data" / "train.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert np.array_equal(store.train, open_store(tmp_path / "data").train)


def test_a_project_can_be_moved(family, tmp_path):
    prepare(family(), tmp_path, tmp_path / "data")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("corpus.jsonl", "data"):
        shutil.move(tmp_path / name, moved / name)
    prepare(family(), moved, moved / "data")


def changed(build, tmp_path):
    with pytest.raises(KinfolkError) as caught:
        prepare(build, tmp_path, tmp_path / "data")
    assert caught.value.where == "family.yaml" and "another run folder" in caught.value.fix
    return caught.value.problem


def test_changed_data_is_noticed(family, tmp_path):
    folder = {"train": [{"path": "texts"}]}
    write_json_lines(tmp_path / "texts" / "a.jsonl", [story(n) for n in range(60)])
    prepare(family(data=folder), tmp_path, tmp_path / "data")
    write_json_lines(tmp_path / "texts" / "b.jsonl", ["more"])
    assert changed(family(data=folder), tmp_path).startswith("data.train[0]: texts/b.jsonl has been added since")
    shutil.move(tmp_path / "texts" / "a.jsonl", tmp_path / "texts" / "b.jsonl")
    assert changed(family(data=folder), tmp_path).startswith("data.train[0]: texts/a.jsonl has gone since")
    shutil.move(tmp_path / "texts" / "b.jsonl", tmp_path / "texts" / "a.jsonl")
    prepare(family(data=folder), tmp_path, tmp_path / "data")
    write_json_lines(tmp_path / "texts" / "a.jsonl", [story(n) for n in range(61)])
    assert changed(family(data=folder), tmp_path).startswith("data.train[0]: texts/a.jsonl has changed since")


def test_changed_settings_are_noticed(family, tmp_path):
    prepare(family(), tmp_path, tmp_path / "data")
    assert changed(family(tokenizer={"vocab_size": 301}), tmp_path).startswith(
        "tokenizer in the family file has changed"
    )
    other = {"train": [{"path": "corpus.jsonl"}], "held_out": {"share": 0.3}}
    assert changed(family(data=other), tmp_path).startswith("data in the family file has changed")


def test_a_changed_package_is_noticed(family, tmp_path):
    prepare(family(), tmp_path, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "data.json").read_text())
    manifest["made_from"]["fingerprints"]["data.train[0]"] = {"package": "p", "version": "0"}
    del manifest["sha256"]  # what an older store lacks
    (tmp_path / "data" / "data.json").write_text(json.dumps(manifest))
    assert "data.train[0]: " in changed(family(), tmp_path)


def test_a_changed_tokenizer_is_noticed(family, tmp_path):
    store = prepare(family(), tmp_path, tmp_path / "first")
    shutil.copytree(store.tokenizer, tmp_path / "tok")
    build = family(tokenizer={"load": "tok"})
    again = prepare(build, tmp_path, tmp_path / "data")
    assert np.array_equal(again.train, store.train)
    with open(tmp_path / "tok" / "tokenizer.json", "a") as file:
        file.write("\n")
    assert changed(build, tmp_path).startswith("tokenizer.load: tokenizer.json has changed")


# What is refused


def test_a_corpus_shorter_than_one_sequence(family, tmp_path):
    build = family(model={"context_length": 100_000}, recipe={"tokens_per_step": 100_000})
    with pytest.raises(KinfolkError, match="fewer than the 100001 of one sequence") as caught:
        prepare(build, tmp_path, tmp_path / "data")
    assert caught.value.where == "family.yaml: data.train"
    assert not (tmp_path / "data").exists() and not list(tmp_path.glob("*.unfinished"))
    prepare(family(), tmp_path, tmp_path / "data")
    with pytest.raises(KinfolkError, match="fewer than the 100001"):
        prepare(build, tmp_path, tmp_path / "data")


def test_models_too_small_for_a_store_that_is_there(family, tmp_path):
    prepare(family(), tmp_path, tmp_path / "data")
    with pytest.raises(KinfolkError, match="299 rows are too few"):
        prepare(family(model={"context_length": 16, "vocab_size": 299}), tmp_path, tmp_path / "data")


def test_a_lossy_tokenizer(family, tmp_path):
    save_tokenizer(tmp_path / "words", ["?", "<s>", "The", "raven"], eos_token="<s>")
    with pytest.raises(KinfolkError, match=r"lossy: it changes the text of the document corpus\.jsonl:\d+"):
        prepare(family(tokenizer={"load": "words"}), tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_fault_in_the_data_leaves_nothing_behind(family, tmp_path):
    with open(tmp_path / "corpus.jsonl", "a") as file:
        file.write('{"text": "cut')
    with pytest.raises(KinfolkError, match="broken JSON") as caught:
        prepare(family(), tmp_path, tmp_path / "data", where="mine.yaml")
    assert caught.value.where == "mine.yaml: data.train[0]: corpus.jsonl:61"
    assert not list(tmp_path.glob("data*"))


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin", "held_out_documents.bin", "tokenizer/tokenizer.json"])
def test_a_damaged_store_is_not_used(family, tmp_path, name):
    path = prepare(family(), tmp_path, tmp_path / "data").folder / name
    whole = path.read_bytes()
    for damaged, problem in ((whole[:-2], "bytes instead of"), (whole[:-1] + b"\x7f", "is not what was written")):
        path.write_bytes(damaged)
        with pytest.raises(KinfolkError, match=f"{name} .*{problem}|{name} {problem}") as caught:
            open_store(tmp_path / "data")
        assert "delete the folder" in caught.value.fix
    path.unlink()
    with pytest.raises(KinfolkError, match=f"{name} is missing"):
        prepare(family(), tmp_path, tmp_path / "data")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 0}'])
def test_a_folder_that_is_no_store(tmp_path, content):
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "data.json").write_text(content)
    with pytest.raises(KinfolkError, match=r"cannot be read|another version") as caught:
        open_store(tmp_path / "data")
    assert "delete the folder" in caught.value.fix
