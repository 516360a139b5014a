"""What benchmarks/transfer.py measures of a base with what was post-trained, on demonstrations that nothing has seen.

Models run over the development and test responses once; a weight alpha then costs a sum of logits. Greedy decoding
gives exactly the expected answer where the most probable token is the expected one at every position of it, so that
exact answers need no decoding; their format does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from progressive import HELD_OUT_CHARACTERS
from torch import Tensor, nn
from transfer_task import is_of_format, read_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.evaluate.load import separator_of
from kinfolk.evaluate.loss import encode_documents, score
from kinfolk.transfer.acceptance import acceptance
from kinfolk.transfer.base_logits import scored_logits
from kinfolk.transfer.batches import Batch
from kinfolk.transfer.chat import prompt_ids
from kinfolk.transfer.demonstrations import read_demonstrations
from kinfolk.transfer.objective import divergence, pair_logits
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.sources import context_of
from kinfolk.transfer.template import template_of
from kinfolk.transfer.training import all_batches

SETS = ("templated", "real")
ALPHAS = tuple(step / 8 for step in range(1, 13))
MOST_NEW_TOKENS = 24
CALIBRATION_BINS = 10
WINDOW = 256
TEXT_EVERY, TEXT_CHARACTERS = 5, 2_000
"""Of the test part of the pretraining text, on which damage is measured: every fifth book, so many characters."""

Logits = dict[str, Tensor]
"""By "set-part": (scored positions, vocabulary) in float32."""


@dataclass(frozen=True)
class Part:
    """The demonstrations of one set and part in a base's tokens."""

    batches: list[Batch]
    targets: Tensor
    """(scored,)"""
    owner: Tensor
    """(scored,): which demonstration each belongs to."""


class Target:
    """A base, and what it predicts at every scored position."""

    def __init__(self, folder: Path, task: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.task, self.model, self.tokenizer = folder, task, model.eval(), tokenizer

    @cached_property
    def parts(self) -> dict[str, Part]:
        template = template_of(self.tokenizer, str(self.folder))
        found = {}
        for name in (f"{each}-{part}" for each in SETS for part in ("development", "test")):
            path = self.task / f"{name}.jsonl"
            read = read_demonstrations(path, template, self.tokenizer, context_of(self.model), "cut")
            batches = all_batches(read, 1024)
            owners = [torch.tensor(batch.index)[:, None].expand(batch.scored.shape)[batch.scored] for batch in batches]
            found[name] = Part(batches, torch.cat([batch.targets for batch in batches]), torch.cat(owners))
        return found

    @cached_property
    def logits(self) -> Logits:
        return self.logits_of(self.model)

    def logits_of(self, model: PreTrainedModel) -> Logits:
        """Of any model with the base's tokenizer."""
        return self.each(lambda batch: scored_logits(model, batch))

    @torch.no_grad()
    def each(self, compute: Callable[[Batch], Tensor]) -> Logits:
        return {name: torch.cat([compute(batch) for batch in part.batches]) for name, part in self.parts.items()}

    def changes(self, pair: Pair) -> Logits:
        """The value logits of a pair of two vocabularies at the scored positions: one text at a time."""

        def of_batch(batch: Batch) -> Tensor:
            rows = []
            for ids, scored in zip(batch.inputs, batch.scored, strict=True):
                places = scored.nonzero().squeeze(1)
                text = ids[None, : int(places[-1]) + 1]
                rows.append(pair.value_logits(text, logits_to_keep=places)[0])
            return torch.cat(rows)

        return self.each(of_batch)

    def losses(self, logits: Logits, part: str) -> dict[str, float]:
        """Nats per response token, by set."""
        return {
            each: nn.functional.cross_entropy(logits[f"{each}-{part}"], self.parts[f"{each}-{part}"].targets).item()
            for each in SETS
        }

    def development_loss(self, logits: Logits) -> float:
        """The mean over all development tokens: what training stops by, too."""
        losses = self.losses(logits, "development")
        tokens = {each: len(self.parts[f"{each}-development"].targets) for each in SETS}
        return sum(losses[each] * tokens[each] for each in SETS) / sum(tokens.values())

    def figures(self, logits: Logits, tuned: Logits) -> dict[str, Any]:
        """What can be said from logits on the test parts; `tuned` are the fully fine-tuned base's."""
        name = "templated-test"
        part, found = self.parts[name], logits[name]
        right = found.argmax(-1) == part.targets
        wrong = torch.unique(part.owner[~right])
        rows = read_rows(self.task / f"{name}.jsonl")
        exact = [index not in set(wrong.tolist()) for index in range(len(rows))]
        templates = [row["template"] for row in rows]
        return {
            "loss": self.losses(logits, "test"),
            "exact": sum(exact) / len(exact),
            "exact by template": {
                each: float(np.mean([hit for hit, of in zip(exact, templates, strict=True) if of == each]))
                for each in sorted(set(templates))
            },
            "calibration error": calibration_error(found, part.targets),
            "KL from tuned": (divergence(tuned[name], found) / len(found)).item(),
            "agreement with tuned": (tuned[name].argmax(-1) == found.argmax(-1)).double().mean().item(),
        }

    @torch.no_grad()
    def format_score(self, model: PreTrainedModel) -> float:
        """Share of templated test instructions that are answered in their format, greedy, in one left-padded batch."""
        rows = read_rows(self.task / "templated-test.jsonl")
        prompts = [prompt_ids(self.tokenizer, [{"role": "user", "content": row["prompt"]}]) for row in rows]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        untyped: Any = model
        output = untyped.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=MOST_NEW_TOKENS,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        answers = self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        hits = [is_of_format(row["template"], answer.strip()) for row, answer in zip(rows, answers, strict=True)]
        return sum(hits) / len(hits)

    def bits_per_byte(self, model: PreTrainedModel, texts: list[str]) -> float:
        """On texts like those of pretraining."""
        encoded = encode_documents(self.tokenizer, texts)
        separator = separator_of(self.model, self.tokenizer)
        return score(model, encoded, separator, WINDOW, "cpu", stride=WINDOW).bits_per_byte


def pretraining_texts(test: Path) -> list[str]:
    """Beginnings of held-out books, evenly spread over those of benchmarks/progressive.py's test part."""
    whole = test.read_text("utf-8")
    starts = range(0, len(whole), (HELD_OUT_CHARACTERS + 2) * TEXT_EVERY)
    return [whole[start : start + TEXT_CHARACTERS] for start in starts]


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Expected calibration error of the most probable token: the mean of |confidence - accuracy| over equal bins."""
    confidence, chosen = logits.softmax(-1).max(-1)
    right = (chosen == targets).double()
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = [
        (confidence[bins == each].double().mean() - right[bins == each].mean()).abs() * (bins == each).double().mean()
        for each in range(CALIBRATION_BINS)
        if bool((bins == each).any())
    ]
    return float(torch.stack(gaps).sum())


def best_alpha(target: Target, combined: Callable[[float], Logits]) -> float:
    """That with the lowest loss on development responses."""
    return min(ALPHAS, key=lambda alpha: target.development_loss(combined(alpha)))


def mean_acceptance(target: Logits, draft: Logits) -> dict[str, float]:
    """Expected share of a draft's tokens that the target takes over at the test responses, by set."""
    return {each: acceptance(target[f"{each}-test"], draft[f"{each}-test"]).mean().item() for each in SETS}


def cascade_logits(target: Target, pair: Pair) -> Logits:
    return target.each(lambda batch: pair_logits(pair, batch))
