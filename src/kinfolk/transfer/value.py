"""Train a value network on frozen bases: inverse value learning (Lu et al., arXiv 2410.21027)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.build.ledger import Ledger
from kinfolk.train.engine import Engine, Precision
from kinfolk.train.model import new_model
from kinfolk.transfer.anchors import Anchors, read_anchors
from kinfolk.transfer.base_logits import BaseLogits, Cached, Recomputed, cache_bytes, logit_width, write_cache
from kinfolk.transfer.card import value_card
from kinfolk.transfer.costs import check_disk, logit_costs, matrix_parameters, training_flops
from kinfolk.transfer.head import zero_head
from kinfolk.transfer.job import CACHE, Prepared, carry_out
from kinfolk.transfer.objective import PairLoss, Regulariser
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.record import export, transfer_record
from kinfolk.transfer.sources import (
    TransferView,
    check_same_tokenizer,
    context_of,
    load_member,
    read_material,
)
from kinfolk.transfer.template import ChatTemplate
from kinfolk.transfer.training import Material, Trained, all_batches, held_out_loss, micro_batch_tokens
from kinfolk.transfer.value_request import NAME, ValueRequest, init_folder

ANCHOR_SHARE = 0.25
"""Tokens of anchor text for a token of demonstrations: as many windows a step, so much shorter."""
_SHORTEST_ANCHOR = 16


@dataclass(frozen=True)
class _Loaded:
    """Models on the CPU, and what else belongs to them."""

    request: ValueRequest
    document: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    value: PreTrainedModel
    bases: tuple[PreTrainedModel, ...]
    watched: tuple[PreTrainedModel, ...]
    material: Material
    view: TransferView

    def pairs(self, bases: Sequence[PreTrainedModel], value: PreTrainedModel) -> list[Pair]:
        """A value network with each of the bases."""
        return [Pair.of(base, value, 1 / self.request.beta, self.request.scheme) for base in bases]


def train_value(request: ValueRequest, folder: Path, view: TransferView) -> dict[str, Any]:
    """Train a value network in the run directory `folder`, whose folder `value` then holds it as a stock checkpoint.

    Returns the ledger's record of the result. Raises KinfolkError before any compute for what the user can mend.
    """
    document = request.document(view)
    return carry_out(request.settings, document, lambda: _prepare(request, document, view), folder, view)


def _prepare(request: ValueRequest, document: dict[str, Any], view: TransferView) -> Prepared:
    loaded = _load(request, document, view)
    return Prepared(
        NAME,
        loaded.value,
        (*loaded.bases, *loaded.watched),
        loaded.material,
        partial(_objective, loaded),
        partial(_export, loaded),
    )


def _load(request: ValueRequest, document: dict[str, Any], view: TransferView) -> _Loaded:
    members = [load_member(base) for base in request.bases]
    tokenizer = members[0][1]
    first = request.bases[0]
    check_same_tokenizer(tokenizer, first, zip(request.bases[1:], [theirs for _, theirs in members[1:]], strict=True))
    value = _initial_value(request, tokenizer)
    watched: tuple[PreTrainedModel, ...] = ()
    if request.watch is not None:
        model, theirs = load_member(request.watch)
        check_same_tokenizer(tokenizer, first, [(request.watch, theirs)])
        watched = (model.requires_grad_(False),)
    bases = tuple(model.requires_grad_(False) for model, _ in members)
    models = (*bases, *watched, value)
    train, held_out, template = read_material(request.data, tokenizer, models, first, view)
    anchors = _anchors(request, tokenizer, models, train.tokens / len(train), view)
    material = Material(train, held_out, anchors)
    loaded = _Loaded(request, document, tokenizer, template, value, bases, watched or bases, material, view)
    loaded.pairs((*bases, *watched), value)  # refuses what does not go together
    return loaded


def _initial_value(request: ValueRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    folder = init_folder(request.value) or request.bases[0]
    value, theirs = load_member(folder)
    check_same_tokenizer(tokenizer, request.bases[0], [(folder, theirs)])
    if request.is_scratch:
        value = new_model(copy.deepcopy(value.config), request.settings.seeds["weights"])
    return zero_head(value) if request.zero_head else value


def _anchors(
    request: ValueRequest,
    tokenizer: PreTrainedTokenizerBase,
    models: Sequence[PreTrainedModel],
    tokens_per_demonstration: float,
    view: TransferView,
) -> Anchors | None:
    if request.anchor is None:
        return None
    path = request.anchor
    wanted = max(_SHORTEST_ANCHOR, round(ANCHOR_SHARE * tokens_per_demonstration))
    length = min(*(context_of(model) for model in models), wanted)
    windows = read_anchors(path, tokenizer, length, lambda done: view.counted(f"reading {path.name}", done, None))
    return Anchors(windows, request.settings.demonstrations_per_step, request.settings.seeds["anchors"])


def _objective(loaded: _Loaded, engine: Engine, precision: Precision, folder: Path, ledger: Ledger) -> nn.Module:
    """The loss on the device, with the bases' logits from wherever they are wanted."""
    for base in {id(each): each for each in (*loaded.bases, *loaded.watched)}.values():
        engine.place(base)
    request, settings = loaded.request, loaded.request.settings
    if request.scheme == "residual" and engine.is_main:
        _tell_costs(loaded, engine, precision, folder)
    sources: list[BaseLogits] = [Recomputed(base) for base in loaded.bases]
    if request.cache_logits:
        most_tokens = micro_batch_tokens(settings, loaded.value, engine)
        for index, base in enumerate(loaded.bases):
            path, width = folder / CACHE / f"{index}.float16", logit_width(base)
            engine.on_main(partial(_cache, loaded, path, base, most_tokens, precision, engine, ledger))
            sources[index] = Cached(path, loaded.material.train, width)
    engine.place(loaded.value)
    return PairLoss(
        loaded.pairs(loaded.bases, loaded.value),
        loaded.pairs(loaded.watched, loaded.value),
        sources,
        [Recomputed(base) for base in loaded.watched],
        request.regulariser,
    )


