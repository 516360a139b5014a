"""What the official client gets, against transformers' own generate and forward passes."""

import itertools
import json
from typing import Any

import openai
import pytest
import torch
from serving import (
    CONTEXT,
    MESSAGES,
    NAME,
    PROMPT,
    Running,
    a_model,
    chat_ids,
    decoded,
    encoded,
    greedy,
    ready,
    running,
    scripted,
)
from vocabularies import tokenizer

from kinfolk.transfer import Pair

GREEDY: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}


def events(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return list(client.chat.completions.create(stream=True, **fields))


def joined(chunks: list[Any], index: int = 0) -> tuple[str, str | None, list[Any]]:
    """Text, reason and log-probabilities of one streamed answer."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    text = "".join(choice.delta.content or "" for choice in choices)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1 and choices[-1].finish_reason
    return text, reasons[0], [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]


def test_a_greedy_answer_is_that_of_transformers(client: openai.OpenAI) -> None:
    wanted = greedy(a_model(), chat_ids(), 24)
    found = client.chat.completions.create(**GREEDY)
    assert found.choices[0].message.content == decoded(wanted)
    assert found.choices[0].message.role == "assistant" and found.choices[0].finish_reason == "length"
    assert found.model == NAME and found.object == "chat.completion" and found.choices[0].logprobs is None
    assert found.usage is not None and found.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": len(chat_ids()),
        "completion_tokens": 24,
    }
    assert found.usage.total_tokens == len(chat_ids()) + 24


def test_completions_of_texts_and_of_token_ids(client: openai.OpenAI) -> None:
    ids = encoded(PROMPT)
    wanted = decoded(greedy(a_model(), ids, 16))
    other = decoded(greedy(a_model(), encoded("Nobody"), 16))
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        found = client.completions.create(model=NAME, prompt=prompt, temperature=0)
        assert [choice.text for choice in found.choices] == [wanted]
        assert found.usage is not None and found.usage.completion_tokens == 16
    several = client.completions.create(model=NAME, prompt=[PROMPT, "Nobody"], temperature=0, n=2)
    assert [choice.text for choice in several.choices] == [wanted, wanted, other, other]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None and several.usage.prompt_tokens == len(ids) + len(encoded("Nobody"))
    empty = client.completions.create(model=NAME, prompt="", temperature=0)
    assert empty.choices[0].text == decoded(greedy(a_model(), [0], 16))


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.5, "seed": 3, "n": 2}, {"stop": ["K", "m"], "seed": 1}])
def test_a_stream_is_the_answer_in_parts(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**GREEDY, "logprobs": True, "top_logprobs": 2, **fields}
    whole = client.chat.completions.create(**asked)
    chunks = events(client, **asked, stream_options={"include_usage": True})
    for choice in whole.choices:
        text, reason, logprobs = joined(chunks, choice.index)
        assert text == choice.message.content and reason == choice.finish_reason
        assert choice.logprobs is not None and logprobs == choice.logprobs.content
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) >= 4


def test_the_stream_on_the_wire(server: Running) -> None:
    reply = server.chat(stream=True, temperature=0)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *parts, last, rest = reply.body.decode().split("\n\n")
    assert last == "data: [DONE]" and rest == ""
    bodies = [json.loads(part.removeprefix("data: ")) for part in parts]
    assert all("usage" not in body for body in bodies)
    told = server.chat(stream=True, stream_options={"include_usage": True}).body.decode().split("\n\n")[:-2]
    assert [json.loads(part.removeprefix("data: "))["usage"] is None for part in told].count(False) == 1


def test_a_completion_is_streamed_alike(client: openai.OpenAI) -> None:
    asked: Any = {"model": NAME, "prompt": [PROMPT, "x"], "logprobs": 1, "seed": 5, "max_tokens": 9}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    for choice in whole.choices:
        own = [each.choices[0] for each in chunks if each.choices[0].index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        assert choice.logprobs is not None
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [getattr(each.logprobs, name) for each in own]
            assert list(itertools.chain.from_iterable(parts)) == getattr(choice.logprobs, name)


def test_logprobs_are_those_of_a_forward_pass(client: openai.OpenAI) -> None:
    """At temperature 1.3 and top-p 0.7, which do not show in them."""
    asked: Any = {**GREEDY, "temperature": 1.3, "top_p": 0.7, "seed": 11, "logprobs": True, "top_logprobs": 5}
    content = client.chat.completions.create(**asked).choices[0].logprobs.content  # type: ignore[union-attr]
    assert len(content) == 24
    by_bytes = {bytes(piece): index for index, piece in enumerate(pieces()) if piece is not None}
    ids = [by_bytes[bytes(entry.bytes)] for entry in content]
    with torch.no_grad():
        logits = a_model()(torch.tensor([chat_ids() + ids])).logits[0].double()
    rows = logits.log_softmax(-1)[len(chat_ids()) - 1 : -1]
    for entry, index, row in zip(content, ids, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row[index]), abs=2e-5)
        best = row.topk(5)
        assert [by_bytes.get(bytes(each.bytes), 0) for each in entry.top_logprobs] == best.indices.tolist()
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=2e-5)
    none = client.chat.completions.create(**{**GREEDY, "logprobs": True})
    assert none.choices[0].logprobs is not None and none.choices[0].logprobs.content[0].top_logprobs == []


def pieces() -> list[bytes | None]:
    """The bytes of the tokens, as the vocabulary spells them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = sorted(tokenizer("small").get_vocab().items(), key=lambda item: item[1])
    return [None if i == 0 else bytes(byte_of[character] for character in token) for token, i in vocabulary]


def test_offsets_and_tokens_of_a_completion() -> None:
    said = "Naïve 学校, so"
    with running(ready(scripted(said, encoded(PROMPT)))) as server:
        asked: Any = {"model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": len(encoded(said))}
        choice = server.client().completions.create(**asked, logprobs=0).choices[0]
    assert choice.text == said and choice.logprobs is not None
    assert choice.logprobs.tokens is not None and choice.logprobs.text_offset is not None
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or said[offset:].startswith(token)
    assert "bytes:\\xe5" in choice.logprobs.tokens


def test_an_end_of_text_ends_the_answer_and_is_not_shown() -> None:
    wanted = greedy(a_model(), chat_ids(), 24)
    end = next(token for token in wanted[4:] if token not in wanted[:4])
    made = a_model()
    made.generation_config.eos_token_id = [end, 0]
    with running(ready(made)) as server:
        found = server.client().chat.completions.create(**GREEDY, logprobs=True)
    tokens = wanted[: wanted.index(end)]
    assert found.choices[0].message.content == decoded(tokens)
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None and found.usage.completion_tokens == len(tokens) + 1
    assert found.choices[0].logprobs is not None and len(found.choices[0].logprobs.content or []) == len(tokens)


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    said = "The façade: 学校, a school. The end"
    with running(ready(scripted(said, chat_ids()))) as server:
        client = server.client()
        for stop, shown in (
            ("学校", "The façade: "),
            (["nothing", "e: 学", "school"], "The façad"),
            ("The façade: 学校, a school! ", said),
            (["school. The e", "校"], "The façade: 学"),
            ([], said),
        ):
            asked = {**GREEDY, "max_tokens": len(encoded(said)), "stop": stop}
            found = client.chat.completions.create(**asked)
            assert found.choices[0].message.content == shown
            assert found.choices[0].finish_reason == ("length" if shown == said else "stop")
            chunks = events(client, **asked)
            assert joined(chunks)[:2] == (shown, found.choices[0].finish_reason)
            shown_parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert not any("�" in part for part in shown_parts)
            # The answer ended there: the rest was not made.
            assert found.usage is not None
            made = found.usage.completion_tokens
            assert made == len(encoded(said)) if shown == said else len(decoded(encoded(said)[: made - 1])) < len(said)
        entries = client.chat.completions.create(**{**GREEDY, "stop": "学校", "logprobs": True}).choices[0].logprobs
        assert entries is not None and entries.content is not None
        assert b"".join(bytes(each.bytes or []) for each in entries.content).decode() == "The façade: "


def test_a_seed_gives_the_same_answer_whatever_else_is_asked(client: openai.OpenAI) -> None:
    def drawn(seed: int | None, **fields: Any) -> list[str | None]:
        asked = {**GREEDY, "temperature": 1, "seed": seed, **fields}
        return [choice.message.content for choice in client.chat.completions.create(**asked).choices]

    first = drawn(5)
    torch.manual_seed(0)
    client.completions.create(model=NAME, prompt=PROMPT)
    assert drawn(5) == first != drawn(6)
    three = drawn(5, n=3)
    assert three[0] == first[0] and len(set(three)) == 3 and three == drawn(5, n=3)
    assert drawn(None) != drawn(None)
    assert drawn(5, top_p=0) == drawn(0, temperature=0) == drawn(1, temperature=1e-9)
    single = client.completions.create(model=NAME, prompt="Nobody", seed=5).choices[0].text
    batch = client.completions.create(model=NAME, prompt=[PROMPT, "Nobody"], seed=5).choices[1].text
    assert single == batch


def test_without_a_limit_an_answer_fills_the_context(client: openai.OpenAI) -> None:
    asked = {name: value for name, value in GREEDY.items() if name != "max_tokens"}
    found = client.chat.completions.create(**asked)
    assert found.usage is not None and found.usage.total_tokens == CONTEXT
    longer = client.chat.completions.create(**asked, max_completion_tokens=CONTEXT - len(chat_ids()))
    assert longer.choices[0].message.content == found.choices[0].message.content


def test_roles_parts_and_ignored_fields(client: openai.OpenAI) -> None:
    plain: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The mill?"}]
    parts: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "The mill?", "name": "somebody"},
    ]
    asked = {"model": NAME, "temperature": 0, "max_tokens": 8}
    first = client.chat.completions.create(messages=plain, **asked)
    ids = encoded("<|endoftext|>Be brief.\n\n### User:\nThe mill?\n\n### Assistant:\n")
    assert first.choices[0].message.content == decoded(greedy(a_model(), ids, 8))
    ignored: Any = {"user": "me", "metadata": {"a": "b"}, "presence_penalty": 0, "tools": [], "store": False}
    again = client.chat.completions.create(messages=parts, **asked, **ignored)
    assert again.choices[0].message.content == first.choices[0].message.content
    # What a client got can be sent back as it is.
    answered: Any = first.choices[0].message.model_dump()
    conversation = client.chat.completions.create(messages=[*plain, answered, *plain[1:]], **asked)
    assert conversation.usage is not None and first.usage is not None
    assert conversation.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_template_of_the_tokenizer_s_own() -> None:
    words = tokenizer("small")
    words.chat_template = "{{ messages[0]['content'] }}!"
    try:
        with running(ready(words=words)) as server:
            found = server.client().chat.completions.create(**GREEDY)
    finally:
        words.chat_template = None
    assert found.choices[0].message.content == decoded(greedy(a_model(), encoded("The mill?!"), 24))


