"""torch.compile needs a compiler of the machine's own, and knows not every model: what that means for a build."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kinfolk.errors import KinfolkError, in_short

_OPTION = "--compile"
_WITHOUT = "build without it: the run directory stays good for both"


def refuse_without_compiler(device: torch.device) -> None:
    """KinfolkError where torch.compile cannot make the smallest of programs for a device; takes a few seconds."""
    try:
        torch.compile(_doubled)(torch.ones(8, device=device))
    except Exception as error:  # compilers, drivers and headers each fail with exceptions of their own
        needed = "a C++ compiler (g++ or clang++, or CXX)" if device.type == "cpu" else "Triton and a C compiler"
        raise KinfolkError(
            f"torch.compile does not work here: {in_short(error)}",
            where=_OPTION,
            fix=f"install {needed}, or {_WITHOUT}",
        ) from error


@contextmanager
def compiling_for(stage: str) -> Iterator[None]:
    """Turn an error that says that a block cannot be compiled into a KinfolkError."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        raise KinfolkError(
            f"the blocks cannot be compiled: {in_short(error)}", where=f"{_OPTION}, stage {stage}", fix=_WITHOUT
        ) from error


def _doubled(values: Tensor) -> Tensor:
    return 2 * values
