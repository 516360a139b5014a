"""Tokens to text and stop strings, against decoding and searching the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import tokenizer

from kinfolk.serve.text import Stops, TextStream


def streamed(name: str, ids: list[int]) -> list[str]:
    words = tokenizer(name)
    stream = TextStream(lambda each: str(words.decode(each, clean_up_tokenization_spaces=False)))
    return [*(stream.push(index) for index in ids), stream.end()]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 289), max_size=30))
def test_any_tokens_become_what_decoding_them_at_once_gives(ids: list[int]) -> None:
    assert "".join(streamed("small", ids)) == tokenizer("small").decode(ids)


@pytest.mark.parametrize("name", ["small", "gpt2", "stories260K"])
@settings(deadline=None, max_examples=30)
@given(text=st.text(st.sampled_from("ab .\n\té学🦆🏴‍☠️ñ"), max_size=20))
def test_texts_come_back_in_whole_characters(name: str, text: str) -> None:
    ids = tokenizer(name)(text, add_special_tokens=False)["input_ids"]
    parts = streamed(name, ids)
    assert "".join(parts) == tokenizer(name).decode(ids, clean_up_tokenization_spaces=False)
    assert not any("�" in part for part in parts)


def test_text_is_not_held_back_longer_than_needed() -> None:
    ids = tokenizer("small")("a学b")["input_ids"]
    assert streamed("small", ids) == ["a", "", "", "学", "b", ""]
    bad = tokenizer("small")("学")["input_ids"][0]
    assert streamed("small", [bad, bad, *tokenizer("small")("b")["input_ids"]]) == ["", "", "��b", ""]
    assert streamed("small", [bad, bad]) == ["", "", "��"]


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """By the definition: the stop string that ends first, and of those the longest, character by character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=150)
@given(
    st.lists(st.text("abc", max_size=5), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
)
def test_stops_cut_alike_however_the_text_is_cut(parts: list[str], stops: list[str]) -> None:
    filtered = Stops(stops)
    given_out = ""
    wanted, stopped = reference("".join(parts), stops)
    so_far = ""
    for part in parts:
        given_out += filtered.push(part)
        so_far += part
        # Nothing is given out that could become a stop string, nothing else is held back.
        certain, _ = reference(so_far, stops)
        assert certain.startswith(given_out)
        held = certain[len(given_out) :]
        assert filtered.stopped or not held or any(stop.startswith(held) for stop in stops)
    given_out += filtered.end()
    assert (given_out, filtered.stopped) == (wanted, stopped)
