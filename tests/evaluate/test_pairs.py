"""Models held against each other on text: against the whole logits, in windows, with other vocabularies."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_checkpoints import byte_tokenizer, save, tiny_llama, write_texts
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate import cache, pairs
from kinfolk.evaluate.by_document import compare_by_document
from kinfolk.evaluate.consistency import position_divergences, statistics
from kinfolk.evaluate.loss import DocumentLosses, document_losses, encode_documents
from kinfolk.evaluate.text import Text
from kinfolk.growth.verify import copy_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sizes of one tokenizer, one of another with a larger vocabulary, and texts."""
    folder = tmp_path_factory.mktemp("pairs")
    save(folder / "small", tiny_llama(0))
    save(folder / "large", tiny_llama(1, hidden=32))
    save(folder / "other", tiny_llama(2, vocab=261), merges=4)
    write_texts(folder / "texts")
    return folder


def texts(folder):
    return sorted((folder / "texts").iterdir())


def encoded(folder):
    return list(encode_documents(byte_tokenizer(), [path.read_text("utf-8") for path in texts(folder)]))


def one_by_one(first, second, documents, context, stride):
    """Every prediction on its own, the whole window through the whole model, in the document's order."""
    found = {}
    for index, (ids, _) in enumerate(documents):
        sequence = [0, *map(int, ids)]
        rows = []
        for target in range(1, len(sequence)):
            ends = (min(context + k * stride, len(sequence) - 1) for k in range(len(sequence)))
            end = next(end for end in ends if end >= target)
            window = torch.tensor([sequence[max(0, end - context) : target]])
            with torch.no_grad():
                p, q = (model(window).logits[0, -1].double().softmax(0) for model in (first, second))
            rows.append(((p * (p / q).log()).sum().item(), torch.minimum(p, q).sum().item()))
        found[index] = np.array(rows).T
    return found


def test_every_position_of_every_document_in_its_order(folder):
    first, second = (copy_in(tiny_llama(*arguments), torch.float64) for arguments in ((0,), (1, 32)))
    documents = [(ids[:60], 60) for ids, _ in encoded(folder)[:2]]
    found = position_divergences(first, second, documents, 0, 24, "cpu", 7, batch_windows=3)
    expected = one_by_one(first, second, documents, 24, 7)
    for document, values in found.values.items():
        np.testing.assert_allclose(values[[0, 4]], expected[document], rtol=2e-6)
    assert found.tokens == sum(len(ids) for ids, _ in documents)


def test_batches_do_not_matter_and_a_model_agrees_with_itself(folder):
    first, second = tiny_llama(0), tiny_llama(1, 32)
    documents = encoded(folder)
    one, many = (position_divergences(first, second, documents, 0, 32, "cpu", batch_windows=size) for size in (1, 9))
    for document, values in one.values.items():
        np.testing.assert_allclose(values, many.values[document], atol=2e-6)
    itself = position_divergences(first, copy.deepcopy(first), documents, 0, 32, "cpu")
    assert np.abs(np.concatenate(itself.field("forward"))).max() == 0
    assert np.concatenate(itself.field("acceptance")).min() == 1


def test_rows_of_padding_do_not_count(folder):
    first, second = tiny_llama(0), tiny_llama(1, 32)
    padded = tiny_llama(5, vocab=300)
    padded.load_state_dict(
        {
            name: torch.cat([value, torch.full((43, value.shape[1]), 9.0)]) if value.shape[0] == 257 else value
            for name, value in first.state_dict().items()
        }
    )
    documents = encoded(folder)[:1]
    plain, other = (position_divergences(model, second, documents, 0, 32, "cpu") for model in (first, padded))
    np.testing.assert_allclose(plain.values[0], other.values[0], atol=2e-6)


def test_statistics():
    documents = [np.full(10, 1.0), np.full(30, 2.0), np.full(10, 3.0), np.full(1, 5.0), np.full(4, 0.0)]
    found = statistics(documents)
    assert found["mean"] == pytest.approx(np.concatenate(documents).mean())
    assert found["low"] < found["mean"] < found["high"]
    assert found["quantiles"]["0.5"] == 2.0
    assert statistics(documents[:4])["low"] is None


def losses(nats, sizes):
    values = {place: np.array(part) for place, part in enumerate(nats) if part}
    return DocumentLosses(values, {place: sizes[place] for place in values}, 4, 8)


def test_by_document_with_other_tokens():
    sizes = [4, 8, 2, 5, 6, 7]
    first = losses([[1.0, 2.0], [3.0], [1.0], [0.5], [4.0], []], sizes)
    second = losses([[2.0], [1.0, 1.0], [1.5], [0.5], [1.0], [9.0]], sizes)
    found = compare_by_document(first, second)
    assert (found["documents"], found["bytes"]) == (5, 25)
    assert found["first_bits_per_byte"] == pytest.approx(11.5 / 25 / math.log(2))
    assert found["difference"]["mean"] == pytest.approx((7.0 - 11.5) / 25 / math.log(2))
    assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
    assert found["second_better_share"] == pytest.approx(3 / 5)
    ratios = [[3 / 4, 3 / 8, 0.5, 0.1, 4 / 6], [0.5, 0.25, 0.75, 0.1, 1 / 6]]
    assert found["rank_correlation"] == pytest.approx(spearmanr(*ratios).statistic)
    with pytest.raises(KinfolkError, match="no document in common"):
        compare_by_document(losses([[1.0], []], [3, 3]), losses([[], [1.0]], [3, 3]))


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.exception
    return result


