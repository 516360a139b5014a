"""A pair of base and value network as a model class for vLLM, outside vLLM's tree. EXPERIMENTAL: never run.

Written from vLLM's interfaces for models; vLLM is not installed where kinfolk is tested. What has to be looked at first
when it is run is listed in README.md beside this file.

    z_pair = z_base + alpha d          (docs/transfer.md)

Both models read the same tokens, so each is one of vLLM's own, with its own layers and their key-value cache. `forward`
gives the two hidden states side by side, because vLLM picks the positions to sample from between `forward` and
`compute_logits`; the latter parts them again.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def register() -> None:
    """What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`."""
    from vllm import ModelRegistry

    import kinfolk.transfer  # noqa: F401  (makes the config of pairs known to transformers)

    ModelRegistry.register_model("Pair", "kinfolk_vllm_pair:PairForCausalLM")


class PairForCausalLM(nn.Module):
    """A residual pair of two models with one vocabulary, as `save_pair` writes it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

        config = vllm_config.model_config.hf_config
        if config.scheme != "residual" or config.vocabulary is not None:
            raise ValueError("only residual pairs with one vocabulary: bake the pair into a plain checkpoint instead")
        self.config = config
        for name in ("base", "value"):
            child = getattr(config, name)
            made = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=child,
                prefix=maybe_prefix(prefix, name),
                architectures=child.architectures,
            )
            setattr(self, name, made)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Never used to embed, as each child reads the ids; vLLM takes a class without it for no text model."""
        embedded: Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Hidden states (tokens, hidden size of the base + hidden size of the value network)."""
        if input_ids is None or inputs_embeds is not None or intermediate_tensors is not None:
            raise ValueError("a pair reads token ids, in one pipeline stage")
        of_base = self.base(input_ids, positions)
        return torch.cat([of_base, self.value(input_ids, positions).to(of_base.dtype)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (tokens, base vocabulary) in float32; None on a rank of tensor parallelism that gathers none."""
        width = self.config.base.hidden_size
        of_base = self.base.compute_logits(hidden_states[..., :width])
        change = self.value.compute_logits(hidden_states[..., width:])
        if of_base is None or change is None:
            return None
        missing = of_base.shape[-1] - change.shape[-1]  # one tokenizer, padded to two heights
        change = nn.functional.pad(change, (0, missing)) if missing > 0 else change[..., : of_base.shape[-1]]
        total: Tensor = of_base.float() + self.config.alpha * change.float()
        return total

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The checkpoint's tensors are named base.* and value.*, and each child loads its own."""
        from vllm.model_executor.models.utils import AutoWeightsLoader

        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
