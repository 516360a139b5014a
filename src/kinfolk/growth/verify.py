"""Measure whether a child computes its parent's function: the proof that goes with every growth.

Both models are evaluated on the same tokens in float32 and in float64, on copies, one model and one dtype at a time;
the models given are not touched. The float64 run is float64 throughout (`kinfolk.growth.precision`).

A child that claims to preserve the function passes when the largest difference of a logit, relative to the largest
logit, stays below a tolerance of the coarser of two dtypes, the one evaluated in and the one the weights are stored
in. Growing `double()` copies of the weights therefore gives the sharpest proof of an operator; for float32 weights
the rounding of the child's weights is what remains.
"""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk.errors import KinfolkError
from kinfolk.growth.compare import Comparison, compare

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Relative differences of logits that rounding can explain; about an exact operator they are 1e-14 in float64 and
1e-6 in float32, and the smallest known mistake (eps kept under a split that changes the mean square) is 1e-4."""


@dataclass(frozen=True)
class Verification:
    """What was claimed, what was measured, and whether the measurement bears the claim out."""

    operator: str
    claims_preservation: bool
    float32: Comparison
    float64: Comparison
    passed: bool | None
    """None when nothing was claimed."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def verify(
    parent_model: nn.Module, child_model: nn.Module, tokens: Tensor, claims: bool, operator: str = ""
) -> Verification:
    """Compare two transformers causal models on `tokens` (batch, time; at least two tokens in each row).

    `operator` is a description to record (see `kinfolk.growth.grow.describe`). The memory needed beyond the two models
    is one copy in float64 and the float64 logits of both.
    """
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise KinfolkError(
            f"tokens to verify with have the shape {tuple(tokens.shape)}", fix="give (batch, time) with time 2 or more"
        )
    float32, float64 = (_compare(parent_model, child_model, tokens, dtype) for dtype in (torch.float32, torch.float64))
    passed = float32.within_tolerance and float64.within_tolerance if claims else None
    return Verification(operator, claims, float32, float64, passed)


def copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a transformers model, in evaluation mode and with parameters in `dtype`; ties stay ties.

    A copy in float64 is to be called within `computing_in(torch.float64)`. Parameters that already have the dtype are
    shared, not copied; none of the copy's requires a gradient.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        for parameter in model.parameters()
    }
    twin = copy.deepcopy(model, memo).eval()
    transformers_model: Any = twin
    transformers_model.set_attn_implementation("eager")
    return twin


def tolerance_of(dtype: torch.dtype, stored: Iterable[torch.dtype]) -> float:
    """That of the coarsest dtype among the one computed in and those that weights are stored in."""
    return max(TOLERANCES.get(kind, 1e-1) for kind in {dtype, *stored})


def _compare(parent: nn.Module, child: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Comparison:
    stored = {parameter.dtype for model in (parent, child) for parameter in model.parameters()}
    return compare(copy_in(parent, dtype), copy_in(child, dtype), tokens, dtype, tolerance_of(dtype, stored))
