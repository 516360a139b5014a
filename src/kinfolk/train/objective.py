"""What a stage minimises, as a module around an unchanged transformers model.

The head and its cross-entropy are by far the largest activations of a small model, and half of its time. They are
computed in blocks of positions, and the gradient is made in the same pass as the loss, so that no more than one block
of logits ever exists. The softmax is float32 whatever the precision of the products: torch's fused
`linear_cross_entropy` takes it in bfloat16 and reports a loss that is off by several percent.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kinfolk.plan.stages import Objective, Patch

_LOGITS_AT_ONCE = 2**22
"""Elements of one block of logits on a CPU, unless the head has more. Its gradient is summed up block by block: with as
many logits as the head has elements that costs no more time than their softmax, and no more memory than the sum."""

_LOGITS_IN_CACHE = 2**18
"""Elements of one chunk of a block: about 1 MB of float32, which stays in the cache between passes."""

_LOGITS_ON_GPU = 2**27
"""Elements of one block, and one chunk, on a GPU."""

PLAIN_HEADS = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "olmo2", "phi3", "gpt2", "gpt_neox", "starcoder2")
"""Models of transformers whose logits are the last hidden state times the head's weight and nothing else, so that they
can be made in chunks. The logits of any other are made by the model itself, all at once."""


class Losses(NamedTuple):
    """Sums over a batch in nats."""

    minimised: Tensor
    """The cross-entropy and the z-loss together, which is to be differentiated."""
    cross_entropy: Tensor
    z_loss: Tensor
    """The coefficient times log(sum(exp(logits)))^2 of every prediction (PaLM, arXiv 2204.02311, section 5); 0 in
    evaluation mode."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed losses of `hidden @ weight.T` against `targets`, with gradients made in the forward pass.

    Returns `minimised`, and cross-entropy and z-loss without a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        target_weights: Tensor,
        dtype: torch.dtype,
        needs_gradient: bool,
        z_coefficient: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, rows_in_cache = _rows(weight.shape[0], weight.shape[1], hidden.device)
        hidden_cast, weight_cast = hidden.to(dtype), weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden) if needs_gradient else None
        weight_gradient = torch.zeros_like(weight) if needs_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        z_loss = torch.zeros_like(loss)
        for start in range(0, hidden.shape[0], rows):
            block = slice(start, start + rows)
            logits = hidden_cast[block] @ weight_cast.T  # (block, vocab); their gradient takes their place
            parts = (torch.split(each, rows_in_cache) for each in (logits, targets[block], target_weights[block]))
            for chunk, target, weights in zip(*parts, strict=True):  # (chunk, vocab), and both (chunk, slots)
                softmax = chunk.float()
                expected = softmax.gather(1, target)
                highest = softmax.amax(dim=1, keepdim=True)
                softmax = softmax.sub_(highest).exp_()
                total = softmax.sum(dim=1, keepdim=True)
                normaliser = total.log() + highest
                loss += ((normaliser - expected) * weights).sum()
                if z_coefficient:
                    z_loss += z_coefficient * (normaliser.square() * weights).sum()
                if needs_gradient:
                    # d cross-entropy / d logits = softmax x (sum of the weights) - the weights at their targets
                    # d normaliser^2 / d logits = softmax x 2 normaliser
                    share = weights.sum(1, keepdim=True) * (1 + 2 * z_coefficient * normaliser)
                    chunk.copy_(softmax.mul_(share / total).scatter_add_(1, target, -weights))
            if hidden_gradient is not None and weight_gradient is not None:
                hidden_gradient[block] = logits @ weight_cast
                weight_gradient += logits.T @ hidden_cast[block]
        if needs_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        cross_entropy = loss.clone()
        ctx.mark_non_differentiable(cross_entropy, z_loss)
        return loss + z_loss if z_coefficient else loss, cross_entropy, z_loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * outputs[0], weight_gradient * outputs[0], None, None, None, None, None


def _rows(vocab_size: int, hidden_size: int, device: torch.device) -> tuple[int, int]:
    """Positions of a block, whose logits are one product, and of a chunk of it, whose softmax is taken at once."""
    if device.type != "cpu":
        rows = max(16, _LOGITS_ON_GPU // vocab_size)
        return rows, rows
    return max(_LOGITS_AT_ONCE // vocab_size, hidden_size), max(16, _LOGITS_IN_CACHE // vocab_size)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    dtype: torch.dtype = torch.float32,
    target_weights: Tensor | None = None,
    z_coefficient: float = 0.0,
) -> Losses:
    """Sum over positions (and slots) of -log softmax(hidden @ weight.T)[target], in nats.

    Shapes: hidden (positions, hidden size), weight (vocab, hidden size), targets (positions,) or (positions, slots) of
    int64: every position predicts all its slots from one softmax, whose logarithm is taken once. `target_weights`, of
    the shape of the targets or to be broadcast to it, multiply each term; 0 leaves a target out. Each target also has a
    z-loss with the same weight, `z_coefficient` times the square of the softmax's logarithm. Products are taken in
    `dtype`, logits and softmax in float32. The sum, not the mean: whoever knows the global number of tokens divides by
    it.
    """
    slots = targets.unsqueeze(1) if targets.dim() == 1 else targets
    weights = torch.ones((), device=hidden.device) if target_weights is None else target_weights
    # Asked here, because inside the function gradients are always off, and it is told that a weight needs one even
    # under no_grad.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        sums = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, slots, weights.expand(slots.shape), dtype, needs_gradient, z_coefficient
        )
    return Losses(*sums)


