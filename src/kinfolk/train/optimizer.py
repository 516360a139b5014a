"""AdamW, and its state as plain named tensors: what checkpoints hold and what growth maps."""

import torch
from torch import Tensor, nn

from kinfolk.family.recipe import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices (and embeddings), none on norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


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
