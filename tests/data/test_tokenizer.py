import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_corpora import story

from kinfolk.data.tokenizer import (
    SEPARATOR,
    _first_bytes,
    document_encoder,
    load_tokenizer,
    prepare_tokenizer,
    separator_id,
    train_tokenizer,
    vocabulary_size,
)
from kinfolk.errors import KinfolkError

STORIES = [story(n) for n in range(40)]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [SEPARATOR, f" {SEPARATOR}\n", "e\u0301 \r\n"]
)


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(STORIES), 320)


def test_the_size_is_the_one_asked_for(trained):
    assert len(trained) == vocabulary_size(trained) == 320
    assert trained.bos_token == trained.eos_token == trained.pad_token == SEPARATOR
    assert separator_id(trained) == trained.convert_tokens_to_ids(SEPARATOR) == 0


@settings(deadline=None, max_examples=200)
@given(text=ANY_TEXT)
def test_every_text_comes_back_unchanged(trained, text):
    assert trained.decode(trained(text)["input_ids"]) == text
    encoder = document_encoder(trained)
    ids = encoder.encode(text, add_special_tokens=False).ids
    assert encoder.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


def test_every_byte_has_an_entry(trained):
    assert len(trained(bytes(range(128)).decode() + "".join(map(chr, range(128, 4096))))["input_ids"]) > 256


def test_the_same_texts_give_the_same_tokenizer(trained):
    again = train_tokenizer(iter(STORIES), 320)
    assert again.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()


def test_what_is_saved_is_what_is_loaded(trained, tmp_path):
    trained.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer("saved", tmp_path, "family.yaml: tokenizer.load")
    for text in [*STORIES[:5], "raven , mill 's", f"a{SEPARATOR}b", "\x00\u200d👩‍🚀"]:
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert separator_id(loaded) == 0 and len(loaded) == 320


def test_a_separator_written_in_a_text_does_not_end_the_document(trained):
    ids = document_encoder(trained).encode(f"before {SEPARATOR} after", add_special_tokens=False).ids
    assert 0 not in ids and len(ids) > 10
    assert 0 in trained(f"before {SEPARATOR} after")["input_ids"]  # and prompts go on being read as everywhere


def test_a_text_too_small_for_the_vocabulary_names_the_size_that_it_gives():
    with pytest.raises(KinfolkError, match="it gives") as caught:
        train_tokenizer(iter(["aab aab"]), 1000, "family.yaml: tokenizer")
    reached = int(caught.value.fix.split()[1])
    assert caught.value.where == "family.yaml: tokenizer.vocab_size"
    assert len(train_tokenizer(iter(["aab aab"]), reached)) == reached


def test_faults_of_the_texts_come_through():
    def texts():
        yield "one"
        raise KinfolkError("broken JSON")

    with pytest.raises(KinfolkError, match="broken JSON"):
        train_tokenizer(texts(), 300)


@given(texts=st.lists(ANY_TEXT), limit=st.integers(1, 40))
def test_training_reads_only_the_first_bytes(texts, limit):
    taken = "".join(_first_bytes(iter(texts), limit))
    assert "".join(texts).startswith(taken)
    assert len(taken.encode()) <= limit
    assert taken == "".join(texts) or len(taken.encode()) > limit - 4


@pytest.mark.parametrize("name", ["./lost", "/lost/folder", "../lost"])
def test_a_tokenizer_folder_that_is_not_there(tmp_path, name):
    with pytest.raises(KinfolkError, match=f"there is no folder '{name}'"):
        load_tokenizer(name, tmp_path, "family.yaml: tokenizer.load")


def test_a_tokenizer_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name in ("no-such-person/no-such-tokenizer", "empty"):
        with pytest.raises(KinfolkError, match=f"cannot load the tokenizer '{name}'") as caught:
            load_tokenizer(name, tmp_path, "family.yaml: tokenizer.load")
        assert caught.value.where == "family.yaml: tokenizer.load" and "save_pretrained" in caught.value.fix


def test_a_tokenizer_without_a_separator(trained, tmp_path):
    trained.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(KinfolkError, match="neither an eos nor a bos token"):
        load_tokenizer(".", tmp_path, "family.yaml: tokenizer.load")


def test_bos_separates_where_there_is_no_eos(trained, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, bos_token="R").save_pretrained(tmp_path)
    loaded = load_tokenizer(".", tmp_path, "family.yaml: tokenizer.load")
    assert separator_id(loaded) == loaded.bos_token_id == loaded.convert_tokens_to_ids("R")


def test_a_vocabulary_that_does_not_fit_the_models(family, trained, tmp_path):
    small = family(model={"vocab_size": 310}, tokenizer={"vocab_size": 320})
    with pytest.raises(KinfolkError, match="310 rows are too few for the tokenizer's 320 entries") as caught:
        prepare_tokenizer(small, tmp_path, "family.yaml", iter([]))  # refused before any text is read
    assert caught.value.where == "family.yaml: model.vocab_size" and "320 or more" in caught.value.fix
    trained.save_pretrained(tmp_path / "saved")
    with pytest.raises(KinfolkError, match="310 rows are too few"):
        loaded = family(model={"vocab_size": 310}, tokenizer={"load": "saved"})
        prepare_tokenizer(loaded, tmp_path, "family.yaml", iter([]))
    padded = family(model={"vocab_size": 384}, tokenizer={"vocab_size": 320})
    assert len(prepare_tokenizer(padded, tmp_path, "family.yaml", iter(STORIES))) == 320


def test_importing_the_data_package_does_not_import_torch():
    code = "import sys, kinfolk.data.tokens, kinfolk.data.loader; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
