"""What a stage minimises, as a module around an unchanged transformers model.

The head and its cross-entropy are by far the largest activations of a small model, and half of its time. They are
computed in chunks of positions, and the gradient is made in the same pass as the loss, so that no more than one chunk
of logits ever exists. Logits and softmax are float32 whatever the precision of the products: torch's fused
`linear_cross_entropy` takes the softmax in bfloat16 and reports a loss that is off by several percent.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_LOGITS_IN_CACHE = 2**18
"""Elements of one chunk of logits: on a CPU about 1 MB of float32, which stays in the cache between its passes."""

_LOGITS_ON_GPU = 2**27


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T` against `targets`, with gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, needs_gradient: bool
    ) -> Tensor:
        positions, vocab_size = hidden.shape[0], weight.shape[0]
        budget = _LOGITS_IN_CACHE if hidden.device.type == "cpu" else _LOGITS_ON_GPU
        chunk = max(16, budget // vocab_size)
        hidden_cast, weight_cast = hidden.to(dtype), weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, positions, chunk):
            part = slice(start, start + chunk)
            target = targets[part].unsqueeze(1)  # (chunk, 1)
            logits = (hidden_cast[part] @ weight_cast.T).float()  # (chunk, vocab)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            loss += (normaliser - logits.gather(1, target)).sum()
            if hidden_gradient is not None and weight_gradient is not None:
                # d loss / d logits = softmax - one-hot
                gradient = logits.sub_(normaliser).exp_()
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
                gradient_cast = gradient.to(dtype)
                hidden_gradient[part] = gradient_cast @ weight_cast
                weight_gradient += gradient_cast.T @ hidden_cast[part]
        if needs_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outputs[0], weight_gradient * outputs[0], None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum over positions of -log softmax(hidden @ weight.T)[target], in nats.

    Shapes: hidden (positions, hidden size), weight (vocab, hidden size), targets (positions,) of int64. Products are
    taken in `dtype`, logits and softmax in float32. The sum, not the mean: whoever knows the global number of tokens
    divides by it.
    """
    # Asked here, because inside the function gradients are always off, and it is told that a weight needs one even
    # under no_grad.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype, needs_gradient)  # type: ignore[no-untyped-call]
    return loss


class TokenLoss(nn.Module):
    """Next-token prediction. Sharding wraps this module, so that the head is gathered when the loss needs it."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, sequences: Tensor) -> Tensor:
        """Summed loss in nats of sequences (batch, context + 1): every token but the first is predicted."""
        hidden = self.model.base_model(input_ids=sequences[:, :-1], use_cache=False).last_hidden_state
        head: Tensor = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return linear_cross_entropy(hidden.flatten(0, 1), head, sequences[:, 1:].flatten(), self.dtype)
