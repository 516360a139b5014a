"""Chat templates: a dialogue becomes one text, and the template's spans say which part of it is a response."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from kinfolk.errors import KinfolkError, in_short
from kinfolk.transfer.dialogues import ASSISTANT, Dialogue

DEFAULT_TEMPLATE = Path(__file__).with_name("default_template.jinja")
"""Marks turns by plain text, which every tokenizer can encode, and ends a response with the tokenizer's EOS."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span = tuple[int, int]
"""Characters of a text, the last one excluded."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokenizer's special tokens that it writes."""

    source: str
    special: tuple[str, ...]
    variables: dict[str, Any]
    """`bos_token`, `eos_token` and the like, as the template names them."""
    name: str
    """Where it comes from, for messages."""
    origin: str
    """The same without a path, for records."""

    def render(self, dialogue: Dialogue) -> tuple[str, list[Span]]:
        """The whole text, and where in it each response stands with the end of its turn.

        Raises KinfolkError, with the dialogue's place, where the template refuses it or where its responses cannot be
        told from the rest.
        """
        for message in dialogue.messages:
            found = next((token for token in self.special if token and token in message["content"]), None)
            if found is not None:
                raise KinfolkError(
                    f"the text holds {found!r}, which the tokenizer takes for a special token",
                    where=dialogue.where,
                    fix="remove it from the text, or remove the line",
                )
        if _GENERATION.search(self.source):
            return self._marked(dialogue)
        return self._turn_by_turn(dialogue)

    def _marked(self, dialogue: Dialogue) -> tuple[str, list[Span]]:
        """Spans that the template itself marks by {% generation %}, with the special token that ends the turn."""
        text, found = self._text(dialogue, len(dialogue.messages), marked=True)
        spans = [(start, self._with_end(text, end)) for start, end in found if end > start]
        responses = sum(message["role"] == ASSISTANT for message in dialogue.messages)
        if len(spans) != responses:
            raise KinfolkError(
                f"the template marks {len(spans)} of {responses} responses by {{% generation %}}",
                where=f"{dialogue.where}, with {self.name}",
                fix="mend the template",
            )
        return text, spans

    def _with_end(self, text: str, end: int) -> int:
        """The end of a span, moved behind a special token that follows it."""
        return end + next((len(token) for token in self.special if token and text.startswith(token, end)), 0)

    def _turn_by_turn(self, dialogue: Dialogue) -> tuple[str, list[Span]]:
        """Spans by rendering what is before each response with the generation prompt, and what is with it."""
        text, _ = self._text(dialogue, len(dialogue.messages))
        spans = []
        for index, message in enumerate(dialogue.messages):
            if message["role"] != ASSISTANT:
                continue
            before, _ = self._text(dialogue, index, prompted=True)
            after, _ = self._text(dialogue, index + 1)
            if not (text.startswith(after) and after.startswith(before)):
                raise KinfolkError(
                    "the template does not write a dialogue turn by turn, so that its responses cannot be told from "
                    "the rest",
                    where=f"{dialogue.where}, with {self.name}",
                    fix="mark them by {% generation %} ... {% endgeneration %} in the template, or use another one",
                )
            written, content = after[len(before) :], message["content"].strip()
            # Up to the first special token, or all of it.
            ends = [written.index(token) + len(token) for token in self.special if token and token in written]
            length = min(ends, default=len(written))
            lead, found, _ = written[:length].partition(content)
            self._check_lead(lead, bool(found), before, dialogue, index)
            spans.append((len(before), len(before) + length))
        return text, spans

    def _check_lead(self, lead: str, found: bool, before: str, dialogue: Dialogue, index: int) -> None:
        """Refuse a turn's beginning that is no response: a lead may stand there (an empty thought, in some templates),
        but not from a template that never asks for a response.
        """
        if not found or (lead.strip() and before == self._text(dialogue, index)[0]):
            raise KinfolkError(
                "the template's generation prompt does not end where the response begins",
                where=f"{dialogue.where}, with {self.name}",
                fix="have it honour add_generation_prompt, or mark responses by {% generation %}",
            )

    def _text(
        self, dialogue: Dialogue, messages: int, prompted: bool = False, marked: bool = False
    ) -> tuple[str, list[Span]]:
        render: Any = render_jinja_template
        try:
            texts, spans = render(
                conversations=[list(dialogue.messages[:messages])],
                chat_template=self.source,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompted,
                **self.variables,
            )
        except Exception as error:  # jinja2's own, or whatever the template's expressions raise
            raise KinfolkError(
                f"the chat template cannot render it: {in_short(error)}",
                where=f"{dialogue.where}, with {self.name}",
                fix="mend the line, or use another template",
            ) from error
        return texts[0], list(spans[0]) if marked else []


def template_of(tokenizer: PreTrainedTokenizerBase, where: str, file: Path | None = None) -> ChatTemplate:
    """The template of a file, else the tokenizer's own, else the default one; tried on a dialogue of two words.

    Raises KinfolkError, with `where` (the tokenizer's place) or the file, for one that cannot be used.
    """
    own: Any = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if file is not None:
        source, name, origin = _read(file), str(file), file.name
    elif own:
        source, name, origin = str(own), f"the chat template of {where}", "the base's own"
    else:
        source, name, origin = _read(DEFAULT_TEMPLATE), "the default chat template", "the default one"
    variables: dict[str, Any] = {"bos_token": "", **tokenizer.special_tokens_map}
    if "eos_token" in source and not tokenizer.eos_token:
        raise KinfolkError(
            f"{name} ends a turn with the tokenizer's EOS token, and it has none",
            where=where,
            fix="name an eos_token in its tokenizer_config.json, or give a template that needs none",
        )
    template = ChatTemplate(source, tuple(map(str, tokenizer.all_special_tokens)), variables, name, origin)
    trial = Dialogue("a dialogue of two words", _TRIAL)
    text, _ = template.render(trial)
    _check_encodes(tokenizer, text, name, where)
    return template


_TRIAL = ({"role": "user", "content": "one"}, {"role": ASSISTANT, "content": "two"})


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KinfolkError(
            f"the template cannot be read: {in_short(error)}", where=str(path), fix="give a Jinja file in UTF-8"
        ) from error


def _check_encodes(tokenizer: PreTrainedTokenizerBase, text: str, name: str, where: str) -> None:
    """Refuse a template whose marks the tokenizer does not have."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "".join(decoded.split()) != "".join(text.split()):
        raise KinfolkError(
            f"the tokenizer cannot encode the text of {name}: {text!r} comes back as {decoded!r}",
            where=where,
            fix="give another template",
        )
