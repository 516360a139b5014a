"""AdamW, and its state as plain named tensors: what checkpoints hold and what growth maps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk.family.rate_transfer import Factors, factors_of
from kinfolk.family.recipe import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(
    model: nn.Module, settings: Optimizer, factors: Mapping[str, Factors] | None = None
) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices (and embeddings), none on norms and biases.

    With `factors`, by the name of a parameter's module, parameters that share theirs are a group of their own; its
    `rate_factor` is for whoever sets the learning rate.
    """
    groups: dict[tuple[bool, Factors], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.dim() < 2, factors_of(name, factors)), []).append(parameter)
    return torch.optim.AdamW(
        [
            _group(parameters, settings, is_free, own)
            for (is_free, own), parameters in sorted(groups.items(), key=lambda group: group[0][0])
        ],
        lr=0.0,
        betas=settings.betas,
        fused=True,
    )


def _group(parameters: list[nn.Parameter], settings: Optimizer, is_free: bool, factors: Factors) -> dict[str, Any]:
    return {
        "params": parameters,
        "weight_decay": 0.0 if is_free else settings.weight_decay * factors.decay,
        "eps": settings.eps * factors.eps,
        "rate_factor": factors.rate,
    }


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's state under flat names, `exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`.

    Created as zeros where the optimizer has not stepped yet; the tensors are the optimizer's own, so that filling them
    loads its state. Works for sharded parameters too: the moments are DTensors like their parameter.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter)
        tensors |= {f"{key}.{name}": state[key] for key in ("step", *MOMENTS)}
    return tensors
