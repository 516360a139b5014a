"""What training a value network costs: FLOPs for the ledger, and what caching the bases' logits would save."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kinfolk.build.view import duration
from kinfolk.errors import KinfolkError
from kinfolk.train.engine import Engine, Precision
from kinfolk.transfer.base_logits import cache_bytes, logit_width, scored_logits
from kinfolk.transfer.batches import Batch
from kinfolk.transfer.demonstrations import Demonstrations

FLOPS_RULE = "6 N per token for what is trained, 2 N for a frozen model; N counts the parameters of matrix products"


def matrix_parameters(model: PreTrainedModel) -> int:
    """The N of 2 N and 6 N: all matrices that a token is multiplied by, so that an embedding counts only as a head."""
    untyped: Any = model
    embedding, head = untyped.get_input_embeddings().weight, untyped.get_output_embeddings().weight
    total = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    return total if head is embedding else total - int(embedding.numel())


def training_flops(trained: int, frozen: Sequence[int], tokens: int, frozen_tokens: int) -> dict[str, Any]:
    """FLOPs of a training that read `tokens`, and had `frozen_tokens` gone through each of the frozen models.

    `trained` and `frozen` are numbers of `matrix_parameters`.
    """
    of_trained, of_frozen = 6.0 * trained * tokens, 2.0 * sum(frozen) * frozen_tokens
    return {"trained": of_trained, "frozen": of_frozen, "total": of_trained + of_frozen, "rule": FLOPS_RULE}


@dataclass(frozen=True)
class LogitCosts:
    """What the bases' logits cost both ways."""

    disk_bytes: int
    cache_seconds: float
    """To write the cache once."""
    recompute_seconds: float
    """To compute them anew in every epoch."""
    memory_bytes: int
    """Of one matrix of logits of a micro-batch; a step holds about six of them either way."""

    def sentence(self, cached: bool) -> str:
        """Both ways in words, the chosen one first."""
        on_disk = f"{self.disk_bytes / 1e6:,.1f} MB of disk and about {duration(self.cache_seconds)} once"
        anew = f"about {duration(self.recompute_seconds)} in all and no disk"
        ways = (f"cached, {on_disk}", f"recomputed, {anew}")
        chosen, other = ways if cached else ways[::-1]
        return f"base logits: {chosen} (or {other}); {self.memory_bytes / 1e6:,.1f} MB a matrix of them in memory"


@torch.no_grad()
def logit_costs(
    bases: Sequence[PreTrainedModel],
    train: Demonstrations,
    epochs: float,
    batch: Batch,
    precision: Precision,
    engine: Engine,
) -> LogitCosts:
    """Measured on one batch of each base, which lies on the device; the second of two passes counts."""
    seconds = 0.0
    for base in bases:
        for _ in range(2):
            began = time.perf_counter()
            with engine.autocast(precision):
                scored_logits(base, batch).sum().item()
            last = time.perf_counter() - began
        seconds += last
    positions = batch.inputs.numel()
    per_epoch = seconds * train.tokens / positions
    widths = [logit_width(base) for base in bases]
    return LogitCosts(
        disk_bytes=sum(cache_bytes(train, width) for width in widths),
        cache_seconds=per_epoch,
        recompute_seconds=per_epoch * epochs,
        memory_bytes=4 * int(batch.scored.sum()) * max(widths),
    )


def check_disk(folder: Path, wanted: int) -> None:
    """Refuse a cache that does not fit."""
    free = shutil.disk_usage(folder).free
    if wanted > 0.9 * free:
        raise KinfolkError(
            f"the cached logits would take {wanted / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
            where=str(folder),
            fix="leave out --cache-logits, or give a --run on a larger disk",
        )
