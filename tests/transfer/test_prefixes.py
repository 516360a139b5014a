"""A value network of another vocabulary reads the text so far, whatever the base's tokens do to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import model
from torch import Tensor
from vocabularies import TALES, pieces, tokenizer

from kinfolk.errors import KinfolkError
from kinfolk.transfer import Pair, load_pair, save_pair
from kinfolk.transfer.healing import healing
from kinfolk.transfer.retokenize import Retokenizer
from kinfolk.transfer.translation import Translation
from kinfolk.transfer.vocabulary import first_piece_map

COUPLES = [
    ("small", "large"),
    ("large", "small"),
    ("small", "gpt2"),
    ("small", "stories260K"),
    ("stories260K", "small"),
]


def rows(name: str) -> int:
    return len(pieces(name).bytes_of)


def a_pair(
    own: str, other: str, value: str = "llama", alpha: float = 1.0, healed: bool = False, **settings: Any
) -> Pair:
    heal = healing(pieces(own), pieces(other), TALES[:2]) if healed else None
    between = Translation(
        heal.map if heal else first_piece_map(pieces(own), pieces(other)),
        Retokenizer(pieces(own), pieces(other), int(tokenizer(other).bos_token_id)),
        heal,
    )
    return Pair.of(
        model("llama", 1, vocab_size=rows(own), max_position_embeddings=256),
        model(value, 2, vocab_size=rows(other), max_position_embeddings=256, **settings),
        alpha=alpha,
        translation=between,
    )


def by_definition(pair: Pair, ids: list[int]) -> Tensor:
    """z_pair (base vocabulary,) after base ids: the text decoded, split by the value tokenizer, nothing cached."""
    own = pair.base(torch.tensor([ids])).logits[0, -1]
    between = pair.translation
    assert isinstance(between, Translation)
    base, value, begin = between.retokenizer.base, between.retokenizer.value, between.retokenizer.begin
    texts = [b""]
    for index in ids[1:]:  # the first is the beginning of the text
        piece = base.bytes_of[index]
        if piece is None:
            texts.append(b"")
        else:
            texts[-1] += piece
    if any(_is_cut_off(texts[-1][-length:]) for length in (1, 2, 3)):
        return own  # a split character: d = 0
    split = [begin]
    for place, text in enumerate(texts):
        spelt = text.removeprefix(base.prefix).decode(errors="replace")
        split += [value.tokenizer.eos_token_id] if place else []
        split += value.tokenizer(spelt, add_special_tokens=False)["input_ids"] if spelt else []
    found = pair.value(torch.tensor([split])).logits[0]
    change = found[-1]
    if between.healing is not None:
        change = between.healing.change(found[-2] if len(split) > 1 else None, split[-1], found[-1])
    return between.map.combined(own, change, pair.alpha)


def _is_cut_off(tail: bytes) -> bool:
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


@pytest.mark.parametrize(("own", "other", "healed"), [*((*each, False) for each in COUPLES), (*COUPLES[0], True)])
@torch.no_grad()
def test_every_step_is_that_of_a_fresh_forward_pass(own: str, other: str, healed: bool) -> None:
    pair = a_pair(own, other, healed=healed)
    ids = [tokenizer(own).bos_token_id, *pieces(own).encode(TALES[2])][:36]
    cache = pair(torch.tensor([ids[:3]]), use_cache=True).past_key_values
    again = 0
    for end in range(4, len(ids) + 1):
        row = cache.layers[-1].rows[0]
        before = list(row.value_ids)
        logits = pair(torch.tensor([ids[end - 1 : end]]), past_key_values=cache, use_cache=True).logits[0, -1]
        again += row.value_ids[: len(before)] != before
        assert torch.allclose(logits, by_definition(pair, ids[:end]), atol=1e-4), ids[:end]
    whole = pair(torch.tensor([ids])).logits[0]
    assert torch.allclose(whole[-1], logits, atol=1e-4)
    if own == "small" and other == "gpt2":
        assert again > 5, "larger tokens must take the place of smaller ones for the test to mean anything"


@torch.no_grad()
def test_a_split_character_changes_nothing_until_it_is_whole() -> None:
    pair = a_pair("small", "large")
    bytes_of_duck = [pieces("small").id_of[bytes([byte])] for byte in "🦆".encode()]
    ids = [0, *pieces("small").encode("a "), *bytes_of_duck]
    logits, base = (one(torch.tensor([ids])).logits[0] for one in (pair, pair.base))
    same = [bool(torch.equal(own, other)) for own, other in zip(logits, base, strict=True)]
    assert same[-4:] == [True, True, True, False] and not any(same[1:-4])


def test_special_tokens_stay_whole_and_bytes_that_are_no_text_are_replaced() -> None:
    base, value = pieces("small"), pieces("stories260K")
    end, other_end = tokenizer("small").eos_token_id, tokenizer("stories260K").eos_token_id
    a = base.encode("the raven")
    split = Retokenizer(base, value, begin=1)
    assert split.value_ids([]) == ([1], False)
    assert split.value_ids([end, *a]) == ([1, *value.encode("the raven")], False)
    assert split.value_ids([*a, end, *a]) == (
        [1, *value.encode("the raven"), other_end, *value.encode("the raven")],
        False,
    )
    assert Retokenizer(base, value).value_ids([end, *a])[0] == [other_end, *value.encode("the raven")]
    broken = [base.id_of[b"\xf0"], *base.encode("x")]
    assert split.value_ids(broken) == ([1, *value.encode("\ufffdx")], False)


def generate(pair: Pair, ids: list[int], **how: Any) -> Tensor:
    # With the mask given: the prompt begins with the token that also pads.
    return pair.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, **how)


def loop(pair: Pair, ids: list[int], steps: int) -> list[int]:
    for _ in range(steps):
        ids = [*ids, int(by_definition(pair, ids).argmax())]
    return ids


PROMPT = [0, *pieces("small").encode("The raven and the raven ")]


@pytest.mark.parametrize("how", ["greedy", "healed", "static", "assisted", "prompt lookup", "no cache"])
@torch.no_grad()
def test_decoding_equals_the_loop(how: str) -> None:
    pair, prompt = a_pair("small", "large", alpha=0.8, healed=how == "healed"), PROMPT
    settings: dict[str, Any] = {
        "greedy": {},
        "healed": {},
        "static": {"cache_implementation": "static"},
        "assisted": {"assistant_model": pair.base},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "no cache": {"use_cache": False},
    }[how]
    found = generate(pair, prompt, max_new_tokens=12, **settings)
    assert found[0].tolist() == loop(pair, prompt, 12)


@torch.no_grad()
def test_a_pair_as_the_draft_of_a_pair() -> None:
    pair = a_pair("small", "large")
    draft = Pair.of(model("llama", 5, vocab_size=rows("small")), pair.value, translation=pair.translation)
    found = generate(pair, PROMPT, max_new_tokens=12, assistant_model=draft)
    assert found[0].tolist() == loop(pair, PROMPT, 12)


@torch.no_grad()
def test_left_padded_batches_and_beams() -> None:
    pair = a_pair("small", "large")
    texts = [PROMPT, PROMPT[:4], PROMPT[:7]]
    length = max(len(text) for text in texts)
    ids = torch.tensor([[9] * (length - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (length - len(text)) + [1] * len(text) for text in texts])
    found = pair.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert [row[length - len(text) :] for row, text in zip(found.tolist(), texts, strict=True)] == [
        loop(pair, text, 8) for text in texts
    ]
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    assert torch.equal(pair.generate(ids, **how), pair.generate(ids, use_cache=False, **how))


@torch.no_grad()
def test_a_value_network_with_a_window_is_cropped_too() -> None:
    pair = a_pair("small", "large", "gemma3_text untied", sliding_window=3)
    found = generate(pair, PROMPT, max_new_tokens=10)
    assert found[0].tolist() == loop(pair, PROMPT, 10)


@pytest.mark.parametrize("healed", [False, True])
@torch.no_grad()
def test_saved_and_loaded(healed: bool, tmp_path: Path) -> None:
    pair = a_pair("small", "large", alpha=0.5, healed=healed)
    save_pair(pair, tokenizer("small"), tmp_path / "pair")
    loaded, _ = load_pair(tmp_path / "pair")
    prompt = torch.tensor([PROMPT])
    assert torch.equal(loaded(prompt).logits, pair(prompt).logits)
    assert loaded.config.vocabulary == "vocabulary_map.safetensors"
    (tmp_path / "pair" / "vocabulary_map.safetensors").unlink()
    with pytest.raises(KinfolkError, match="map cannot be loaded"):
        load_pair(tmp_path / "pair")


def test_a_map_of_other_vocabularies_is_refused() -> None:
    pair = a_pair("small", "large")
    for base, value in ((rows("small") - 1, rows("large")), (rows("small"), 100)):
        with pytest.raises(KinfolkError, match="the map is from"):
            Pair.of(
                model("llama", 1, vocab_size=base), model("llama", 2, vocab_size=value), translation=pair.translation
            )
    with pytest.raises(KinfolkError, match="without its vocabulary map"):
        Pair(pair.config)(torch.tensor([PROMPT]))
    with pytest.raises(KinfolkError, match="one vocabulary"):
        Pair.of(pair.base, pair.value, scheme="cascade", translation=pair.translation)