def _tell_costs(loaded: _Loaded, engine: Engine, precision: Precision, folder: Path) -> None:
    """State beforehand what the bases' logits cost in time, disk and memory, cached or not."""
    train = loaded.material.train
    settings = loaded.request.settings
    batch = all_batches(train, micro_batch_tokens(settings, loaded.value, engine))[0].to(engine.device)
    costs = logit_costs(loaded.bases, train, settings.epochs, batch, precision, engine)
    loaded.view.say(costs.sentence(loaded.request.cache_logits))
    if loaded.request.cache_logits and not (folder / CACHE).exists():
        check_disk(folder, costs.disk_bytes)


def _cache(
    loaded: _Loaded,
    path: Path,
    base: PreTrainedModel,
    most_tokens: int,
    precision: Precision,
    engine: Engine,
    ledger: Ledger,
) -> None:
    train, width = loaded.material.train, logit_width(base)
    wanted = cache_bytes(train, width)
    if path.exists() and path.stat().st_size == wanted:
        return
    progress = partial(loaded.view.counted, "caching base logits")
    write_cache(path, base, train, width, most_tokens, precision, engine, progress)
    ledger.append("logits_cached", file=path.name, bytes=wanted)


def _export(
    loaded: _Loaded, value: PreTrainedModel, trained: Trained, engine: Engine, precision: Precision, target: Path
) -> dict[str, Any]:
    """Write the value network with its record; returns the ledger's figures."""
    request, material = loaded.request, loaded.material
    engine.place(value)
    scored = _scores(loaded, value, engine, precision)
    value.cpu()
    once = request.cache_logits
    read = material.train.tokens if once else trained.tokens
    flops = training_flops(
        matrix_parameters(value),
        [matrix_parameters(base) for base in loaded.bases],
        trained.tokens + trained.anchor_tokens,
        read + trained.anchor_tokens,
    )
    results = {"steps": trained.steps, "best_step": trained.best_step, "tokens": trained.tokens, "held_out": scored}
    record = transfer_record(loaded.document, loaded.tokenizer, loaded.template, material, results | {"flops": flops})
    digest = export(target, value, loaded.tokenizer, loaded.template, record, value_card(record))
    for each in scored:
        loaded.view.say(
            f"{each['base']}{'' if each['trained_on'] else ', not trained on'}: held-out loss {each['base_loss']:.4f} "
            f"alone, {each['pair_loss']:.4f} with the value network (nats per response token)"
        )
    return {"flops": flops, "held_out": scored, "sha256": digest}


def _scores(loaded: _Loaded, value: PreTrainedModel, engine: Engine, precision: Precision) -> list[dict[str, Any]]:
    """Loss on all held-out demonstrations of every base, alone (alpha = 0) and with the value network."""
    batches = all_batches(loaded.material.held_out, micro_batch_tokens(loaded.request.settings, value, engine))
    named = list(zip(loaded.document["bases"], loaded.bases, strict=True))
    if loaded.request.watch is not None:
        named.append((loaded.document["watch"], loaded.watched[0]))
    rows = []
    progress = partial(loaded.view.counted, "scoring held-out demonstrations")
    for each, base in named:
        losses = []
        for alpha in (0.0, 1 / loaded.request.beta):
            pair = Pair.of(base, value, alpha, loaded.request.scheme)
            objective = PairLoss([pair], [pair], [Recomputed(base)], [Recomputed(base)], Regulariser())
            losses.append(held_out_loss(objective, batches, precision, engine, progress))
        is_trained_on = base is not (loaded.watched[0] if loaded.request.watch else None)
        rows.append({"base": each["name"], "trained_on": is_trained_on, "base_loss": losses[0], "pair_loss": losses[1]})
    return rows
