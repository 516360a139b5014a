"""The pair of base and value network as one model: z_pair = z_base(x) + alpha d(x) (Lu et al., arXiv 2410.21027).

A transformers model like any other: `generate` in all its ways, `save_pretrained`, `from_pretrained`.
"""

import copy
import os
from dataclasses import replace
from pathlib import Path
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
from kinfolk.transfer.logits import fit_width, kept, logits_of
from kinfolk.transfer.prefixes import Prefixes
from kinfolk.transfer.translation import MAP_FILE, Translation, load_translation


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

    translation: Translation | None = None
    """The map between two vocabularies, None where the models share one."""

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
    def of(
        cls,
        base: PreTrainedModel,
        value: PreTrainedModel,
        alpha: float = 1.0,
        scheme: str = "residual",
        translation: Translation | None = None,
    ) -> Self:
        """The pair of two models that are there already; they are used, not copied, and keep their attention.

        `translation` is for models of two vocabularies, residual only. Raises KinfolkError for an unknown scheme, for
        one model given twice, for models that differ in vocabulary by more than padding could (more than 1,024 rows)
        and have no translation, and for a translation between other vocabularies.
        """
        if base is value:
            raise KinfolkError("base and value network are the same model", fix="give two models")
        rows, value_rows = _rows(base), _rows(value)
        if translation is not None:
            _check_translation(translation, rows, value_rows)
        elif abs(rows - value_rows) > _PADDING_ROWS:
            raise KinfolkError(
                f"the value network has a vocabulary of {value_rows} tokens, the base one of {rows}",
                where="value network",
                fix="use one that was made with the base's tokenizer, or give a translation",
            )
        file = None if translation is None else MAP_FILE
        config = PairConfig(base=base.config, value=value.config, alpha=alpha, scheme=scheme, vocabulary=file)
        config.dtype = base.config.dtype
        with no_init_weights():  # their weights are what they are wanted for
            pair = cls(config, base, value)
        pair.translation = translation
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
            base_logits = logits_of(
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
        Where the two widths differ by padding, d is cut or padded with 0. With a translation d has the width of the
        value vocabulary, and `combined` maps it.
        """
        if self.config.vocabulary is not None:
            prefixes = Prefixes() if cache is None else cache.layers[0]
            read: Tensor = prefixes.read(self.value, self._translation(), input_ids, attention_mask, logits_to_keep)
            return read
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if self.config.scheme != "residual":
            if base_logits is None:
                raise KinfolkError(f"the scheme {self.config.scheme} needs the base's logits", where="base_logits")
            inputs = {"inputs_embeds": self._cascade_embeddings(input_ids, base_logits)}
        change = logits_of(
            self.value, cache, logits_to_keep, **inputs, attention_mask=attention_mask, position_ids=position_ids
        )
        return fit_width(change.float(), self.config.vocab_size)

    def combined(self, base_logits: Tensor, change: Tensor) -> Tensor:
        """z_base + alpha d in float32 (..., base vocabulary), d as `value_logits` gives it."""
        if self.config.vocabulary is not None:
            between = self._translation()
            if between.map.index.device != base_logits.device:
                between = replace(between, map=between.map.to(base_logits.device))
                self.translation = between
            return between.map.combined(base_logits, change, self.alpha)
        return base_logits + self.alpha * change

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """As any model; a translation is written beside the weights."""
        super().save_pretrained(save_directory, *args, **options)
        if self.translation is not None:
            self.translation.save(Path(save_directory))

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As any model, from a local folder if the pair has a translation."""
        loaded: Any = super().from_pretrained(folder, *args, **options)
        pair = loaded[0] if isinstance(loaded, tuple) else loaded
        if pair.config.vocabulary is not None:
            pair.translation = load_translation(Path(folder))
        return loaded

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

    def _translation(self) -> Translation:
        if self.translation is None:
            raise KinfolkError(
                "the pair was built without its vocabulary map", fix="load it, or pair its models with one"
            )
        return self.translation

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


def _check_translation(translation: Translation, rows: int, value_rows: int) -> None:
    entries, reached = len(translation.map.index), int(translation.map.index.max())
    if entries > rows or (translation.healing is None and reached >= value_rows):
        raise KinfolkError(
            f"the map is from {entries} tokens to {reached + 1} or more, the models have {rows} and {value_rows}",
            where="translation",
            fix="make it with the tokenizers of these two models",
        )


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
