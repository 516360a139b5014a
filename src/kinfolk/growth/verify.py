"""Measure whether a child computes its parent's function: the proof that goes with every growth.

Both models are evaluated on the same tokens in float32 and in float64, on copies, one model and one dtype at a time;
the models given are not touched. The float64 run is float64 throughout: transformers' RMSNorm and eager attention
round to float32 inside whatever the dtype, so the copies get a norm of their own and fused attention.

A child that claims to preserve the function passes when the largest difference of a logit, relative to the largest
logit, stays below a tolerance of the coarser of two dtypes, the one evaluated in and the one the weights are stored
in. Growing `double()` copies of the weights therefore gives the sharpest proof of an operator; for float32 weights
the rounding of the child's weights is what remains.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinfolk.errors import KinfolkError

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Relative differences of logits that rounding can explain; about an exact operator they are 1e-14 in float64 and
1e-6 in float32, and the smallest known mistake (eps kept under a split that changes the mean square) is 1e-4."""


@dataclass(frozen=True)
class Comparison:
    """Parent and child on the same tokens in one dtype."""

    max_abs_logit_difference: float
    mean_abs_logit_difference: float
    max_abs_logit: float
    """Of the parent: the scale of the differences."""
    kl: float
    """Mean over tokens of KL(parent || child), in nats."""
    loss_before: float
    """Mean next-token cross-entropy of the parent, in nats."""
    loss_after: float
    """The same of the child."""
    tolerance: float
    """Relative difference that still counts as the same function."""

    @property
    def within_tolerance(self) -> bool:
        # Written so that a NaN is not within.
        return self.max_abs_logit_difference <= self.tolerance * self.max_abs_logit


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

    A copy in float64 computes in float64 everywhere. Parameters that already have the dtype are shared, not copied;
    none of the copy's requires a gradient.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        for parameter in model.parameters()
    }
    twin = copy.deepcopy(model, memo).eval()
    if dtype == torch.float64:
        use_double_precision(twin)
    return twin


def use_double_precision(model: nn.Module) -> None:
    """Make a float64 transformers model compute in float64 where its own code rounds to float32 (changes it)."""
    transformers_model: Any = model
    transformers_model.set_attn_implementation("sdpa")
    for name, module in list(model.named_modules()):
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if isinstance(weight, nn.Parameter) and isinstance(eps, float):
            model.set_submodule(name, _RMSNorm(weight, eps))


class _RMSNorm(nn.Module):
    """RMSNorm in the dtype of its input."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def _compare(parent: nn.Module, child: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Comparison:
    before, after = _logits(parent, tokens, dtype), _logits(child, tokens, dtype)
    if before.shape != after.shape:
        raise KinfolkError(
            f"the parent gives logits of {tuple(before.shape)} and the child of {tuple(after.shape)}",
            fix="compare models of one vocabulary",
        )
    targets = tokens.cpu()
    largest, scale, total, kl, loss_before, loss_after = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for row in range(len(targets)):
        difference = (after[row] - before[row]).abs().double()
        # Not built-in max(), which would drop a NaN.
        largest = float(torch.maximum(difference.max(), torch.tensor(largest, dtype=torch.float64)))
        scale = max(scale, float(before[row].abs().max()))
        total += float(difference.sum())
        log_p, log_q = (part[row].double().log_softmax(-1) for part in (before, after))
        # Equals sum p (log p - log q) for normalised p and q; each term is non-negative, so none cancel.
        ratio = log_q - log_p
        kl += float((log_p.exp() * (torch.expm1(ratio) - ratio)).sum())
        loss_before += float(functional.nll_loss(log_p[:-1], targets[row, 1:]))
        loss_after += float(functional.nll_loss(log_q[:-1], targets[row, 1:]))
    stored = [parameter.dtype for model in (parent, child) for parameter in model.parameters()]
    rows = len(targets)
    return Comparison(
        max_abs_logit_difference=largest,
        mean_abs_logit_difference=total / before.numel(),
        max_abs_logit=scale,
        kl=kl / targets.numel(),
        loss_before=loss_before / rows,
        loss_after=loss_after / rows,
        tolerance=max(TOLERANCES.get(kind, 1e-1) for kind in {dtype, *stored}),
    )


def _logits(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits on the CPU, computed in `dtype` row by row; the copy of the model is gone when this returns."""
    twin = copy_in(model, dtype)
    device = next(twin.parameters()).device
    with torch.no_grad():
        rows = [twin(input_ids=row[None].to(device), use_cache=False).logits[0].cpu() for row in tokens]
    return torch.stack(rows)
