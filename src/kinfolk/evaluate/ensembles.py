"""Two small models together against a larger one that costs as much to run.

Ensembles of small models can beat one large model of the same FLOPs (Kondratyuk et al., arXiv 2005.00570, on images,
averaging the predictions of models trained apart). Members of one family are alike, so the gain may vanish: measure it.
"""

from functools import partial
from itertools import combinations
from math import log
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from kinfolk.errors import KinfolkError, in_short
from kinfolk.evaluate import cache
from kinfolk.evaluate.load import load_config, quiet
from kinfolk.evaluate.loss import DocumentLosses, summary
from kinfolk.evaluate.measure import Progress, load, quietly
from kinfolk.evaluate.text import Text


def mean_probability(first: DocumentLosses, second: DocumentLosses) -> DocumentLosses:
    """The losses of the mean of two models' probabilities, -ln((p + q) / 2) of every token.

    KinfolkError where the two did not score the same tokens in the same windows.
    """
    lengths = [{document: len(nats) for document, nats in each.nats.items()} for each in (first, second)]
    windows = [(each.context_length, each.stride) for each in (first, second)]
    if lengths[0] != lengths[1] or windows[0] != windows[1]:
        raise KinfolkError(
            "the models did not score the same tokens", fix="give models of one tokenizer the same windows"
        )
    nats = {at: log(2) - np.logaddexp(-of_first, -second.nats[at]) for at, of_first in first.nats.items()}
    return DocumentLosses(nats, first.sizes, first.stride, first.context_length)


def flops_per_token(config: PreTrainedConfig, context_length: int) -> float:
    """Forward FLOPs of a token: the matrix products of the real model, head and attention over a full context included.

    The model is run without weights (on torch's meta device). KinfolkError where its code needs their values.
    """
    make: Any = AutoModelForCausalLM.from_config
    mask = torch.zeros(1, 1, context_length, context_length, device="meta")
    tokens = torch.zeros(1, context_length, dtype=torch.long, device="meta")
    try:
        with torch.device("meta"), quiet():
            model = make(config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
    except Exception as error:  # each architecture has faults of its own
        raise KinfolkError(
            f"the FLOPs of this architecture ({config.model_type}) cannot be counted: {in_short(error)}",
            fix="leave --ensembles out",
        ) from error
    return float(counter.get_total_flops()) / context_length


def add_ensembles(
    results: list[dict[str, Any]],
    text: Text,
    context_length: int,
    stride: int | None,
    force: bool,
    progress: Progress = quietly,
) -> None:
    """Give each model's result its `flops_per_token`, and in `two_smaller` the best ensemble at no more FLOPs."""
    paths = [result["model"] for result in results]
    flops = {path: flops_per_token(load_config(path), context_length) for path in paths}
    found = ensembles(flops, text, context_length, stride, force, progress)
    for result in results:
        own = flops[result["model"]]
        result["flops_per_token"] = own
        result["two_smaller"] = best_at_equal_flops(result["model"], own, found)


def ensembles(
    flops: dict[str, float],
    text: Text,
    context_length: int,
    stride: int | None,
    force: bool = False,
    progress: Progress = quietly,
) -> list[dict[str, Any]]:
    """The score of every two of the checkpoints in `flops` (a token's, by path) as an ensemble, as plain data.

    Pairs of different tokenizers have none and are left out.
    """
    seen: dict[str, tuple[dict[str, int], DocumentLosses]] = {}

    def losses(path: str) -> tuple[dict[str, int], DocumentLosses]:
        if path not in seen:
            loaded = load(path, force)
            seen[path] = loaded.tokenizer.get_vocab(), loaded.losses(text, context_length, stride, progress)
        return seen[path]

    def score(first: str, second: str) -> dict[str, Any]:
        (vocabulary, of_first), (other, of_second) = losses(first), losses(second)
        return {"score": summary(mean_probability(of_first, of_second)).to_dict() if vocabulary == other else None}

    digests = {path: cache.checkpoint_digest(path) for path in flops}
    settings = {"text": text.digest(), "context_length": context_length, "stride": stride, "force": force}
    found = []
    for pair in combinations(flops, 2):
        result, _ = cache.remembered("ensemble", [digests[path] for path in pair], settings, partial(score, *pair))
        if result["score"] is not None:
            cost = sum(flops[path] for path in pair)
            found.append({"models": list(pair), "flops_per_token": cost, **result["score"]})
    return found


def best_at_equal_flops(path: str, own_flops: float, candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best ensemble of two other models that together cost no more than this one; None without any."""
    affordable = [
        each for each in candidates if path not in each["models"] and each["flops_per_token"] <= own_flops * (1 + 1e-9)
    ]
    return min(affordable, key=lambda each: float(each["bits_per_byte"]), default=None)
