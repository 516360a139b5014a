"""The config of a pair: the configs of its two models, and how they are added up."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from kinfolk.errors import KinfolkError
from kinfolk.train.model import is_token_ready

SCHEMES = ("residual", "cascade", "cascade_without_text")
"""What the value network reads: the text; the text and the base's expected next token; only the latter."""


class PairConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """A base, a value network, and z_pair = z_base + alpha d (Lu et al., arXiv 2410.21027, section 3).

    `base` and `value` are configs (or their dictionaries). `scheme` is one of `SCHEMES`. `vocabulary` names the file
    of the map between the vocabularies of the two, or is None if they share one. All else that transformers reads of a
    config (sizes, token ids, the kind of each layer) is computed from the two: it describes the base, except that
    layers are those of the base and then those of the value network.

    Raises KinfolkError for an unknown scheme, a child that is no decoder, and a cascade between two vocabularies.
    """

    model_type = "kinfolk_pair"
    sub_configs: ClassVar[dict[str, Any]] = {"base": AutoConfig, "value": AutoConfig}
    has_no_defaults_at_init: ClassVar[bool] = True

    base: dict[str, Any] | PreTrainedConfig | None = None
    value: dict[str, Any] | PreTrainedConfig | None = None
    alpha: float = 1.0
    scheme: str = "residual"
    vocabulary: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.base, self.value = _config_of(self.base, "base"), _config_of(self.value, "value")
        chosen = [(config._attn_implementation, config._experts_implementation) for config in (self.base, self.value)]
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        # What was just set recursively is None unless asked for, and a model that was built before, with None for its
        # attention, forgets its causal mask without a word.
        for config, (attention, experts) in zip((self.base, self.value), chosen, strict=True):
            if self._attn_implementation is None:
                config._attn_implementation = attention
            if self._experts_implementation is None:
                config._experts_implementation = experts
        self._check()
        self._describe(self.base, self.value)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The config itself, whatever is asked for: neither child alone describes what is generated from."""
        return self

    def _check(self) -> None:
        if self.scheme not in SCHEMES:
            raise KinfolkError(f"{self.scheme!r} is no scheme", where="scheme", fix=f"use one of {', '.join(SCHEMES)}")
        if self.vocabulary is not None and self.scheme != "residual":
            raise KinfolkError(
                f"the scheme {self.scheme} feeds the base's probabilities to the value network, so both must have one "
                "vocabulary",
                where="vocabulary",
                fix="use the scheme residual",
            )
        for name in ("base", "value"):
            if getattr(self, name).is_encoder_decoder or isinstance(getattr(self, name), PairConfig):
                raise KinfolkError("not a decoder of its own", where=name, fix="use a causal language model")

    def _describe(self, base: PreTrainedConfig, value: PreTrainedConfig) -> None:
        texts = [config.get_text_config(decoder=True) for config in (base, value)]
        first: Any = texts[0]
        self.vocab_size = first.vocab_size
        self.hidden_size = first.hidden_size
        self.num_attention_heads = first.num_attention_heads
        self.num_key_value_heads = getattr(first, "num_key_value_heads", None) or first.num_attention_heads
        self.head_dim = getattr(first, "head_dim", None) or first.hidden_size // first.num_attention_heads
        self.num_hidden_layers = sum(text.num_hidden_layers for text in texts)
        self.layer_types = [kind for text in texts for kind in _layer_types(text)]
        # The real windows are the children's own (see cache.py); the widest gives a static cache its length.
        self.sliding_window = _largest(getattr(text, "sliding_window", None) for text in texts)
        self.attention_chunk_size = _largest(getattr(text, "attention_chunk_size", None) for text in texts)
        contexts = [getattr(text, "max_position_embeddings", None) for text in texts]
        self.max_position_embeddings = min((length for length in contexts if length), default=None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, name, getattr(first, name, None))
        self.tie_word_embeddings = False  # between the pair's own parts; each child ties its own
        if not (is_token_ready(base) and is_token_ready(value)):
            self.token_ready = False


def _config_of(given: Any, name: str) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    if not isinstance(given, dict) or "model_type" not in given:
        raise KinfolkError("a pair needs the configs of both its models", where=name, fix="give a config")
    settings = dict(given)
    config: PreTrainedConfig = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return config


def _layer_types(text: Any) -> list[str]:
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    kind = "full_attention"
    if getattr(text, "sliding_window", None) is not None:
        kind = "sliding_attention"
    elif getattr(text, "attention_chunk_size", None) is not None:
        kind = "chunked_attention"
    return [kind] * int(text.num_hidden_layers)


def _largest(sizes: Any) -> int | None:
    return max((size for size in sizes if size is not None), default=None)
