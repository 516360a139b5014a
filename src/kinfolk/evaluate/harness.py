"""A loaded checkpoint as lm-eval's own Hugging Face model: not a figure differs, only what is said on the way does.

EleutherAI's lm-eval (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) makes the prompts, asks the
model and computes the metrics; what is added here is progress and errors that a user can mend.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import tqdm
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError

_TALKERS = ("lm_eval", "datasets", "evaluate")


class Harness(HFLM):  # type: ignore[misc]
    """lm-eval's model for causal checkpoints, around one that is loaded already.

    `requests` counts what it was asked since `told` was set, and `cut` what did not fit the model's context, so that
    lm-eval took its beginning away.
    """

    def __init__(self, path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        """Wrap the model. KinfolkError for a tokenizer without the token that lm-eval puts before a text."""
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise KinfolkError(
                "the tokenizer has neither BOS nor EOS, and lm-eval begins texts with one of them",
                where=path,
                fix="set bos_token or eos_token in tokenizer_config.json",
            )
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        self.path = path
        self.begin(lambda done, of: None)

    def begin(self, told: Callable[[int, int], None]) -> None:
        """Count anew, and tell `told` how many texts are done, of how many."""
        self.requests = self.cut = 0
        self._told, self._done = told, 0
        self.set_cache_hook(self)

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """What lm-eval calls for each text that is done, to keep it."""
        if kind != "loglikelihood_rolling":
            self._advance(1)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, as lm-eval has them."""
        self.requests += len(requests)
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows."""
        self.requests += sum(-(-len(self.tok_encode(*request.args)) // self.max_length) for request in requests)
        answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations. KinfolkError where the context leaves no room for them."""
        self.requests += len(requests)
        for request in requests:
            text, settings = request.args
            room = self.max_length - int(settings.get("max_gen_toks", self.max_gen_toks))
            if room < 1:
                raise KinfolkError(
                    f"the task writes answers of {self.max_length - room} tokens, and the model was made for "
                    f"{self.max_length}",
                    where=self.path,
                    fix="leave the task out for this model",
                )
            self.cut += len(self.tok_encode(text)) > room
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        is_rolling = bool(requests) and requests[0][0] is None
        for _, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise KinfolkError(
                    f"the task has an answer of {len(continuation)} tokens, the model was made for {self.max_length}",
                    where=self.path,
                    fix="leave the task out for this model",
                )
            self.cut += len(context) + len(continuation) > self.max_length + 1
        options["disable_tqdm"] = True
        answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        if any(math.isnan(value) for value, _ in answers):
            raise KinfolkError(
                "the model's probabilities are not numbers",
                where=self.path,
                fix="use a checkpoint from before the run diverged",
            )
        if is_rolling:
            self._advance(len(requests))
        return answers

    def _advance(self, count: int) -> None:
        self._done += count
        self._told(self._done, self.requests)


@contextmanager
def silence() -> Iterator[None]:
    """Keep lm-eval and what it stands on from printing, logging, and drawing bars of their own."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    begin: Any = tqdm.tqdm.__init__

    def hidden(bar: Any, *arguments: Any, **options: Any) -> None:
        begin(bar, *arguments, **(options | {"disable": True}))

    for logger in loggers:
        logger.setLevel(logging.ERROR)
    tqdm.tqdm.__init__ = hidden
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        tqdm.tqdm.__init__ = begin
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
