"""Gram matrices of what linear layers read, summed up while a model reads a text."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.head import Predictor, check_context
from kinfolk.evaluate.loss import evaluation_mode
from kinfolk.evaluate.windows import Document, batches, stacked, windows_of_documents

_ROWS = 8


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of a model by name, but for a head that is tied to the embedding: that is no layer's own."""
    embedding = model.get_input_embeddings().weight
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight is not embedding
    }


def weight_of(layer: nn.Module) -> Tensor:
    """The weight (in, out) of a linear layer, as a view: Conv1D holds it so, Linear the other way."""
    weight: Any = layer.weight
    found: Tensor = weight.detach()
    return found if isinstance(layer, Conv1D) else found.T


def grams_of(
    model: PreTrainedModel,
    layers: dict[str, nn.Module],
    documents: Iterable[Document],
    separator: int | None,
    context_length: int,
    device: torch.device | str,
    tokens: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """X^T X / n in float64 (in, in) of each of `layers`, over the first `tokens` tokens that `model` predicts.

    Layers that read nothing are left out. Layers that read the same tensor share one matrix. Raises KinfolkError for a
    layer that is not fed one vector for each token.
    """
    check_context(model, context_length)
    sums: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    latest: dict[str, Any] = {"tensor": None, "layer": None, "mask": None}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs, mask = arguments[0], latest["mask"]
            if inputs is latest["tensor"]:
                shared[name] = latest["layer"]
                return
            shared[name] = name
            latest.update(tensor=inputs, layer=name)
            rows = inputs.reshape(-1, inputs.shape[-1])
            if rows.shape[0] != mask.numel():
                raise KinfolkError(
                    f"the layer {name} is not fed one vector for each token", fix="merge these models by --method mean"
                )
            used = rows[mask.flatten()].double()
            if name not in sums:
                sums[name] = torch.zeros(used.shape[1], used.shape[1], dtype=torch.float64, device=used.device)
            sums[name].addmm_(used.T, used)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    read = 0
    try:
        with evaluation_mode(model), torch.inference_mode():
            vocab_size = Predictor(model, None).vocab_size
            windows = windows_of_documents(documents, separator, context_length, context_length, vocab_size)
            for batch in batches(windows, _ROWS):
                inputs = stacked(batch, device)
                latest.update(tensor=None, layer=None, mask=inputs.scored)
                model(input_ids=inputs.inputs, use_cache=False)
                read += int(inputs.scored.sum())
                if progress is not None:
                    progress(min(read, tokens))
                if read >= tokens:
                    break
    finally:
        for handle in handles:
            handle.remove()
    if not read:
        raise KinfolkError("there is no token to read", fix="give a text that is not empty")
    return {name: sums[of] / read for name, of in shared.items()}