def test_the_command_on_three_models_of_two_tokenizers(folder, monkeypatch):
    models = [folder / name for name in ("small", "large", "other")]
    options = [part for path in texts(folder) for part in ("--text", path)]
    document = json.loads(run("consistency", *models, *options, "--json").stdout)
    assert (document["context_length"], document["stride"]) == (64, 32)
    same, *others = document["pairs"]
    assert (same["kind"], same["documents"]) == ("per_token", 6)
    assert [other["kind"] for other in others] == ["by_document"] * 2
    first, second = tiny_llama(0), tiny_llama(1, 32)
    expected = position_divergences(first, second, encoded(folder), 0, 64, "cpu")
    assert same["kl_first_to_second"] == statistics(expected.field("forward"))
    assert same["by_document"]["second_bits_per_byte"] == pytest.approx(
        sum(part.sum() for part in document_losses(second, encoded(folder), 0, 64, "cpu").nats.values())
        / math.log(2)
        / sum(path.stat().st_size for path in texts(folder))
    )
    assert others[0]["by_document"]["bytes"] == sum(path.stat().st_size for path in texts(folder))
    kl = document["matrices"]["kl"]
    assert (kl[0][0], kl[0][1], kl[1][0], kl[0][2]) == (
        0.0,
        same["kl_first_to_second"]["mean"],
        same["kl_second_to_first"]["mean"],
        None,
    )
    # The same again loads nothing, and the table has every pair.
    monkeypatch.setattr(pairs, "load", None)
    table = run("consistency", *models, *options)
    assert "3 of 3 known from before" in table.stderr
    assert f"{same['acceptance']['mean']:.4f}" in table.stdout
    assert table.stdout.count("large, other") == 1 and table.stdout.count("small, large") == 2


def test_decoding_by_command(folder):
    models = [folder / "large", folder / "small"]
    arguments = ["--text", texts(folder)[0], "--decode", 1, "--draft-tokens", 2, "--json"]
    measured = json.loads(run("consistency", *models, *arguments).stdout)["pairs"][0]["measured"]
    assert measured["draft"].endswith("small") and measured["target"].endswith("large")
    assert measured["prompts"] == 1
    assert measured["greedy"]["measured"] == measured["greedy"]["expected"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("small",), "1 model to compare"),
        (("small", "large", "--stride", "65"), "stride of 65"),
        (("small", "large", "--context-length", "65"), "longer than the 64"),
        (("small", "./nowhere"), "no such folder"),
    ],
)
def test_refusals(folder, monkeypatch, arguments, problem):
    monkeypatch.chdir(folder)
    options = [part for path in texts(folder) for part in ("--text", str(path))]
    result = CliRunner().invoke(app, ["consistency", *arguments, *options])
    assert isinstance(result.exception, KinfolkError)
    assert problem in str(result.exception)
    assert result.stdout == ""


def test_what_was_computed_is_kept_by_weights_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = save(tmp_path / "model", tiny_llama(0))
    calls = []

    def ask(**settings):
        digest = cache.checkpoint_digest(path)
        return cache.remembered("test", [digest], settings, lambda: calls.append(1) or {"n": len(calls)})

    assert ask(stride=4) == ({"n": 1}, False)
    assert ask(stride=4) == ({"n": 1}, True)
    assert ask(stride=5) == ({"n": 2}, False)
    save(tmp_path / "model", tiny_llama(1))
    assert ask(stride=4) == ({"n": 3}, False)
    [kept.write_text("{") for kept in cache.folder().iterdir()]
    assert ask(stride=4) == ({"n": 4}, False)
    assert cache.remembered("test", [None], {}, dict) == ({}, False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ask(stride=4) == ({"n": 5}, False), "where nothing can be kept, nothing fails"


def test_what_our_own_code_computed_is_forgotten_when_the_code_changes(tmp_path, monkeypatch):
    package = tmp_path / "package" / "__init__.py"
    source = package.parent / "evaluate" / "loss.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    monkeypatch.setattr("kinfolk.__file__", str(package))
    digests = []
    for change in (lambda: None, lambda: source.write_text("two"), lambda: source.rename(source.with_name("other.py"))):
        change()
        digests.append(cache.code_digest.__wrapped__())
    assert len(set(digests)) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for digest, known in zip([*digests, digests[0]], (False, False, False, True), strict=True):
        monkeypatch.setattr(cache, "code_digest", lambda digest=digest: digest)
        assert cache.remembered("test", ["a"], {}, lambda: {"n": 1}) == ({"n": 1}, known)


def test_a_checkpoint_is_also_what_lies_in_its_folders(tmp_path):
    folder = tmp_path / "pair"
    save(folder, tiny_llama(0))
    digests = [cache.checkpoint_digest(str(folder))]
    for name in ("base_tokenizer", "value_tokenizer"):
        byte_tokenizer().save_pretrained(folder / name)
        digests.append(cache.checkpoint_digest(str(folder)))
    byte_tokenizer(merges=4).save_pretrained(folder / "value_tokenizer")
    digests.append(cache.checkpoint_digest(str(folder)))
    assert len(set(digests)) == 4
    moved = folder.rename(tmp_path / "elsewhere")
    assert cache.checkpoint_digest(str(moved)) == digests[-1]


def test_texts_are_told_apart(tmp_path, folder):
    first, second = texts(folder)[:2]
    digests = {Text((first,)).digest(), Text((second,)).digest(), Text((first, second)).digest()}
    assert len(digests) == 3
    copied = tmp_path / "copy.txt"
    copied.write_bytes(first.read_bytes())
    assert Text((copied,)).digest() in digests
