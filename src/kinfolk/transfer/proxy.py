"""Proxy-tuning (Liu et al., arXiv 2401.08565): z_large + a (z_small,tuned - z_small), two extra networks at decoding.

A baseline. At a = 1 it is emulated fine-tuning (Mitchell et al., arXiv 2310.12962): log p_large + log p_small,tuned -
log p_small differs from it by a constant at every position, which a softmax passes over.
"""

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from kinfolk.errors import KinfolkError
from kinfolk.transfer.cache import CacheView
from kinfolk.transfer.pair import Pair


class Difference(PreTrainedModel):
    """z_tuned - z_small of two models of one shape, as one decoder to put in the place of a value network.

    Its config is theirs with twice the layers, so that a cache has room for both. It decodes, and cannot be saved:
    save the two models.
    """

    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, tuned: PreTrainedModel, small: PreTrainedModel) -> None:
        """Adopt both. KinfolkError where they are one model, or of unlike shapes."""
        layers, others = (model.config.num_hidden_layers for model in (tuned, small))
        if tuned is small or layers != others or tuned.config.vocab_size != small.config.vocab_size:
            raise KinfolkError(
                "proxy-tuning needs a small model and the same one tuned", fix="give two models of one shape"
            )
        config: Any = copy.deepcopy(small.config)
        config.num_hidden_layers = 2 * layers
        if getattr(config, "layer_types", None):
            config.layer_types = [*config.layer_types, *config.layer_types]
        super().__init__(config)
        self.tuned = tuned
        self.small = small
        self.layers = layers
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """The difference (batch, kept positions, vocab) in float32."""
        parts: list[Any] = [None, None]
        if past_key_values is not None:
            parts = [
                CacheView(past_key_values, slice(0, self.layers)),
                CacheView(past_key_values, slice(self.layers, None)),
            ]
        tuned, small = (
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=part,
                use_cache=part is not None,
                logits_to_keep=logits_to_keep,
            ).logits.float()
            for model, part in zip((self.tuned, self.small), parts, strict=True)
        )
        return CausalLMOutputWithPast(logits=tuned - small, past_key_values=past_key_values)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The small model's."""
        embeddings: torch.nn.Module = self.small.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: logits are a difference, so that no one matrix makes them."""
        return

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refused."""
        raise KinfolkError("a proxy is for decoding only", fix="save its models one by one")


def proxy_tuned(large: PreTrainedModel, tuned: PreTrainedModel, small: PreTrainedModel, strength: float = 1.0) -> Pair:
    """A model that decodes as `large` would if it were tuned as `tuned` was, which `small` was before.

    `strength` is the a of the formula.
    """
    return Pair.of(large, Difference(tuned, small), strength).train(False)
