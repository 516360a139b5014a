"""Regression means against least squares, Gram matrices by hand, and merged checkpoints as a user has them."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import byte_tokenizer, save, tiny_llama, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from kinfolk.cli.app import app
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.loss import encode_documents
from kinfolk.evaluate.text import Text
from kinfolk.merge.checkpoint import RECORD, merge_checkpoints
from kinfolk.merge.grams import grams_of, linear_layers, weight_of
from kinfolk.merge.regmean import RegressionSums, shrunk


def siblings(seed, models=3, inputs=5, outputs=4, rows=40):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(draw(rows + 7 * index, inputs) @ draw(inputs, inputs), draw(inputs, outputs)) for index in range(models)]


def regression_mean(pairs, off_diagonal, ridge=0.0):
    sums = RegressionSums.zero(*pairs[0][1].shape)
    for inputs, weight in pairs:
        sums.add(shrunk(inputs.T @ inputs / len(inputs), off_diagonal), weight)
    return sums.solve(ridge)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_least_squares_over_all_inputs(seed):
    """At a = 1 it is the solution of min_W sum ||X_i W - X_i W_i||^2 / n_i, which lstsq finds without Gram matrices."""
    pairs = siblings(seed)
    scaled = [(inputs / len(inputs) ** 0.5, weight) for inputs, weight in pairs]
    rows, wanted = torch.cat([x for x, _ in scaled]), torch.cat([x @ w for x, w in scaled])
    expected = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
    torch.testing.assert_close(regression_mean(pairs, 1.0), expected, rtol=1e-6, atol=1e-6)


def test_special_cases():
    pairs = siblings(0)
    [(inputs, weight), *_] = pairs
    torch.testing.assert_close(regression_mean([(x, weight) for x, _ in pairs], 0.9), weight)
    same_inputs = regression_mean([(inputs, w) for _, w in pairs], 0.9)
    torch.testing.assert_close(same_inputs, torch.stack([w for _, w in pairs]).mean(0))
    # With off-diagonal entries at zero, each input is weighed by its mean square.
    squares = torch.stack([(x**2).mean(0) for x, _ in pairs]).unsqueeze(2)
    by_input = (squares * torch.stack([w for _, w in pairs])).sum(0) / squares.sum(0)
    torch.testing.assert_close(regression_mean(pairs, 0.0), by_input)


def test_directions_without_inputs_get_the_plain_mean():
    pairs = [(torch.cat([x[:, :2], torch.zeros(len(x), 3)], 1), w) for x, w in siblings(1)]
    mean = torch.stack([w for _, w in pairs]).mean(0)
    found = regression_mean(pairs, 1.0, ridge=1e-8)
    torch.testing.assert_close(found[2:], mean[2:])
    assert not torch.allclose(found[:2], mean[:2], atol=1e-2)
    nothing = regression_mean([(torch.zeros(3, 5), w) for _, w in pairs], 1.0, ridge=1e-8)
    torch.testing.assert_close(nothing, mean)


def documents(folder):
    return list(encode_documents(byte_tokenizer(), [path.read_text("utf-8") for path in write_texts(folder, 3)]))


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=257, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("make", [lambda: tiny_llama(0), gpt2])
def test_gram_matrices_of_every_layer(tmp_path, make):
    model, texts = make(), documents(tmp_path)
    layers = linear_layers(model)
    assert len(layers) == (15 if hasattr(model.config, "rope_theta") or model.config.model_type == "llama" else 8)
    found = grams_of(model, layers, texts, 0, 16, "cpu", 10**9)
    assert found.keys() == layers.keys()
    # By hand: a document in windows of 16, the last of which is filled backwards, and each position once.
    seen = {name: [] for name in layers}
    for ids, _ in texts:
        sequence = [0, *map(int, ids)][:-1]
        for begin in range(0, len(sequence), 16):
            end = min(begin + 16, len(sequence))
            start = max(0, end - 16)
            handles = [
                layer.register_forward_pre_hook(
                    lambda _, args, name=name, skip=begin - start: seen[name].append(args[0][0, skip:])
                )
                for name, layer in layers.items()
            ]
            with torch.no_grad():
                model(torch.tensor([sequence[start:end]]))
            [handle.remove() for handle in handles]
    for name, rows in seen.items():
        inputs = torch.cat(rows).double()
        assert len(inputs) == sum(len(ids) for ids, _ in texts)
        torch.testing.assert_close(found[name], inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)
    fewer = grams_of(model, layers, texts, 0, 16, "cpu", 1)
    assert not torch.equal(fewer[next(iter(layers))], found[next(iter(layers))])


def test_weights_are_views_in_by_out():
    for model in (tiny_llama(0), gpt2()):
        for layer in linear_layers(model).values():
            inputs = torch.randn(3, weight_of(layer).shape[0])
            bias = 0 if layer.bias is None else layer.bias
            torch.testing.assert_close(layer(inputs), inputs @ weight_of(layer) + bias)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Siblings of one shape, tied and untied, and others that do not fit."""
    folder = tmp_path_factory.mktemp("merge")
    for seed in range(2):
        save(folder / f"plain-{seed}", tiny_llama(seed))
        save(folder / f"tied-{seed}", tiny_llama(seed, tied=True))
    save(folder / "wide", tiny_llama(0, hidden=32))
    save(folder / "deep", tiny_llama(0, layers=3))
    save(folder / "other", tiny_llama(0), merges=0)
    tokenizer = json.loads((folder / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_texts(folder / "texts", 2)
    return folder


def parameters(path):
    return dict(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters())


def texts(folder, count):
    return [Text((folder / "texts" / f"{number}.txt",)) for number in range(count)]


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_a_merged_checkpoint(family, tmp_path, kind):
    paths = [str(family / f"{kind}-{seed}") for seed in range(2)]
    record = merge_checkpoints(paths, texts(family, 2), tmp_path / "merged", off_diagonal=0.8)
    assert json.loads((tmp_path / "merged" / RECORD).read_text()) == record
    assert [source["name"] for source in record["sources"]] == [f"{kind}-0", f"{kind}-1"]
    merged, sources = parameters(tmp_path / "merged"), [parameters(path) for path in paths]
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == byte_tokenizer().get_vocab()
    models = [AutoModelForCausalLM.from_pretrained(path) for path in paths]
    layers = [linear_layers(model) for model in models]
    assert set(record["regression_means"]) == set(layers[0])
    assert ("lm_head" in layers[0]) == (kind == "plain")
    grams = []
    for model, own, text in zip(models, layers, texts(family, 2), strict=True):
        grams.append(grams_of(model, own, text.documents(byte_tokenizer()), 0, 64, "cpu", 100_000))
    for name, value in merged.items():
        layer = name.removesuffix(".weight")
        if layer in layers[0]:
            sums = RegressionSums.zero(*weight_of(layers[0][layer]).shape)
            for own, gram in zip(layers, grams, strict=True):
                sums.add(shrunk(gram[layer], 0.8), weight_of(own[layer]))
            torch.testing.assert_close(value.detach(), sums.solve().T.float())
            assert not torch.allclose(value, (sources[0][name] + sources[1][name]) / 2, atol=1e-3)
        else:
            torch.testing.assert_close(value, (sources[0][name] + sources[1][name]) / 2)


def test_groups_of_layers_change_nothing(family, tmp_path):
    paths = [str(family / f"plain-{seed}") for seed in range(2)]
    for name, size in (("once", 2**30), ("often", 60_000)):
        merge_checkpoints(paths, texts(family, 1), tmp_path / name, bytes_at_once=size)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "often")]
    assert weights[0] == weights[1]


