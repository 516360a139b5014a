"""The model that is served, with all that every answer needs of it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.data.tokenizer import vocabulary_size
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import separator_of
from kinfolk.serve.memory import SHORTEST_CONTEXT, check_memory
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.pieces import pieces_of

UNKNOWN_CONTEXT = 4096
"""Tokens of context of a model whose config names none, as recurrent models do."""


@dataclass(frozen=True)
class Served:
    """A model and its tokenizer, under the id that requests name."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    decoder: PreTrainedTokenizerBase
    """The tokenizer's twin for the thread that generates: one tokenizer must not be used by two threads at once."""

    context: int
    """Most tokens of a prompt and its answer together."""

    vocabulary: int
    """Token ids are below it."""

    begin: int | None
    """The token that stands for an empty prompt."""

    ends: frozenset[int]
    """Tokens that end a text."""

    bytes_of: tuple[bytes | None, ...]
    """Of each token; empty where the tokenizer does not tell."""

    most_bytes: int | None
    """A text of more bytes is certainly longer than the context; None where the tokenizer does not tell."""

    def text(self, ids: Any) -> str:
        """Text of an answer's ids, without special tokens. Only for the thread that generates."""
        return str(self.decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def spelled(self, token: int) -> tuple[str, bytes | None]:
        """A token as log-probabilities show it, and its bytes; those that are no text by themselves are written out.

        Only for the thread that generates.
        """
        known = self.bytes_of[token] if token < len(self.bytes_of) else None
        if known is None:
            text = str(self.decoder.decode([token], clean_up_tokenization_spaces=False))
            return text, text.encode() if self.bytes_of else None
        try:
            return known.decode(), known
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known), known


def served(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, context: int | None = None) -> Served:
    """Make a model ready; `context` may be shorter than the model's own.

    Of the checkpoint's generation settings only the ends of text are kept: what else an answer depends on stands in
    the request. Raises KinfolkError for a context that the model does not have or whose one request would not fit into
    memory, and for a tokenizer with more tokens than the model has.
    """
    own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    own = own if isinstance(own, int) and own > 0 else None
    if context is not None and not SHORTEST_CONTEXT <= context <= (own or context):
        raise KinfolkError(
            f"the model has a context of {own} tokens, not {context}" if own else f"{context} tokens are no context",
            where="--context",
            fix=f"give {SHORTEST_CONTEXT} to {own}" if own else f"give {SHORTEST_CONTEXT} or more",
        )
    entries, rows = vocabulary_size(tokenizer), _rows(model)
    if entries > rows:
        raise KinfolkError(
            f"the tokenizer has {entries} tokens, the model {rows}", where=name, fix="use the model's own tokenizer"
        )
    bytes_of = _bytes_of(tokenizer)
    chosen = context or own or UNKNOWN_CONTEXT
    check_memory(model, chosen)
    ends = _ends(model, tokenizer)
    settings: Any = GenerationConfig
    model.generation_config = settings(eos_token_id=sorted(ends) or None, pad_token_id=_pad(tokenizer))
    return Served(
        name=name,
        model=model,
        tokenizer=tokenizer,
        decoder=copy.deepcopy(tokenizer),
        context=chosen,
        vocabulary=entries,
        begin=separator_of(model, tokenizer),
        ends=ends,
        bytes_of=bytes_of,
        most_bytes=chosen * _longest(tokenizer, bytes_of) if bytes_of else None,
    )


def device_of(name: str | None) -> torch.device:
    """The device of a name, by default a GPU where there is one. Raises KinfolkError for one that is not here."""
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("no device to generate on")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KinfolkError(
            f"there is no device {chosen!r} here", where="--device", fix="use cpu, cuda or cuda:N"
        ) from error
    return device


def _rows(model: PreTrainedModel) -> int:
    """Token ids that a model can read; of a pair with one vocabulary, that both of its models can."""
    parts = [model]
    if isinstance(model, Pair):
        parts = [model.base] if model.translation is not None else [model.base, model.value]
    embeddings: list[Any] = [part.get_input_embeddings() for part in parts]
    return min(int(embedding.weight.shape[0]) for embedding in embeddings)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = tokenizer.eos_token_id if found is None else found
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _bytes_of(tokenizer: PreTrainedTokenizerBase) -> tuple[bytes | None, ...]:
    try:
        return pieces_of(tokenizer).bytes_of
    except KinfolkError:  # its bytes cannot be read off it
        return ()


def _longest(tokenizer: PreTrainedTokenizerBase, bytes_of: tuple[bytes | None, ...]) -> int:
    """Bytes of the longest token, special ones by their names."""
    return max(len(bytes_of[index] or name.encode()) for name, index in tokenizer.get_vocab().items())
