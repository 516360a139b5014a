import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from kinfolk.data.tokens import Documents, TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.head import predictor, token_losses
from kinfolk.evaluate.loss import encode_documents, held_out_documents, score
from kinfolk.evaluate.windows import window_spans
from kinfolk.growth.precision import computing_in
from kinfolk.growth.verify import copy_in

LENGTHS = (1, 3, 40, 7, 8, 9, 23, 16, 100, 2)


def documents(vocab=61, lengths=LENGTHS):
    generator = np.random.default_rng(1)
    return [(generator.integers(1, vocab, length), 2 * length + 1) for length in lengths]


def naive_nats(model, ids, separator, context, stride):
    """One token at a time: the whole context through the whole model, and the last position's logits."""
    sequence = [*([] if separator is None else [separator]), *map(int, ids)]
    total = 0.0
    for target in range(1, len(sequence)):
        # The window that scores this token: the first window whose end reaches it.
        end = next(
            end for end in (min(context + k * stride, len(sequence) - 1) for k in range(len(sequence))) if end >= target
        )
        context_ids = torch.tensor([sequence[max(0, end - context) : target]])
        with torch.no_grad():
            total -= model(context_ids).logits[0, -1].double().log_softmax(-1)[sequence[target]].item()
    return total


@pytest.mark.parametrize("separator", [0, None])
@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 3), (16, 1), (64, 32)])
def test_equals_one_token_at_a_time(tiny, separator, context, stride):
    model, docs = tiny(), documents()
    kept = [(ids, size) for ids, size in docs if separator is not None or len(ids) > 1]
    result = score(model, docs, separator, context, "cpu", stride, batch_windows=5)
    nats = sum(naive_nats(model, ids, separator, context, stride) for ids, _ in docs)
    tokens = sum(len(ids) - (separator is None) for ids, _ in docs)
    assert (result.tokens, result.documents) == (tokens, len(kept))
    assert result.bytes == sum(size for _, size in kept)
    assert result.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / result.bytes, rel=1e-5)
    assert result.perplexity == math.exp(result.loss)
    assert (result.stride, result.context_length) == (stride, context)


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_every_token_once_with_the_most_context(predictions, context, data):
    stride = data.draw(st.integers(1, context))
    spans = list(window_spans(predictions, context, stride))
    assert [t for _, first, end in spans for t in range(first, end)] == list(range(predictions))
    for start, first, end in spans:
        assert end - start == min(context, predictions)
        assert start <= first
        # A full context, but for what a window of this stride cannot see and what the document does not have.
        assert first - start >= min(first, context - stride)


@pytest.mark.parametrize("separator", [0, None])
def test_batch_size_and_order_do_not_matter_in_float64(tiny, separator):
    model = copy_in(tiny(), torch.float64)
    docs = documents()
    with computing_in(torch.float64):
        one = score(model, docs, separator, 16, "cpu", batch_windows=1)
        eight = score(model, docs, separator, 16, "cpu", batch_windows=8)
        backwards = score(model, docs[::-1], separator, 16, "cpu", batch_windows=3)
    assert eight.loss == pytest.approx(one.loss, rel=1e-12)
    assert backwards.loss == pytest.approx(one.loss, rel=1e-12)
    assert eight.bits_per_byte_low == pytest.approx(one.bits_per_byte_low, rel=1e-9)


def test_padding_rows_agree_to_float32_with_single_windows(tiny):
    one, many = (score(tiny(), documents(), 0, 16, "cpu", batch_windows=size) for size in (1, 16))
    assert many.loss == pytest.approx(one.loss, rel=1e-6)


def test_uniform_model_gives_log_of_the_vocabulary(tiny):
    model = tiny().double()
    torch.nn.init.zeros_(model.lm_head.weight)
    result = score(model, documents(), 0, 16, "cpu")
    assert result.loss == pytest.approx(math.log(61), rel=1e-14)
    assert result.perplexity == pytest.approx(61, rel=1e-12)
    ratio = sum(LENGTHS) * math.log2(61) / sum(2 * length + 1 for length in LENGTHS)
    assert result.bits_per_byte == pytest.approx(ratio, rel=1e-12)


def test_bytes_of_multi_byte_text_and_the_special_token_as_text(byte_tokenizer):
    text = "naïve “日本語” 🙂\r\n <|endoftext|> , a\u0301"
    [(ids, size), (nothing, zero)] = encode_documents(byte_tokenizer, [text, ""])
    assert size == len(text.encode("utf-8"))
    assert (len(nothing), zero) == (0, 0)
    assert 0 not in ids, "what looks like the separator is text"
    assert bytes(byte_tokenizer.decode(ids), "utf-8") == text.encode("utf-8")


def test_lossy_tokenizers_are_refused_with_the_first_difference(byte_tokenizer):
    backend = byte_tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    texts = ["fine", "then Not fine"]
    with pytest.raises(KinfolkError, match=r"document 2: .*character 5, 'then Not fine' comes back as 'then not fine'"):
        list(encode_documents(byte_tokenizer, texts))


