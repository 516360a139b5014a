"""The next token of an answer: drawn from the model's logits by the request's own generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TopPLogitsWarper

from kinfolk.errors import KinfolkError

LEAST_LOGPROB = -9999.0
"""What stands for a log-probability of minus infinity, which JSON cannot write (as in OpenAI's API)."""

LEAST_TEMPERATURE = 1e-30
"""Less is 0 in float32."""


@dataclass(frozen=True)
class Logprobs:
    """Natural log-probabilities under the model itself: before temperature and top-p."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """Token ids and log-probabilities, the likeliest first."""


class Draw(LogitsProcessor):
    """Draws the next token and leaves it as the only one that is possible.

    So `generate`, asked to be greedy, takes it: the draw depends on nothing but logits and this request's seed, where
    transformers' own sampling uses the process's one generator.
    """

    def __init__(
        self, vocabulary: int, temperature: float, top_p: float, generator: torch.Generator, logprobs: int | None
    ) -> None:
        """Only ids below `vocabulary` are drawn: rows beyond the tokenizer are padding. `logprobs` counts the top."""
        self._vocabulary, self._temperature, self._logprobs = vocabulary, temperature, logprobs
        self._generator = generator
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.last: Logprobs | None = None
        """Those of the token that was drawn last, if asked for."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (1, vocabulary) with one finite entry. KinfolkError where the model computes NaN."""
        logits = scores[0].float()
        known = logits[: self._vocabulary]
        highest = known.max()
        if not torch.isfinite(highest):
            raise KinfolkError("the model computes logits that are no numbers")
        drawn = self._drawn(input_ids, known, highest)
        if self._logprobs is not None:
            self.last = _logprobs(logits, drawn, self._logprobs)
        only = torch.full_like(scores, -torch.inf)
        only[0, drawn] = 0
        return only

    def _drawn(self, input_ids: Tensor, logits: Tensor, highest: Tensor) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        # With the highest at 0 no temperature makes one overflow.
        scaled = (logits - highest)[None] / max(self._temperature, LEAST_TEMPERATURE)
        if self._nucleus is not None:
            scaled = self._nucleus(input_ids, scaled)
        return int(torch.multinomial(scaled.softmax(-1)[0], 1, generator=self._generator))


def generator_of(seed: int, answer: int, device: torch.device) -> torch.Generator:
    """A generator of its own for each of the answers to one prompt."""
    mixed = np.random.SeedSequence([seed % 2**64, answer]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed))


def _logprobs(logits: Tensor, drawn: int, count: int) -> Logprobs:
    every = logits.log_softmax(-1)
    top = every.topk(min(count, len(every)))
    pairs = zip(top.indices.tolist(), top.values.clamp(min=LEAST_LOGPROB).tolist(), strict=True)
    return Logprobs(max(float(every[drawn]), LEAST_LOGPROB), tuple(pairs))