def slot_weights(size: int, exponent: float) -> Tensor:
    """Weights (size,) of the slots of a predicted patch: 1 / k^exponent for k = 1 ... size, of mean 1."""
    weights = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    return (weights * (size / weights.sum())).float()


def stage_loss(
    model: PreTrainedModel, objective: Objective, dtype: torch.dtype = torch.float32, z_coefficient: float = 0.0
) -> nn.Module:
    """The module that a stage trains. Patches of one token are ordinary tokens, and take their path."""
    if isinstance(objective, Patch) and objective.size > 1:
        return PatchLoss(model, objective, dtype, z_coefficient)
    return TokenLoss(model, dtype, z_coefficient)


class TokenLoss(nn.Module):
    """Next-token prediction. Sharding wraps this module, so that the head is gathered when the loss needs it."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32, z_coefficient: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.z_coefficient = z_coefficient

    def forward(self, sequences: Tensor) -> Losses:
        """Summed losses in nats of sequences (batch, context + 1): every token but the first is predicted."""
        return _of_tokens(self.model, sequences, self.dtype, self.z_coefficient if self.training else 0.0)


class PatchLoss(nn.Module):
    """Next-patch prediction (arXiv 2407.12665) while training; next-token prediction in evaluation mode.

    The mean of a patch's K embeddings goes in, scaled as the model scales embeddings, and one hidden state predicts all
    tokens of the next patch from one softmax. Embedding, head and everything between are the model's own, unchanged.
    """

    slot_weights: Tensor

    def __init__(
        self, model: PreTrainedModel, patch: Patch, dtype: torch.dtype = torch.float32, z_coefficient: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.size = patch.size
        self.dtype = dtype
        self.z_coefficient = z_coefficient
        self.register_buffer("slot_weights", slot_weights(patch.size, patch.slot_exponent), persistent=False)

    def forward(self, sequences: Tensor) -> Losses:
        """Summed losses in nats, over all tokens but those of the first patch, of sequences (batch, K x (context + 1)).

        In evaluation mode that of `TokenLoss` on sequences (batch, context + 1). ValueError for a sequence that is not
        a whole number of patches.
        """
        if not self.training:
            return _of_tokens(self.model, sequences, self.dtype, 0.0)
        patches = into_patches(sequences, self.size)
        inputs = {"inputs_embeds": patch_embeddings(self.model, patches[:, :-1])}
        return _summed_losses(self.model, inputs, patches[:, 1:], self.dtype, self.z_coefficient, self.slot_weights)


def into_patches(sequences: Tensor, size: int) -> Tensor:
    """Sequences (batch, tokens) as patches (batch, tokens / size, size); ValueError where they do not divide."""
    if sequences.shape[1] % size:
        raise ValueError(f"a sequence of {sequences.shape[1]} tokens is not a whole number of patches of {size}")
    return sequences.reshape(len(sequences), -1, size)


def patch_embeddings(model: PreTrainedModel, patches: Tensor) -> Tensor:
    """Mean of the embeddings of each patch, taken in float32: (batch, positions, size) to (batch, positions, hidden).

    Asks the model's embedding module, not its weight: some (Gemma) scale what they look up.
    """
    embedded: Tensor = model.get_input_embeddings()(patches)
    return embedded.float().mean(dim=2).to(embedded.dtype)


def _of_tokens(model: PreTrainedModel, sequences: Tensor, dtype: torch.dtype, z_coefficient: float) -> Losses:
    """Summed losses of next-token prediction of sequences (batch, context + 1)."""
    targets = sequences[:, 1:].unsqueeze(2)
    return _summed_losses(model, {"input_ids": sequences[:, :-1]}, targets, dtype, z_coefficient)


def _summed_losses(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    targets: Tensor,
    dtype: torch.dtype,
    z_coefficient: float,
    target_weights: Tensor | None = None,
) -> Losses:
    """Summed losses of targets (batch, positions, slots), each position's predicted at it from the inputs."""
    slots = targets.flatten(0, 1)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if model.config.model_type in PLAIN_HEADS and head.bias is None:
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        return linear_cross_entropy(hidden.flatten(0, 1), head.weight, slots, dtype, target_weights, z_coefficient)
    logits = model(**inputs, use_cache=False).logits.flatten(0, 1).float()  # (rows, vocab)
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    terms = normaliser - logits.gather(1, slots)  # (rows, slots)
    total = (terms if target_weights is None else terms * target_weights).sum()
    if not z_coefficient:
        return Losses(total, total.detach(), torch.zeros_like(total))
    squares = normaliser.square().expand(terms.shape)
    z_loss = z_coefficient * (squares if target_weights is None else squares * target_weights).sum()
    return Losses(total + z_loss, total.detach(), z_loss.detach())
