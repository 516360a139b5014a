import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stories260k
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_family import make_tokenizer, rows, write_rows
from transformers import PreTrainedTokenizerFast

from kinfolk.errors import KinfolkError
from kinfolk.transfer.demonstrations import Demonstrations, read_demonstrations, repeated, split_by_hash
from kinfolk.transfer.dialogues import Dialogue, read_dialogues
from kinfolk.transfer.template import ChatTemplate, template_of

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
MARKED = (
    "{%- for m in messages %}{%- if m['role'] == 'assistant' %}{{ 'A: ' }}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{{ eos_token }}{%- else %}{{ 'Q: ' + m['content'] + '\n' }}{%- endif %}{%- endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerFast:
    made = make_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


def encode(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], path: Path, template: ChatTemplate
) -> Any:
    write_rows(path, [{"messages": messages}])
    return read_demonstrations(path, template, tokenizer, 10_000).items[0]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def runs(item: Any) -> list[np.ndarray]:
    """The stretches of response tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], item.response.astype(int), [0]])))
    return [item.ids[a:b] for a, b in edges.reshape(-1, 2)]


text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda found: bool(found.strip()) and "<|" not in found
)


@given(turns=st.lists(st.tuples(text, text), min_size=1, max_size=3), system=st.none() | text)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", ["default", "chatml", "marked"])
def test_what_is_marked_decodes_to_the_responses_and_their_ends(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    chatml: PreTrainedTokenizerFast,
    kind: str,
    turns: list[tuple[str, str]],
    system: str | None,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    messages = [{"role": "system", "content": system}] * (system is not None)
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    used, end = (chatml, "<|im_end|>") if kind == "chatml" else (tokenizer, "<|endoftext|>")
    (folder / "marked.jinja").write_text(MARKED)
    template = template_of(used, "here", folder / "marked.jinja" if kind == "marked" else None)
    item = encode(used, messages, folder / "turns.jsonl", template)
    assert [decoded(used, run) for run in runs(item)] == [answered + end for _, answered in turns]
    whole, _ = template.render(Dialogue("", tuple(messages)))
    assert decoded(used, item.ids) == whole
    # What stands before the first response has the tokens that it has when a reply is asked for.
    if kind != "marked":
        used.chat_template = template.source
        asked_for = used.apply_chat_template(
            messages[: len(messages) - 2 * len(turns) + 1], add_generation_prompt=True, return_dict=False
        )
        assert item.ids[: len(asked_for)].tolist() == asked_for
        used.chat_template = CHATML if kind == "chatml" else None


@pytest.mark.skipif(not stories260k.MODEL.exists(), reason="../shared/data/stories260K is not there")
def test_a_tokenizer_that_puts_a_space_before_every_text(tmp_path: Path) -> None:
    tokenizer = stories260k.load_tokenizer()
    template = template_of(tokenizer, "stories260K")
    read = read_demonstrations(write_rows(tmp_path / "rows.jsonl", rows(10)), template, tokenizer, 500)
    for item, row in zip(read.items, rows(10), strict=True):
        assert decoded(tokenizer, item.ids[item.response]) == row["response"] + "</s>"


GSM8K = stories260k.DATA / "gsm8k" / "test_first300.jsonl"


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data/gsm8k is not there")
def test_a_public_set(tokenizer: PreTrainedTokenizerFast) -> None:
    read = read_demonstrations(GSM8K, template_of(tokenizer, ""), tokenizer, 10_000)
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text("utf-8").splitlines()]
    assert [decoded(tokenizer, item.ids[item.response]) for item in read.items] == [
        answer + "<|endoftext|>" for answer in answers
    ]


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BAD_LINES: list[tuple[Any, str]] = [
    ({"messages": [{"content": "a"}, CHAT[1]]}, r":2: messages\[0\]: there is no 'role'"),
    ({"messages": [{"role": " ", "content": "a"}, CHAT[1]]}, ":2: message 1: a message without a role"),
    ({"messages": [{"role": "user"}, CHAT[1]]}, r":2: messages\[0\]: there is no 'content'"),
    ({"messages": [CHAT[0]]}, ":2: the last message is the user's"),
    ({"messages": [CHAT[1]]}, ":2: the first message is the assistant's"),
    ({"messages": []}, ":2: `messages` is no list"),
    ({"messages": ["hello"]}, r":2: messages\[0\]: not a message"),
    ({"messages": [CHAT[0], {"role": "assistant", "content": [1]}]}, r"messages\[1\]: 'content' holds list"),
    ({"messages": [{"role": "tool", "content": "x"}, *CHAT]}, ":2, with the default chat template: .* role tool"),
    ({"prompt": "a", "response": " \n"}, ":2: message 2: an empty response"),
    ({"prompt": "a"}, ":2: no messages, and no prompt with its response; the fields are prompt"),
    ({"prompt": 3, "response": "b"}, ":2: 'prompt' holds int"),
    ({"prompt": "a", "response": "b \ud83d"}, ":2: 'response' holds half of a surrogate pair"),
    ({"prompt": "a <|endoftext|> b", "response": "c"}, ":2: the text holds '<|endoftext|>'".replace("|", r"\|")),
    ("{broken", ":2: broken JSON"),
    ("[1, 2]", ":2: the line holds list"),
    ({"prompt": "a " * 200, "response": "b"}, ":2: .* tokens, where 60 are the most"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES)
def test_a_bad_line_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, line: Any, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    broken = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(rows(1)[0]) + "\n" + broken + "\n", "utf-8")
    with pytest.raises(KinfolkError, match=problem) as caught:
        read_demonstrations(path, template_of(tokenizer, "here"), tokenizer, 60)
    assert str(path) in str(caught.value) and "fix:" in str(caught.value)


def test_files_that_cannot_be_read(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    write_rows(tmp_path / "rows.csv", rows(2))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "response": "b"}\n' * 99)[:-20])
    for name in ("empty.jsonl", "blank.jsonl", "rows.csv", "cut.jsonl.gz", "absent.jsonl"):
        with pytest.raises(KinfolkError, match=name):
            list(read_dialogues(tmp_path / name))


def test_every_form_gives_the_same_dialogue(tmp_path: Path) -> None:
    forms = [
        {"messages": CHAT},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "completion": "b", "template": "ignored"},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "input": "", "output": "b"},
    ]
    content = "\n".join(map(json.dumps, forms)).encode()
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(content))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("a.jsonl.bz2", "a.jsonl.gz"):
        assert [list(found.messages) for found in read_dialogues(tmp_path / name)] == [CHAT] * len(forms)
    write_rows(tmp_path / "b.jsonl", [{"instruction": "do", "input": "this", "output": "b"}])
    assert next(read_dialogues(tmp_path / "b.jsonl")).messages[0]["content"] == "do\n\nthis"


def test_what_is_too_long_is_cut_at_its_end(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    content = [rows(1)[0], {"prompt": "a", "response": "b " * 100}, {"prompt": "a " * 100, "response": "b"}]
    path = write_rows(tmp_path / "rows.jsonl", content)
    template = template_of(tokenizer, "here")
    whole, cut = (read_demonstrations(path, template, tokenizer, most, "cut") for most in (10_000, 60))
    assert (cut.cut, cut.left_out, len(cut)) == (2, 1, 2) and (whole.cut, len(whole)) == (0, 3)
    assert cut.items[1].ids.tolist() == whole.items[1].ids[:60].tolist()
    assert not cut.items[1].response[:10].all() and cut.items[1].response[-1]
    with pytest.raises(KinfolkError, match="no demonstration has a response within the first 5 tokens"):
        read_demonstrations(path, template, tokenizer, 5, "cut")


def test_the_split_depends_on_content_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    template = template_of(tokenizer, "here")

    def read(content: list[Any]) -> Demonstrations:
        return read_demonstrations(write_rows(tmp_path / "rows.jsonl", content), template, tokenizer, 100)

    content = rows(300)
    train, held_out = split_by_hash(read(content), 0.2, "")
    assert len(train) + len(held_out) == 300 and 35 <= len(held_out) <= 85
    assert repeated(held_out, train) == 0
    twice = split_by_hash(read([*reversed(content), *content[:100]]), 0.2, "")
    assert {item.ids.tobytes() for item in twice[1].items} == {item.ids.tobytes() for item in held_out.items}
    assert repeated(read(content[:100]), train) == 100 - repeated(read(content[:100]), held_out)
    with pytest.raises(KinfolkError, match=r"of 1 demonstrations a share of 0\.2 leaves"):
        split_by_hash(read(content[:1]), 0.2, "rows")


BAD_TEMPLATES = [
    ("{% for m in messages %}", "cannot render it"),
    ("{{ raise_exception('no') }}", "cannot render it: no"),
    ("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}", "generation prompt does not end"),
    ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "turn by turn"),
    ("{% generation %}x{% endgeneration %}{% generation %}y{% endgeneration %}", "marks 2 of 1 responses"),
    ("no responses at all", "generation prompt does not end"),
]


@pytest.mark.parametrize(("source", "problem"), BAD_TEMPLATES)
def test_a_bad_template_is_told_before_any_line(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, source: str, problem: str
) -> None:
    (tmp_path / "bad.jinja").write_text(source)
    with pytest.raises(KinfolkError, match=problem) as caught:
        template_of(tokenizer, "here", tmp_path / "bad.jinja")
    assert "bad.jinja" in str(caught.value)


def test_a_tokenizer_that_does_not_fit_its_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(KinfolkError, match="ends a turn with the tokenizer's EOS token, and it has none"):
        template_of(endless, "here")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "[UNK]": 2, "<s>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    few = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", unk_token="[UNK]")
    with pytest.raises(KinfolkError, match="cannot encode the text of the default chat template"):
        template_of(few, "here")
    with pytest.raises(KinfolkError, match="the template cannot be read"):
        template_of(tokenizer, "here", tmp_path / "absent.jinja")
