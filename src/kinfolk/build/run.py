"""A run directory: begun by one process, opened by all, and what is still to do in it."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk import files
from kinfolk.build.ledger import Ledger
from kinfolk.data import tokens
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.family.load import LoadedFamily, dump_family, first_difference, with_absolute_paths
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document
from kinfolk.plan.stages import Plan, Stage
from kinfolk.plan.strategies import Strategy, plan_family
from kinfolk.train import checkpoint
from kinfolk.train.monitor import View


class BuildView(View, Protocol):
    """A view that also knows the whole plan, and watches the preparation of the data."""

    def planned(self, name: str, stages: Sequence[dict[str, Any]]) -> None: ...

    def prepared(self, what: str, done: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class Run:
    """What every part of a build needs to know, fixed once the data are ready."""

    folder: Path
    family: Family
    plan: Plan
    document: dict[str, Any]
    """The plan with its costs, as plan.json holds it."""
    store: TokenStore
    tokenizer: PreTrainedTokenizerBase
    ledger: Ledger

    @property
    def stages(self) -> Path:
        """Folder of the stages' folders."""
        return self.folder / "stages"

    def checkpoints(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.stages / stage / "checkpoints"

    def member(self, name: str) -> Path:
        """Folder of a member, there once it is finished."""
        return self.folder / "members" / name


def begin_run(loaded: LoadedFamily, folder: Path, view: BuildView, strategy: Strategy = plan_family) -> None:
    """Tokenise the data and write down the resolved family and plan, as far as that was not done before.

    KinfolkError for a folder that holds another family, and for what is wrong with the data.
    """
    began = time.monotonic()
    family = with_absolute_paths(loaded)
    record = folder / "family.yaml"
    if record.exists():
        difference = first_difference(record.read_text("utf-8"), dump_family(family))
        if difference:
            raise KinfolkError(
                f"this run directory was begun with another family file: {difference}",
                where=str(folder),
                fix="use the same family file and --set values, or another --run",
            )
    shutil.rmtree(folder / ("data" + files.UNFINISHED), ignore_errors=True)
    store = tokens.prepare(family, loaded.folder, folder / "data", view.prepared, where=loaded.origin)
    ledger = Ledger(folder / "ledger.jsonl")
    if not ledger.events("data_prepared"):
        ledger.append("data_prepared", **data_counts(store), seconds=time.monotonic() - began)
    if not record.exists():
        settled = _with_vocabulary(family, store)
        files.write_json(folder / "plan.json", plan_document(settled, strategy(settled)))
        files.write_text(record, dump_family(family))


def open_run(loaded: LoadedFamily, folder: Path, strategy: Strategy = plan_family) -> Run:
    """Open a directory that `begin_run` has prepared."""
    store = tokens.open_store(folder / "data")
    family = _with_vocabulary(with_absolute_paths(loaded), store)
    plan = strategy(family)
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer)
    ledger = Ledger(folder / "ledger.jsonl")
    return Run(folder, family, plan, plan_document(family, plan), store, tokenizer, ledger)


def unfinished_members(run: Run) -> set[str]:
    """The members that are not finished, or whose folder has gone since."""
    finished = {event["member"] for event in run.ledger.events("member_finished")}
    wanted = {stage.member for stage in run.plan.stages if stage.member is not None}
    return {name for name in wanted if name not in finished or not run.member(name).is_dir()}


def stages_to_train(run: Run) -> set[str]:
    """The stages that are not finished, and finished ones whose last state is gone and still needed.

    A last state is needed for as long as the stage's member is not exported, or a child has not begun.
    """
    finished = {event["stage"] for event in run.ledger.events("stage_finished")}
    members, found = unfinished_members(run), set[str]()

    def is_needed(stage: Stage) -> bool:
        children = [child.name for child in run.plan.stages if child.parent == stage.name]
        return stage.member in members or any(
            child in found and checkpoint.latest(run.checkpoints(child)) is None for child in children
        )

    for stage in reversed(run.plan.stages):  # children first
        gone = checkpoint.latest(run.checkpoints(stage.name)) is None
        if stage.name not in finished or (gone and is_needed(stage)):
            found.add(stage.name)
    return found


def data_counts(store: TokenStore) -> dict[str, int]:
    """Tokens, bytes and documents of both parts of the data."""
    return {
        "train_tokens": len(store.train),
        "train_bytes": store.train_documents.total_bytes,
        "train_documents": len(store.train_documents),
        "held_out_tokens": len(store.held_out),
        "held_out_bytes": store.held_out_documents.total_bytes,
        "held_out_documents": len(store.held_out_documents),
    }


def _with_vocabulary(family: Family, store: TokenStore) -> Family:
    """The family with the embedding's rows settled, which a loaded tokenizer decides."""
    rows = family.model.vocab_size or store.vocab_size
    return family.model_copy(update={"model": family.model.model_copy(update={"vocab_size": rows})})
