"""The optimizer, and its state as plain named tensors: what checkpoints hold and what growth maps."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kinfolk.family.rate_transfer import Factors, factors_of
from kinfolk.family.recipe import Optimizer
from kinfolk.train.muon import orthogonal_updates
from kinfolk.train.shards import Sharing, local, sharing_of

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW. Muon keeps the first only: its momentum is a running mean of gradients too."""


def make_optimizer(
    model: nn.Module, settings: Optimizer, factors: Mapping[str, Factors] | None = None
) -> torch.optim.Optimizer:
    """Fused AdamW, with Muon for the layers' matrices where asked for; weight decay on matrices (and embeddings) only.

    With `factors`, by the name of a parameter's module, parameters that share theirs are a group of their own; so are
    those that processes share alike. What a group's `rate_factor` says is for whoever sets the learning rate, and
    whether its decay is `cautious` for the update. Factors are Adam's, and Muon's matrices have none.
    """
    matrices: list[nn.Parameter] = []
    groups: dict[tuple[bool, Factors, Sharing], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if settings.matrices == "muon" and is_hidden_matrix(name, parameter):
            matrices.append(parameter)
        elif parameter.requires_grad:
            key = parameter.dim() < 2, factors_of(name, factors), sharing_of(parameter)
            groups.setdefault(key, []).append(parameter)
    adamw = torch.optim.AdamW(
        [
            _group(parameters, settings, is_free, own)
            for (is_free, own, _), parameters in sorted(groups.items(), key=lambda group: group[0][0])
        ],
        lr=0.0,
        betas=settings.betas,
        fused=True,
    )
    if not matrices:
        return adamw
    of_muon = _group(matrices, settings, is_free=False, factors=Factors())
    return MuonWithAdamW(of_muon | {"lr": 0.0, "momentum": settings.momentum}, adamw)


def _group(parameters: list[nn.Parameter], settings: Optimizer, is_free: bool, factors: Factors) -> dict[str, Any]:
    return {
        "params": parameters,
        "weight_decay": 0.0 if is_free else settings.weight_decay * factors.decay,
        "cautious": settings.weight_decay_rule == "cautious" and not is_free,
        "eps": settings.eps * factors.eps,
        "rate_factor": factors.rate,
    }


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight matrix of a layer. Layers are numbered; embedding and head are in none.

    >>> [is_hidden_matrix(name, torch.zeros(2, 2)) for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight")]
    [True, False]
    """
    return parameter.dim() == 2 and any(part.isdigit() for part in name.split("."))


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the group `matrices`, and AdamW for its own groups; the state of all lies together."""

    def __init__(self, matrices: dict[str, Any], adamw: torch.optim.AdamW) -> None:
        super().__init__([matrices, *adamw.param_groups], {})
        self.matrices = matrices
        self.adamw = adamw
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update by the gradients, each group at its own rate."""
        self.adamw.step()
        self.advance()
        rate, decay = self.matrices["lr"], self.matrices["weight_decay"]
        for parameter, update in self.updates():
            local(parameter.detach()).mul_(1 - rate * decay).sub_(update * rate)

    @torch.no_grad()
    def advance(self) -> None:
        """Bring the momentum of the matrices up to date."""
        for parameter in self.matrices["params"]:
            state = _begun(self.state[parameter], parameter, MOMENTS[:1])
            state["step"] += 1
            local(state["exp_avg"]).lerp_(local(parameter.grad), 1 - self.matrices["momentum"])

    @torch.no_grad()
    def updates(
        self, corrected: Callable[[nn.Parameter, Tensor], Tensor] = lambda _, momentum: momentum
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each matrix with its update for a rate of 1, by Nesterov's momentum, which `corrected` may change."""

        def direction(parameter: nn.Parameter) -> Tensor:
            ahead = local(parameter.grad).lerp(local(self.state[parameter]["exp_avg"]), self.matrices["momentum"])
            return corrected(parameter, ahead)

        return orthogonal_updates(self.matrices["params"], direction)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under flat names, `exp_avg.NAME`, `exp_avg_sq.NAME` (not of Muon's), `step.NAME`.

    Created as zeros where the optimizer has not stepped yet; the tensors are the optimizer's own, so that filling them
    loads its state. Works for sharded parameters too: the moments are DTensors like their parameter.
    """
    muon = set(optimizer.matrices["params"]) if isinstance(optimizer, MuonWithAdamW) else set()
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        moments = MOMENTS[:1] if parameter in muon else MOMENTS
        state = _begun(optimizer.state[parameter], parameter, moments)
        tensors |= {f"{key}.{name}": state[key] for key in ("step", *moments)}
    return tensors


def _begun(state: dict[str, Tensor], parameter: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
    """A parameter's state, of zeros where there was none."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for moment in moments:
            state[moment] = torch.zeros_like(parameter)
    return state
