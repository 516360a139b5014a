"""Bake a pair into its base: distil both into one plain model of the base's shape, which decodes at the base's cost."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kinfolk.build.ledger import Ledger
from kinfolk.card.card import Table
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.loss import evaluation_mode
from kinfolk.train.engine import Engine, Precision
from kinfolk.transfer.base_logits import scored_logits
from kinfolk.transfer.batches import Batch
from kinfolk.transfer.card import model_card
from kinfolk.transfer.costs import matrix_parameters, training_flops
from kinfolk.transfer.job import Prepared, carry_out
from kinfolk.transfer.objective import BakeLoss, divergence, pair_logits
from kinfolk.transfer.pair import Pair
from kinfolk.transfer.record import check_fits, export, transfer_record
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import (
    Data,
    TransferView,
    check_same_tokenizer,
    checkpoint_document,
    load_member,
    read_material,
)
from kinfolk.transfer.template import ChatTemplate
from kinfolk.transfer.training import Material, Trained, all_batches, micro_batch_tokens

NAME = "baked"


@dataclass(frozen=True)
class BakeRequest:
    """What is asked for."""

    base: Path
    value: Path
    data: Data
    settings: Settings = field(default_factory=Settings)
    share: float = 1.0
    """mu: the weight of KL(p_pair || p_student); that of the demonstrations' own cross-entropy is 1 - mu."""
    alpha: float | None = None
    """Of the pair; by default as the value network was trained."""

    def document(self, view: TransferView) -> dict[str, Any]:
        """For the run's record; KinfolkError for a request that makes no sense, or names what is not there."""
        if not 0 <= self.share <= 1:
            raise KinfolkError(f"a share of {self.share:g}", where="--mu", fix="give 0 to 1")
        return {
            "kind": NAME,
            "bases": [checkpoint_document(self.base, view)],
            "value": checkpoint_document(self.value, view),
            "mu": self.share,
            "alpha": self.alpha,
            **self.data.document(),
            "settings": self.settings.to_dict(),
            "seeds": self.settings.seeds,
        }


@dataclass(frozen=True)
class _Loaded:
    request: BakeRequest
    document: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    pair: Pair
    student: PreTrainedModel
    material: Material
    view: TransferView


def bake_pair(request: BakeRequest, folder: Path, view: TransferView) -> dict[str, Any]:
    """Distil a pair in the run directory `folder`, whose folder `baked` then holds a stock checkpoint.

    Returns the ledger's record of the result. Raises KinfolkError before any compute for what the user can mend.
    """
    document = request.document(view)
    return carry_out(request.settings, document, lambda: _prepare(request, document, view), folder, view)


def _prepare(request: BakeRequest, document: dict[str, Any], view: TransferView) -> Prepared:
    base, tokenizer = load_member(request.base)
    record = check_fits(request.value, request.base, tokenizer)
    value, theirs = load_member(request.value)
    check_same_tokenizer(tokenizer, request.base, [(request.value, theirs)])
    alpha = request.alpha if request.alpha is not None else record["alpha"] if record else 1.0
    pair = Pair.of(base, value, alpha, record["scheme"] if record else "residual").requires_grad_(False).train(False)
    student, _ = load_member(request.base)
    if request.data.template is None and theirs.chat_template:
        tokenizer.chat_template = theirs.chat_template  # that of its demonstrations
    train, held_out, template = read_material(request.data, tokenizer, [base, value], request.base, view)
    material = Material(train, held_out)
    loaded = _Loaded(request, document, tokenizer, template, pair, student, material, view)
    return Prepared(NAME, student, (base, value), material, partial(_objective, loaded), partial(_export, loaded))


def _objective(loaded: _Loaded, engine: Engine, precision: Precision, run: Path, ledger: Ledger) -> nn.Module:
    engine.place(loaded.pair)
    return BakeLoss(loaded.student, loaded.pair, loaded.request.share)


def _export(
    loaded: _Loaded, baked: PreTrainedModel, trained: Trained, engine: Engine, precision: Precision, target: Path
) -> dict[str, Any]:
    """Write the baked model with its record; returns what baking lost."""
    engine.place(baked)
    batches = all_batches(loaded.material.held_out, micro_batch_tokens(loaded.request.settings, baked, engine))
    with evaluation_mode(baked):
        found = _comparison(loaded, baked, batches, precision, engine)
    baked.cpu()
    frozen = [matrix_parameters(loaded.pair.base), matrix_parameters(loaded.pair.value)]
    flops = training_flops(matrix_parameters(baked), frozen, trained.tokens, trained.tokens)
    results = {"steps": trained.steps, "best_step": trained.best_step, "tokens": trained.tokens, "flops": flops}
    record = transfer_record(
        loaded.document, loaded.tokenizer, loaded.template, loaded.material, results | {"held_out": found}
    )
    name, value = loaded.document["bases"][0]["name"], loaded.document["value"]["name"]
    columns = ("base_loss", "pair_loss", "baked_loss", "kl")
    table = Table(
        ("base", "base and value network", "baked", "KL(pair, baked)"), (tuple(f"{found[key]:.4f}" for key in columns),)
    )
    lineage = f"{name} and the value network {value}, distilled into one model of the shape of {name}."
    card = model_card(record, loaded.request.base, lineage, table, found)
    digest = export(target, baked, loaded.tokenizer, loaded.template, record, card)
    loaded.view.say(
        f"held-out loss: base {found['base_loss']:.4f}, pair {found['pair_loss']:.4f}, baked "
        f"{found['baked_loss']:.4f}; KL(pair || baked) {found['kl']:.4f}"
    )
    return found | {"flops": flops, "sha256": digest}


@torch.no_grad()
def _comparison(
    loaded: _Loaded, baked: PreTrainedModel, batches: list[Batch], precision: Precision, engine: Engine
) -> dict[str, float]:
    """Mean losses of base, pair and baked, and KL(pair || baked), in nats per response token."""
    pair, sums = loaded.pair, torch.zeros(4, dtype=torch.float64)
    for done, each in enumerate(batches):
        batch = each.to(engine.device)
        with engine.autocast(precision):
            logits = [scored_logits(pair.base, batch), pair_logits(pair, batch), scored_logits(baked, batch)]
        losses = [nn.functional.cross_entropy(found, batch.targets, reduction="sum") for found in logits]
        sums += torch.stack([*losses, divergence(logits[1], logits[2])]).double().cpu()
        loaded.view.counted("comparing on held-out demonstrations", done + 1, len(batches))
    means = (sums / sum(int(batch.scored.sum()) for batch in batches)).tolist()
    return dict(zip(("base_loss", "pair_loss", "baked_loss", "kl"), means, strict=True))
