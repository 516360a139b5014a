"""Measure whether a child computes its parent's function: the proof that goes with every growth.

Both models are evaluated on the same tokens in float32 and in float64, one model and one dtype at a time: live ones on
copies, so that the models given are not touched, and those in files by streaming their weights. The float64 run is
float64 throughout (`kinfolk.growth.precision`).

A child that claims to preserve the function passes when the largest difference of a logit, relative to the largest
logit, stays below a tolerance of the coarser of two dtypes, the one evaluated in and the one the weights are stored
in. Growing `double()` copies of the weights therefore gives the sharpest proof of an operator; for float32 weights
the rounding of the child's weights is what remains.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk.errors import KinfolkError
from kinfolk.growth.compare import Comparison, compare
from kinfolk.growth.rows import Stored
from kinfolk.growth.streamed import streamed_model

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Relative differences of logits that rounding can explain; about an exact operator they are 1e-14 in float64 and
1e-6 in float32, and the smallest known mistake (eps kept under a split that changes the mean square) is 1e-4."""


_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Verification:
    """What was claimed, what was measured, and whether the measurement bears the claim out."""

    operator: str
    claims_preservation: bool
    float32: Comparison
    float64: Comparison
    passed: bool | None
    """None when nothing was claimed."""

    @classmethod
    def of(cls, operator: str, claims: bool, float32: Comparison, float64: Comparison) -> "Verification":
        """What these comparisons say of a claim."""
        passed = float32.within_tolerance and float64.within_tolerance if claims else None
        return cls(operator, claims, float32, float64, passed)

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
    float32, float64 = (_compare(parent_model, child_model, tokens, dtype) for dtype in _DTYPES)
    return Verification.of(operator, claims, float32, float64)


def compare_stored(
    configs: tuple[Any, Any],
    weights: tuple[Mapping[str, Stored], Mapping[str, Stored]],
    tokens: Tensor,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Comparison, Comparison]:
    """Compare parent and child, of these transformers configs, whose weights are in files and stay there.

    In float32 and float64, on `tokens` (batch, time). The memory needed is that of one layer's activations.
    """
    stored = [entry.dtype for each in weights for entry in each.values()]

    def compared(dtype: torch.dtype) -> Comparison:
        parent, child = (streamed_model(*each, dtype) for each in zip(configs, weights, strict=True))
        return compare(parent, child, tokens, dtype, tolerance_of(dtype, stored), progress=progress)

    float32, float64 = map(compared, _DTYPES)
    return float32, float64


def joined(parts: Sequence[tuple[int, Comparison]]) -> Comparison:
    """The comparison on all windows from those on some of them each: (windows, comparison), of windows of one length.

    Without the residual stream, which must not have been compared.
    """
    windows = sum(count for count, _ in parts)

    def mean(name: str) -> float:
        return sum(count * float(getattr(part, name)) for count, part in parts) / windows

    def largest(name: str) -> float:
        # Not built-in max(), which would drop a NaN.
        return float(torch.tensor([getattr(part, name) for _, part in parts], dtype=torch.float64).max())

    return Comparison(
        max_abs_logit_difference=largest("max_abs_logit_difference"),
        mean_abs_logit_difference=mean("mean_abs_logit_difference"),
        max_abs_logit=largest("max_abs_logit"),
        kl=mean("kl"),
        loss_before=mean("loss_before"),
        loss_after=mean("loss_after"),
        tolerance=parts[0][1].tolerance,
        new_token_mass=mean("new_token_mass"),
    )


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
