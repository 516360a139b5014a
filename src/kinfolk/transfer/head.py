"""A value network whose change of logits is exactly zero, so that training starts at the base itself."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kinfolk.errors import KinfolkError


def zero_head(model: PreTrainedModel) -> PreTrainedModel:
    """Zero the output matrix of a model in place and return it; a tied head gets a matrix of its own first.

    At step 1 only the head has a gradient, as the rest is multiplied by it. Raises KinfolkError for a model whose
    output is no matrix.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise KinfolkError("the model has no output matrix that could be zeroed", fix="use a causal language model")
    embedding: Any = model.get_input_embeddings()
    if head.weight is embedding.weight:
        _untie(model)
    head.weight = nn.Parameter(torch.zeros_like(head.weight))
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return model


def _untie(model: PreTrainedModel) -> None:
    """Say everywhere that transformers looks that the head is its own parameter."""
    untyped: Any = model
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    untyped.all_tied_weights_keys = untyped.get_expanded_tied_weights_keys(all_submodels=False)
