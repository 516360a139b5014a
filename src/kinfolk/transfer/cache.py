"""The cache of a pair: one list of layers, the base's first, of which each child sees its own part.

One list, so that whatever transformers does to a cache while it generates (reorder for beams, crop after a rejected
draft, reset, repeat) reaches both children at once.
"""

from typing import Any

from transformers import DynamicCache, PreTrainedConfig, StaticCache
from transformers.cache_utils import Cache

from kinfolk.errors import KinfolkError
from kinfolk.transfer.config import PairConfig
from kinfolk.transfer.prefixes import Prefixes


class CacheView(Cache):
    """The layers `part` of another cache, which a child takes for its own cache."""

    def __init__(self, whole: Cache, part: slice) -> None:
        # Not the parent's __init__: it would set `layers`, which here are always those of `whole`.
        self.whole, self.part = whole, part
        self.layer_class_to_replicate = None
        self.offloading = False

    @property
    def layers(self) -> list[Any]:  # type: ignore[override]
        """The layers of the part, the same objects as in the whole."""
        return list(self.whole.layers[self.part])


def new_cache(config: PairConfig) -> DynamicCache:
    """An empty cache that grows, with the layers that each child would make for itself."""
    cache = DynamicCache()
    fit_cache(cache, config)
    return cache


def fit_cache(cache: Cache, config: PairConfig) -> None:
    """Give an empty cache the layers of a pair; KinfolkError for a cache that cannot hold them.

    `generate` makes a cache from the pair's config, which has one window for all layers where the children may have
    two, and a cache that was made without a config has no layers at all until a child appends its own.
    """
    layers: Any = cache.layers
    if any(getattr(layer, "is_initialized", False) for layer in layers):
        _check_fit(cache, config)
        return
    if cache.offloading:
        raise KinfolkError("a pair's cache cannot be offloaded", where="cache", fix="use a dynamic or a static cache")
    recording = any(getattr(layer, "record_past", False) for layer in layers)
    if isinstance(cache, StaticCache):
        length = max(layer.max_cache_len for layer in layers)
        parts = [StaticCache(config=child, max_cache_len=length).layers for child in _cached(config)]
    elif isinstance(cache, DynamicCache):
        parts = [DynamicCache(config=child).layers for child in _cached(config)]
    else:
        raise KinfolkError(
            f"a pair cannot use a {type(cache).__name__}", where="cache", fix="use a dynamic or a static cache"
        )
    joined: list[Any] = [layer for part in parts for layer in part]
    if config.vocabulary is not None:
        joined.append(Prefixes())
    cache.layers = joined
    cache.layer_class_to_replicate = None
    if recording:
        cache.activate_past_recording()  # type: ignore[no-untyped-call]


def views(cache: Cache, config: PairConfig) -> tuple[CacheView, CacheView]:
    """What the base and the value network take for their caches."""
    layers = children(config)[0].num_hidden_layers
    return CacheView(cache, slice(0, layers)), CacheView(cache, slice(layers, None))


def children(config: PairConfig) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """The text configs of base and value network."""
    base: Any = config.base
    value: Any = config.value
    return base.get_text_config(decoder=True), value.get_text_config(decoder=True)


def _cached(config: PairConfig) -> list[PreTrainedConfig]:
    """The children whose layers are in the cache as they are; one layer of prefixes stands for a translated one."""
    return list(children(config)[: 1 if config.vocabulary else 2])


def _check_fit(cache: Cache, config: PairConfig) -> None:
    wanted = sum(child.num_hidden_layers for child in _cached(config)) + bool(config.vocabulary)
    if len(cache.layers) != wanted:
        raise KinfolkError(
            f"the cache has {len(cache.layers)} layers, the pair {wanted}",
            where="cache",
            fix="use a cache that this pair has filled",
        )