def test_a_model_merged_with_itself_is_itself(family, tmp_path):
    path = str(family / "plain-0")
    merge_checkpoints([path, path], texts(family, 1), tmp_path / "same")
    source = parameters(path)
    for name, value in parameters(tmp_path / "same").items():
        torch.testing.assert_close(value, source[name], rtol=1e-5, atol=1e-6)


def loss_of(paths, merged, off_diagonal, text_list):
    """sum ||X_i W - X_i W_i||^2 / n_i over the first layer's query projection."""
    name = "model.layers.0.self_attn.q_proj"
    total = 0.0
    for path, text in zip(paths, text_list, strict=True):
        model = AutoModelForCausalLM.from_pretrained(path)
        layers = {name: linear_layers(model)[name]}
        gram = grams_of(model, layers, text.documents(byte_tokenizer()), 0, 64, "cpu", 100_000)[name]
        off = (parameters(merged)[f"{name}.weight"].detach().T - weight_of(layers[name])).double()
        total += float((off * (shrunk(gram, off_diagonal) @ off)).sum())
    return total


def test_the_command_beats_the_mean_where_it_says(family, tmp_path):
    paths = [str(family / f"plain-{seed}") for seed in range(2)]
    each = [part for text in texts(family, 2) for part in ("--text", str(text.files[0]))]
    for name, more in (("regmean", [*each, "--off-diagonal", "1"]), ("mean", ["--method", "mean"])):
        result = CliRunner().invoke(app, ["merge", *paths, "--output", str(tmp_path / name), *more, "--json"])
        assert result.exit_code == 0, result.exception
        assert json.loads(result.stdout)["method"] == name
    sources = [parameters(path) for path in paths]
    for name, value in parameters(tmp_path / "mean").items():
        torch.testing.assert_close(value, (sources[0][name] + sources[1][name]) / 2)
    losses = [loss_of(paths, tmp_path / name, 1.0, texts(family, 2)) for name in ("regmean", "mean")]
    assert losses[0] < losses[1] * 0.99


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (("plain-0",), {}, "1 model to merge"),
        (("plain-0", "wide"), {}, "257 x 32, and 257 x 16"),
        (("plain-0", "deep"), {}, "model.layers.2"),
        (("plain-0", "other"), {}, "another tokenizer"),
        (("plain-0", "tied-0"), {}, "lm_head.weight is absent"),
        (("plain-0", "plain-1"), {"texts": 3}, "3 texts for 2 models"),
        (("plain-0", "plain-1"), {"texts": 0}, "or --method mean"),
        (("plain-0", "plain-1"), {"off_diagonal": 1.5}, "use 0 to 1"),
        (("plain-0", "plain-1"), {"tokens": 0}, "of 0 tokens"),
        (("plain-0", "./nowhere"), {}, "no such folder"),
    ],
)
def test_refusals(family, tmp_path, names, options, problem):
    options = copy.copy(options)
    given_texts = texts(family, 1) * options.pop("texts", 1)
    with pytest.raises(KinfolkError, match=problem):
        merge_checkpoints(
            [str(family / name) if "/" not in name else name for name in names],
            given_texts,
            tmp_path / "out",
            **options,
        )
    assert not list(tmp_path.iterdir())


def test_nothing_else_is_overwritten(family, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    paths = [str(family / f"plain-{seed}") for seed in range(2)]
    with pytest.raises(KinfolkError, match="something else here"):
        merge_checkpoints(paths, [], tmp_path / "notes", method="mean")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
