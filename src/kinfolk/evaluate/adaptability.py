"""How well a model bears being changed: its loss after weight noise, and after a short fine-tune.

Springer et al. (arXiv 2503.19206) find that models become more sensitive to both the longer they are trained. Only the
abstract could be read: that the noise is scaled by each parameter's deviation at initialisation is recalled. Ours are
the factor, the number of draws, the few tuning steps, and that the text tuned on is split in two, one part to tune on
and one to measure what was gained.
"""

import copy
import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.loss import document_losses, evaluation_mode, summary
from kinfolk.evaluate.measure import Loaded
from kinfolk.evaluate.windows import Document
from kinfolk.train.model import new_model

_LOGITS_AT_ONCE = 2**26
_TUNED_SHARE = 0.8


@dataclass(frozen=True)
class Trial:
    """What is done to every model alike."""

    noise: float = 0.2
    """Standard deviation of the noise, in those of the weights when they were drawn."""
    draws: int = 3
    """Of the noise; the mean and the range of the losses are reported."""
    steps: int = 32
    """Updates of the fine-tune."""
    rows: int = 8
    """Sequences of context length in an update."""
    learning_rate: float = 1e-4
    """Of AdamW (betas 0.9 and 0.999, no weight decay), constant."""
    seed: int = 0


def adaptability(
    loaded: Loaded,
    documents: list[Document],
    tuning: list[Document] | None,
    context_length: int,
    stride: int | None,
    trial: Trial,
) -> dict[str, Any]:
    """Loss on `documents` as it is, after noise and, with documents for tuning, after a short fine-tune on these.

    A function of the model, the documents and the trial, on a CPU to the last bit; the model is left as it was. Losses
    are in nats per token; `noise` and `tuning` hold their `increase` over the loss of the untouched model.
    """

    def loss(model: PreTrainedModel, on: list[Document]) -> float:
        return summary(document_losses(model, on, loaded.separator, context_length, loaded.device, stride)).loss

    before = loss(loaded.model, documents)
    after = [loss(noisy(loaded.model, trial.noise, trial.seed + draw), documents) for draw in range(trial.draws)]
    found: dict[str, Any] = {
        "trial": asdict(trial),
        "loss": before,
        "noise": {
            "loss": float(np.mean(after)),
            "increase": float(np.mean(after)) - before,
            "lowest": min(after),
            "highest": max(after),
        },
        "tuning": None,
    }
    if tuning is not None:
        sequences, held_out = split(tuning, loaded.separator, context_length)
        tuned = fine_tuned(loaded.model, sequences, trial, loaded.device)
        own_before, own_after, on_text = loss(loaded.model, held_out), loss(tuned, held_out), loss(tuned, documents)
        found["tuning"] = {
            "own_loss_before": own_before,
            "own_loss": own_after,
            "gain": own_before - own_after,
            "loss": on_text,
            "increase": on_text - before,
        }
    return found


@torch.no_grad()
def noisy(model: PreTrainedModel, noise: float, seed: int) -> PreTrainedModel:
    """A copy with Gaussian noise on every parameter: `noise` times the deviation that it was drawn with.

    The deviation is measured on fresh weights of the same config; what begins as a constant (norms, biases) gets none.
    The noise of a tensor depends on its name, its shape and the seed.
    """
    changed: PreTrainedModel = copy.deepcopy(model)
    fresh = dict(new_model(changed.config, seed).named_parameters())
    for name, parameter in changed.named_parameters():
        deviation = float(fresh[name].std(correction=0)) if fresh[name].numel() > 1 else 0.0
        number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.add_((noise * deviation * drawn).to(parameter))
    return changed


def fine_tuned(
    model: PreTrainedModel, sequences: NDArray[np.int64], trial: Trial, device: torch.device | str
) -> PreTrainedModel:
    """A copy after `trial.steps` updates by AdamW on sequences (rows, context + 1), in an order that the seed draws."""
    changed: PreTrainedModel = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(changed.parameters(), lr=trial.learning_rate, weight_decay=0.0)
    with evaluation_mode(changed):  # no dropout: what is measured is the model
        for rows in _batches(len(sequences), trial):
            _update(changed, torch.from_numpy(sequences[rows]).to(device), optimizer)
    return changed


def split(
    documents: list[Document], separator: int | None, context_length: int
) -> tuple[NDArray[np.int64], list[Document]]:
    """The first four fifths of the tokens as sequences (rows, context + 1) to tune on; the rest as documents to score.

    The document at the border goes to both, in two parts. KinfolkError for a text of fewer than five sequences.
    """
    prefix = [] if separator is None else [separator]
    total = sum(len(ids) for ids, _ in documents)
    if total < 5 * (context_length + 1):
        raise KinfolkError(
            f"{total} tokens to tune on, for a context of {context_length}",
            fix=f"give a text of {5 * (context_length + 1)} tokens or more, or a shorter --context-length",
        )
    room, tuned, held_out = int(_TUNED_SHARE * total), list[int](), list[Document]()
    for ids, size in documents:
        taken = min(room, len(ids))
        room -= taken
        if taken:
            tuned += [*prefix, *map(int, ids[:taken])]
        if taken < len(ids):
            # Only nats per token are taken of them: their bytes are a share of the document's.
            held_out.append((ids[taken:], max(1, size * (len(ids) - taken) // len(ids))))
    rows = len(tuned) // (context_length + 1)
    return np.array(tuned[: rows * (context_length + 1)], dtype=np.int64).reshape(rows, -1), held_out


def _batches(count: int, trial: Trial) -> list[NDArray[np.int64]]:
    """Rows of each update: every sequence once, then all of them again in another order."""
    generator = np.random.default_rng(trial.seed)
    needed = trial.steps * trial.rows
    order = np.concatenate([generator.permutation(count) for _ in range(-(-needed // count))])[:needed]
    return list(order.reshape(trial.steps, trial.rows))


def _update(model: PreTrainedModel, batch: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step on the mean loss of a batch (rows, context + 1), a few rows at a time."""
    untyped: Any = model
    at_once = max(1, _LOGITS_AT_ONCE // (batch.shape[1] * untyped.config.vocab_size))
    optimizer.zero_grad(set_to_none=True)
    for start in range(0, len(batch), at_once):
        rows = batch[start : start + at_once]
        logits = untyped(input_ids=rows[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        loss: Any = cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum") / batch[:, 1:].numel()
        loss.backward()
    optimizer.step()