def test_a_tokenizer_that_drops_the_end_is_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    with pytest.raises(KinfolkError, match="character 3, 'a a ' comes back as 'a a'"):
        list(encode_documents(tokenizer, ["a a", "a a "]))


def test_half_a_surrogate_pair_is_refused(byte_tokenizer):
    with pytest.raises(KinfolkError, match="character 2 is half of a surrogate pair"):
        list(encode_documents(byte_tokenizer, ["ab\ud800"]))


def test_held_out_documents_come_without_separators():
    tokens = np.array([9, 1, 2, 9, 9, 3], dtype=np.uint16)
    part = Documents(np.array([0, 3, 4]), np.array([5, 0, 3]))
    store = TokenStore(Path(), tokens, tokens, part, part, separator_id=9, vocab_size=10)
    found = [(ids.tolist(), size) for ids, size in held_out_documents(store)]
    assert found == [([1, 2], 5), ([], 0), ([3], 3)]


def test_the_same_score_from_a_store_and_from_documents(tiny):
    docs = documents()
    tokens = np.concatenate([[0, *ids] for ids, _ in docs]).astype(np.uint16)
    starts = np.cumsum([0, *(len(ids) + 1 for ids, _ in docs)])[:-1]
    part = Documents(starts, np.array([size for _, size in docs]))
    store = TokenStore(Path(), tokens, tokens, part, part, separator_id=0, vocab_size=61)
    assert score(tiny(), held_out_documents(store), 0, 16, "cpu") == score(tiny(), docs, 0, 16, "cpu")


def test_interval_needs_five_documents_and_holds_the_mean(tiny):
    few, many = (score(tiny(), documents()[:count], 0, 16, "cpu") for count in (4, 10))
    assert (few.bits_per_byte_low, few.bits_per_byte_high) == (None, None)
    assert many.bits_per_byte_low < many.bits_per_byte < many.bits_per_byte_high
    assert many == score(tiny(), documents(), 0, 16, "cpu")
    assert many.to_dict()["bits_per_byte_low"] == many.bits_per_byte_low


def test_soft_caps_and_head_biases_are_honoured():
    shape = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=4, final_logit_softcapping=2.0)).eval()
    biased = PhiForCausalLM(PhiConfig(**shape)).eval()
    torch.nn.init.normal_(biased.lm_head.bias)
    for model in (capped, biased):
        assert predictor(model).weight is None
        expected = sum(naive_nats(model, ids, 0, 16, 8) for ids, _ in documents()) / sum(LENGTHS)
        assert score(model, documents(), 0, 16, "cpu").loss == pytest.approx(expected, rel=1e-5)


def test_chunks_cover_every_position():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(100, 8, generator=generator)
    weight = torch.randn(2**14, 8, generator=generator)  # 16 positions a chunk
    targets = torch.randint(0, 2**14, (100,), generator=generator)
    expected = torch.nn.functional.cross_entropy((states @ weight.T).double(), targets, reduction="none")
    torch.testing.assert_close(token_losses(states, weight, targets), expected, rtol=1e-5, atol=1e-5)


def test_mode_and_progress(tiny):
    model, told = tiny(attention_dropout=0.5).train(), []
    result = score(model, documents(), 0, 16, "cpu", batch_windows=2, progress=told.append)
    assert model.training
    assert told == sorted(told) and told[-1] == result.tokens
    assert result.loss == score(model.eval(), documents(), 0, 16, "cpu", batch_windows=2).loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride of 0"),
        ({"stride": 17}, "use 1 to 16"),
        ({"context_length": 0}, "context length of 0"),
        ({"context_length": 65}, "longer than the 64"),
        ({"batch_windows": 0}, "batches of 0"),
        ({"documents": []}, "no token to score"),
        ({"documents": [(np.array([], dtype=np.int64), 0)]}, "no token to score"),
        ({"documents": [(np.array([1, 61]), 2)]}, "document 1: token id 61 is not among the model's 61"),
        ({"documents": [(np.array([1, 2]), 0)]}, "2 tokens stand for 0 bytes"),
        ({"separator": 99}, "token id 99"),
    ],
)
def test_refusals(tiny, changes, message):
    arguments = {"documents": documents(), "separator": 0, "context_length": 16, "device": "cpu"} | changes
    with pytest.raises(KinfolkError, match=message):
        score(tiny(), **arguments)


def test_a_diverged_model_is_refused(tiny):
    model = tiny()
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(KinfolkError, match="not finite"):
        score(model, documents(), 0, 16, "cpu")


def test_a_perplexity_beyond_floating_point_is_not_written(tiny):
    model = tiny()
    model.lm_head.weight.data.mul_(1e4)
    result = score(model, documents(), 0, 16, "cpu")
    assert result.perplexity == math.inf
    assert result.to_dict()["perplexity"] is None


@pytest.fixture
def byte_tokenizer():
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=4
    )
