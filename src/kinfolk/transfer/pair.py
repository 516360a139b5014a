"""The pair of base and value network as one model: z_pair = z_base(x) + alpha d(x) (Lu et al., arXiv 2410.21027).

A transformers model like any other: `generate` in all its ways, `save_pretrained`, `from_pretrained`.
"""

import copy
import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from kinfolk.errors import KinfolkError
from kinfolk.transfer.cache import CacheView, fit_cache, new_cache, views
from kinfolk.transfer.config import PairConfig


class Pair(PreTrainedModel, GenerationMixin):
    """A frozen base and a value network, whose logits are added up in float32.

    No gradient runs through the base, and it always stays in evaluation mode. In the residual scheme the value
    network's logits depend on the text alone, not on the base, so one `value_logits` serves several bases.
    """

    config_class = PairConfig
    config: PairConfig
    base: PreTrainedModel
    value: PreTrainedModel
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _is_stateful = False

    def __init__(
        self, config: PairConfig, base: PreTrainedModel | None = None, value: PreTrainedModel | None = None
    ) -> None:
        """Build both models from the config, or adopt those given, which must own the config's two configs."""
        super().__init__(config)
        self.base = base if base is not None else _built(config.base)
        self.value = value if value is not None else _built(config.value)
        config.base, config.value = self.base.config, self.value.config
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, base: PreTrainedModel, value: PreTrainedModel, alpha: float = 1.0, scheme: str = "residual") -> Self:
        """The pair of two models that are there already; they are used, not copied, and keep their attention.

        Raises KinfolkError for an unknown scheme, for one model given twice, and for models that differ in vocabulary
        by more than padding could (more than 1,024 rows).
        """
        if base is value:
            raise KinfolkError("base and value network are the same model", fix="give two models")
        rows, value_rows = _rows(base), _rows(value)
        if abs(rows - value_rows) > _PADDING_ROWS:
            raise KinfolkError(
                f"the value network has a vocabulary of {value_rows} tokens, the base one of {rows}",
                where="value network",
                fix="use one that was made with the base's tokenizer",
            )
        config = PairConfig(base=base.config, value=value.config, alpha=alpha, scheme=scheme)
        config.dtype = base.config.dtype
        with no_init_weights():  # their weights are what they are wanted for
            pair = cls(config, base, value)
        if base.generation_config is not None:
            pair.generation_config = copy.deepcopy(base.generation_config)
        return pair.train(value.training)

    @property
    def alpha(self) -> float:
        """The weight of the value network; 1 in training, 0 is the base."""
        return self.config.alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        self.config.alpha = alpha

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, kept positions, base vocabulary), float32, of token ids (batch, time), as of any causal model.

        `attention_mask` is (batch, time so far), 0 at padding. Output is never a tuple, whatever `return_dict` says.
        """
        cache = past_key_values
        if cache is None and use_cache:
            cache = new_cache(self.config)
        elif cache is not None:
            fit_cache(cache, self.config)
        of_base, of_value = (None, None) if cache is None else views(cache, self.config)
        common = {"attention_mask": attention_mask, "position_ids": position_ids}
        every = self.config.scheme != "residual"  # a cascade reads what the base predicts at every position
        with torch.no_grad():
            base_logits = _logits(
                self.base, of_base, 0 if every else logits_to_keep, input_ids=input_ids, **common
            ).float()
        change = self.value_logits(
            input_ids, **common, cache=of_value, base_logits=base_logits, logits_to_keep=logits_to_keep
        )
        base_logits = kept(base_logits, logits_to_keep) if every else base_logits
        return CausalLMOutputWithPast(logits=self.combined(base_logits, change), past_key_values=cache)

    def value_logits(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: CacheView | None = None,
        base_logits: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Tensor:
        """The change d (batch, kept positions, base vocabulary) in float32, before alpha; with gradient.

        `base_logits` (batch, time, base vocabulary), at all positions, is needed by cascades and unread by residual.
        Where the two widths differ by padding, d is cut or padded with 0.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if self.config.scheme != "residual":
            if base_logits is None:
                raise KinfolkError(f"the scheme {self.config.scheme} needs the base's logits", where="base_logits")
            inputs = {"inputs_embeds": self._cascade_embeddings(input_ids, base_logits)}
        change = _logits(
            self.value, cache, logits_to_keep, **inputs, attention_mask=attention_mask, position_ids=position_ids
        )
        return fit_width(change.float(), self.config.vocab_size)

    def combined(self, base_logits: Tensor, change: Tensor) -> Tensor:
        """z_base + alpha d, of float32 (..., base vocabulary)."""
        return base_logits + self.alpha * change

    def train(self, mode: bool = True) -> Self:
        """Training mode of the value network only: the base is frozen, its dropout off."""
        super().train(mode)
        self.base.eval()  # type: ignore[no-untyped-call]
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The base's."""
        embeddings: nn.Module = self.base.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: logits are a sum, so that no one matrix makes them."""
        return

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Embedding:
        """Refused: rows would have to be added to both models alike."""
        raise KinfolkError("a pair cannot be resized", fix="resize base and value network, then pair them again")

    def generate_batch(self, *_: Any, **__: Any) -> Any:
        """Refused: paged attention takes a model for one stack of layers."""
        raise _no_continuous_batching()

    def init_continuous_batching(self, *_: Any, **__: Any) -> Any:
        """Refused: paged attention takes a model for one stack of layers."""
        raise _no_continuous_batching()

    def create_masks_for_generate(self, attention_mask: Tensor | None, **_: Any) -> Tensor | None:
        """The mask as it is: each child makes its own masks of it, for its own windows."""
        return attention_mask

    def _get_static_cache_init_shape(self) -> None:
        """None, which leaves the layers of a static cache to be shaped by the child that fills them."""
        return

    def _cascade_embeddings(self, input_ids: Tensor, base_logits: Tensor) -> Tensor:
        """What a cascade reads (batch, time, hidden size of the value network)."""
        embedding: Any = self.value.get_input_embeddings()
        rows = min(embedding.weight.shape[0], base_logits.shape[-1])
        probabilities = base_logits.softmax(dim=-1)[..., :rows].to(embedding.weight.dtype)
        expected: Tensor = probabilities @ embedding.weight[:rows]
        expected = expected * getattr(embedding, "embed_scale", 1.0)  # as the embedding itself does (Gemma 3)
        if self.config.scheme == "cascade_without_text":
            return expected
        own: Tensor = embedding(input_ids)
        return own + expected


_PADDING_ROWS = 1024
"""One tokenizer can come with embeddings of unlike height, padded to a multiple that suits a machine."""


def fit_width(change: Tensor, width: int) -> Tensor:
    """Cut the last axis to `width`, or pad it with zeros: rows beyond the tokenizer's entries are never predicted."""
    missing = width - change.shape[-1]
    if missing <= 0:
        return change[..., :width]
    return nn.functional.pad(change, (0, missing))


def kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions (axis 1) that `logits_to_keep` means in transformers: the last so many, 0 for all, or indices."""
    if isinstance(logits_to_keep, int):
        return logits[:, -logits_to_keep:] if logits_to_keep else logits
    return logits[:, logits_to_keep]


def _logits(model: PreTrainedModel, cache: CacheView | None, logits_to_keep: int | Tensor, **inputs: Any) -> Tensor:
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    if keeps:
        inputs["logits_to_keep"] = logits_to_keep
    logits: Tensor = model(**inputs, past_key_values=cache, use_cache=cache is not None).logits
    return logits if keeps else kept(logits, logits_to_keep)


def _rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _built(config: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _no_continuous_batching() -> KinfolkError:
    return KinfolkError(
        "a pair cannot do continuous batching: paged attention takes a model for one stack of layers",
        fix="use generate with a left-padded batch, or bake the pair into a plain checkpoint",
    )
