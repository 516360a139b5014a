"""When memory runs out in training: which part of it was asked for, and the nearest setting that fits."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kinfolk.errors import KinfolkError
from kinfolk.machine_faults import is_out_of_memory
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.gradients import accumulate

_FIELD = "recipe.sequences_per_micro_batch"


@contextmanager
def memory_for(part: str, stage: str, fix: str) -> Iterator[None]:
    """Turn an error that says that memory has run out into a KinfolkError that names the part which wanted it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise KinfolkError(f"the memory is used up by {part}", where=f"stage {stage}", fix=fix) from error


def weights_fix(engine: Engine) -> str:
    """What helps where weights, gradients or optimizer state do not fit."""
    return (
        f"shard the stage over more than {engine.world_size} processes (torchrun), take a machine with more memory, or "
        "plan a smaller member"
    )


def accumulate_within_memory(
    objective: nn.Module,
    sequences: Tensor,
    micro: int,
    tokens: int,
    precision: Precision,
    engine: Engine,
    stage: str,
) -> list[float]:
    """`accumulate` over micro-batches of so many sequences (batch, tokens).

    Where memory runs out, a process that is alone tries smaller ones, and the KinfolkError names the largest that fits.
    """
    try:
        return accumulate(objective, torch.split(sequences, micro), tokens, precision, engine)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cause: Exception = error.with_traceback(None)  # its frames hold what was computed last
    micro = min(micro, len(sequences))
    fits = _largest(objective, sequences, micro, tokens, precision, engine) if engine.world_size == 1 else None
    length = sequences.shape[1] - 1
    if fits is not None:
        fix = f"set {_FIELD} to {fits}, which was tried and fits; the same run goes on with it"
    elif engine.world_size > 1 and micro > 1:
        fix = f"set {_FIELD} to {micro // 2}; the same run goes on with it"
    else:
        fix = f"not one sequence fits: shorten model.context_length, use precision bfloat16, or {weights_fix(engine)}"
    raise KinfolkError(
        f"the memory is used up by the activations of {micro} sequences of {length} tokens at once",
        where=f"stage {stage}",
        fix=fix,
    ) from cause


def _largest(
    objective: nn.Module, sequences: Tensor, micro: int, tokens: int, precision: Precision, engine: Engine
) -> int | None:
    """The largest half of a half ... of a micro-batch that memory holds forwards and backwards; None if not even 1."""
    while micro > 1:
        micro //= 2
        _release(objective)
        try:
            accumulate(objective, [sequences[:micro]], tokens, precision, engine)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        return micro
    return None


def _release(objective: nn.Module) -> None:
    """Give back what a step that failed has left."""
    objective.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
