"""A conversation with a model or a pair: messages to token ids by the chat template, an answer as it is made."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from kinfolk.errors import KinfolkError, in_short
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.record import check_fits
from kinfolk.transfer.template import DEFAULT_TEMPLATE

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn; temperature 0 is greedy."""

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good in (
            ("max_new_tokens", self.max_new_tokens >= 1),
            ("temperature", 0 <= self.temperature <= 100),
            ("top_p", 0 < self.top_p <= 1),
        ):
            if not good:
                raise KinfolkError(
                    f"{getattr(self, name)} is out of range",
                    where=name,
                    fix="use 1 or more tokens, a temperature from 0 to 100, top-p above 0 and at most 1",
                )


@dataclass(frozen=True)
class Answer:
    """What was answered. `finish` is "stop" at the end of the turn and "length" where the room ended."""

    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    finish: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "tokens_per_second": self.tokens / self.seconds}


def with_value(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    value: PreTrainedModel,
    value_tokenizer: PreTrainedTokenizerBase,
    value_folder: Path,
    alpha: float | None = None,
) -> Pair:
    """The pair of a model and a value network from a folder, in the scheme and with the alpha of its training.

    These stand in `transfer.json` where kinfolk trained it; residual and 1 otherwise. If only the value network's
    tokenizer has a chat template, `tokenizer` gets it. Raises KinfolkError for another vocabulary, and for what is no
    value network.
    """
    if tokenizer.get_vocab() != value_tokenizer.get_vocab():
        raise KinfolkError(
            "the value network has another vocabulary than the model",
            where=str(value_folder),
            fix="pair them by a translation (docs/transfer.md), save the pair, and chat with its folder",
        )
    if not tokenizer.chat_template and value_tokenizer.chat_template:
        tokenizer.chat_template = value_tokenizer.chat_template
    record = check_fits(value_folder, Path(base.name_or_path or "the model"), tokenizer) or {
        "scheme": "residual",
        "alpha": 1.0,
    }
    return Pair.of(base, value, record["alpha"] if alpha is None else alpha, record["scheme"])


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
) -> Answer:
    """Continue a conversation, whose last message is the user's; the streamer gets tokens as they are made.

    Raises KinfolkError where the template refuses the messages, and where they fill the model's context.
    """
    ids = prompt_ids(tokenizer, messages)
    context = getattr(model.config, "max_position_embeddings", None)
    room = sampling.max_new_tokens if not isinstance(context, int) else min(sampling.max_new_tokens, context - len(ids))
    if room < 1:
        raise KinfolkError(
            f"the conversation has {len(ids)} tokens, and the model's context {context}", fix="start a new one"
        )
    settings = _settings(model, tokenizer, sampling, room)
    given = torch.tensor([ids], device=model.device)
    torch.manual_seed(sampling.seed)
    untyped: Any = model
    start = time.perf_counter()
    output = untyped.generate(
        given, attention_mask=torch.ones_like(given), generation_config=settings, streamer=streamer
    )[0]
    seconds = time.perf_counter() - start
    new = output[len(ids) :].tolist()
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return Answer(text, len(ids), len(new), seconds, "stop" if new[-1] in ends else "length")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of the messages and the beginning of an answer, by the tokenizer's chat template or the default one."""
    own: Any = tokenizer.chat_template
    template = (own.get("default") if isinstance(own, dict) else own) or DEFAULT_TEMPLATE.read_text("utf-8")
    # Templates write a BOS token, which a tokenizer without one would have them call by an undefined name.
    names = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    untyped: Any = tokenizer
    try:
        text = untyped.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **names
        )
    except Exception as error:  # jinja2's own, or whatever the template's expressions raise
        raise KinfolkError(
            f"the chat template cannot render the conversation: {in_short(error)}", fix="mend the template"
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, room: int
) -> GenerationConfig:
    untyped: Any = GenerationConfig
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    end = tokenizer.eos_token_id if end is None else end
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    settings: GenerationConfig = untyped(
        max_new_tokens=room,
        eos_token_id=end,
        pad_token_id=0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        **(drawn if sampling.temperature else {"do_sample": False}),
    )
    return settings
