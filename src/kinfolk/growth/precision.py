"""Evaluate a transformers model in float64 throughout.

Its own code rounds to float32 in many places, whatever the dtype of its weights: norms, rotary positions, softmax. In
this mode every such request is for float64.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kinfolk.growth.torch_calls import CallsBy


def computing_in(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """What a model of this dtype must be made and called in.

    In float64, `.float()`, `.to(torch.float32)`, `softmax(..., dtype=torch.float32)` and their like give float64.
    """
    return CallsBy(_in_double) if dtype == torch.float64 else nullcontext()


def _in_double(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if func is Tensor.float:
        return args[0].double()
    if func is Tensor.view:  # which reads bytes as numbers, and rounds nothing
        return func(*args, **kwargs)
    return func(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