@pytest.mark.parametrize("scheme", ["residual", "cascade"])
def test_a_pair_is_served_like_any_model(scheme: str) -> None:
    wanted = greedy(Pair.of(a_model(1), a_model(2), 0.7, scheme), chat_ids(), 24)
    with running(ready(Pair.of(a_model(1), a_model(2), 0.7, scheme))) as server:
        found = server.client().chat.completions.create(**GREEDY, logprobs=True)
    assert found.choices[0].message.content == decoded(wanted) != decoded(greedy(a_model(), chat_ids(), 24))


def test_models_health_and_metrics(server: Running, client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    assert server.send("/health", method="GET").body == b'{"status":"ok"}'
    names = {
        'kinfolk_requests_total{path="/v1/completions",status="200"}': 1,
        'kinfolk_requests_total{path="/v1/completions",status="400"}': 1,
        "kinfolk_generated_tokens_total": 6,
        "kinfolk_prompt_tokens_total": len(encoded(PROMPT)),
        'kinfolk_generations_total{end="done"}': 1,
        'kinfolk_request_seconds_count{path="/v1/completions"}': 2,
        "kinfolk_first_text_seconds_count": 1,
    }
    before = {name: server.metric(name) for name in names}
    client.completions.create(model=NAME, prompt=PROMPT, max_tokens=3, n=2, seed=1, temperature=0)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=NAME, prompt=PROMPT, max_tokens=0)
    assert {name: server.metric(name) - before[name] for name in names} == names
    assert server.metric("kinfolk_generations_running") == server.metric("kinfolk_generations_waiting") == 0
