"""A model by its name, alone or with a value network beside it."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.transfer.chat import with_value
from kinfolk.transfer.pair import Pair


def load_with_value(
    name: str, value: Path | None, alpha: float | None, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint, or the pair of it and a value network; `alpha` is the value network's weight if given.

    Raises KinfolkError for what cannot be loaded or paired, and for an alpha without a value network.
    """
    loaded, tokenizer = load_checkpoint(name, device)
    if value is not None:
        network, its_tokenizer = load_checkpoint(value, device)
        return with_value(loaded, tokenizer, network, its_tokenizer, value, alpha), tokenizer
    if alpha is not None:
        if not isinstance(loaded, Pair):
            raise KinfolkError("there is no value network to weigh", where="--alpha", fix="give --value, or a pair")
        loaded.alpha = alpha
    return loaded, tokenizer
