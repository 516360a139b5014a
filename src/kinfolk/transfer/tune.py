"""Full fine-tuning of a member on demonstrations: what transfer is compared with, and what proxy-tuning uses."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kinfolk.build.ledger import Ledger
from kinfolk.card.card import Table
from kinfolk.train.engine import Engine, Precision
from kinfolk.transfer.card import model_card
from kinfolk.transfer.costs import matrix_parameters, training_flops
from kinfolk.transfer.job import Prepared, carry_out
from kinfolk.transfer.objective import ResponseLoss
from kinfolk.transfer.record import export, transfer_record
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import Data, TransferView, checkpoint_document, load_member, read_material
from kinfolk.transfer.training import Material, Trained, all_batches, held_out_loss, micro_batch_tokens

NAME = "tuned"


@dataclass(frozen=True)
class TuneRequest:
    """What is asked for."""

    member: Path
    data: Data
    settings: Settings = field(default_factory=Settings)

    def document(self, view: TransferView) -> dict[str, Any]:
        """For the run's record; KinfolkError for a request that names what is not there."""
        return {
            "kind": NAME,
            "bases": [checkpoint_document(self.member, view)],
            **self.data.document(),
            "settings": self.settings.to_dict(),
            "seeds": self.settings.seeds,
        }


def tune_member(request: TuneRequest, folder: Path, view: TransferView) -> dict[str, Any]:
    """Train a whole member on demonstrations in the run directory `folder`, whose folder `tuned` then holds it.

    Returns the ledger's record of the result. Raises KinfolkError before any compute for what the user can mend.
    """
    document = request.document(view)
    return carry_out(request.settings, document, lambda: _prepare(request, document, view), folder, view)


def _prepare(request: TuneRequest, document: dict[str, Any], view: TransferView) -> Prepared:
    model, tokenizer = load_member(request.member)
    train, held_out, template = read_material(request.data, tokenizer, [model], request.member, view)
    material = Material(train, held_out)
    name = document["bases"][0]["name"]

    def objective(engine: Engine, precision: Precision, run: Path, ledger: Ledger) -> nn.Module:
        return ResponseLoss(model)

    def write(
        tuned: PreTrainedModel, trained: Trained, engine: Engine, precision: Precision, target: Path
    ) -> dict[str, Any]:
        engine.place(tuned)
        progress = partial(view.counted, "scoring held-out demonstrations")
        batches = all_batches(held_out, micro_batch_tokens(request.settings, tuned, engine))
        loss = held_out_loss(ResponseLoss(tuned), batches, precision, engine, progress)
        before, _ = load_member(request.member)
        engine.place(before)
        base_loss = held_out_loss(ResponseLoss(before), batches, precision, engine, progress)
        tuned.cpu()
        losses = {"base_loss": base_loss, "tuned_loss": loss}
        flops = training_flops(matrix_parameters(tuned), [], trained.tokens, 0)
        results = {"steps": trained.steps, "best_step": trained.best_step, "tokens": trained.tokens, "flops": flops}
        record = transfer_record(document, tokenizer, template, material, results | losses)
        table = Table(("before", "after"), ((f"{base_loss:.4f}", f"{loss:.4f}"),))
        lineage = f"The whole of {name}, fine-tuned on demonstrations."
        card = model_card(record, request.member, lineage, table, losses)
        digest = export(target, tuned, tokenizer, template, record, card)
        return losses | {"flops": flops, "sha256": digest}

    return Prepared(NAME, model, (), material, objective, write)
