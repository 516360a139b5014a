"""Models of transformers that compute in float64 throughout."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


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
