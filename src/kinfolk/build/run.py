"""A run directory: begun by one process, opened by all."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kinfolk import files
from kinfolk.build.ledger import Ledger
from kinfolk.data.tokens import DamagedStoreError, TokenStore
from kinfolk.data.versions import Stores, joined, open_versions, prepare_versions
from kinfolk.errors import KinfolkError
from kinfolk.family.data import FIRST
from kinfolk.family.load import LoadedFamily, dump_family, first_difference, load_family, with_absolute_paths
from kinfolk.family.spec import Family
from kinfolk.laws.choose import ChosenLaw
from kinfolk.laws.loss import save_law
from kinfolk.plan.document import plan_document
from kinfolk.plan.stages import Plan, Stage
from kinfolk.plan.strategies import Strategy, plan_family
from kinfolk.train.monitor import View

LAW = "law.json"
"""File of the law that a build's stages are held against, if it has one."""

LAW_GIVEN = "law_given"
"""Event of the ledger: from here on there is a law, or another one."""


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
    stores: Stores
    tokenizer: PreTrainedTokenizerBase
    ledger: Ledger

    @property
    def store(self) -> TokenStore:
        """The first version of the data, whose tokenizer and held-out part are everyone's."""
        return self.stores[FIRST]

    def store_of(self, stage: Stage) -> TokenStore:
        """What a stage reads."""
        return joined(self.stores, stage.data)

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


def begin_run(
    loaded: LoadedFamily,
    folder: Path,
    view: BuildView,
    strategy: Strategy = plan_family,
    law: ChosenLaw | None = None,
    alone: bool = True,
) -> None:
    """Tokenise the data and write down the resolved family and plan, as far as that was not done before.

    A family that only has more members, or more versions of the data, than the run was begun with extends it, but not
    while other jobs build what there was: then the caller is not `alone`. KinfolkError for a folder that holds another
    family, and for what is wrong with the data.
    """
    began = time.monotonic()
    family = with_absolute_paths(loaded)
    record = folder / "family.yaml"
    members, versions = _added(record, family, folder) if record.exists() else ([], [])
    added = bool(members or versions)
    if added and not alone:
        raise KinfolkError(
            f"{[*members, *versions][0]} cannot be added while other jobs build without it",
            where=str(folder),
            fix="wait for them, or stop them, and start all of them with this family file",
        )
    shutil.rmtree(folder / ("data" + files.UNFINISHED), ignore_errors=True)
    ledger = Ledger(folder / "ledger.jsonl")
    known = _known_data(ledger)
    stores = _prepared(loaded, family, folder, view, known, alone)
    if FIRST not in known:
        first = stores[FIRST]
        ledger.append("data_prepared", **data_counts(first), sha256=first.digest, seconds=time.monotonic() - began)
    for name in [name for name in stores if name not in (FIRST, *known)]:
        ledger.append("version_prepared", version=name, **data_counts(stores[name]), sha256=stores[name].digest)
    settled = _with_vocabulary(family, stores[FIRST])
    if added:
        _check_earlier_stages(record, settled, stores[FIRST], folder, strategy)
    if added or not record.exists():
        document = _document(settled, strategy(settled), stores, law)
        for warning in document["warnings"]:
            view.say(f"warning: {warning}")
        files.write_json(folder / "plan.json", document)
        files.write_text(record, dump_family(family))
    elif _restated(record, family):
        files.write_text(record, dump_family(family))
    if law is not None:
        save_law(folder / LAW, law.law)
        ledger.append(LAW_GIVEN, law=law.law.name, source=law.law.source)
    if added:
        ledger.append("extended", members=members, versions=versions)


def _known_data(ledger: Ledger) -> dict[str, str | None]:
    """The versions of the data that the run has, with what tells their tokens apart, which older ledgers lack."""
    prepared = [*ledger.events("data_prepared"), *ledger.events("version_prepared")]
    return {event.get("version", FIRST): event.get("sha256") for event in prepared}


def _prepared(
    loaded: LoadedFamily, family: Family, folder: Path, view: BuildView, known: dict[str, str | None], alone: bool
) -> dict[str, TokenStore]:
    """The tokenised data; where they are damaged and it can be told whether they come out the same, made again.

    KinfolkError where other data would come out, also for data that somebody has deleted.
    """

    def prepare() -> dict[str, TokenStore]:
        return prepare_versions(family, loaded.folder, folder / "data", view.prepared, where=loaded.origin)

    try:
        stores = prepare()
    except DamagedStoreError as damage:
        if not known or None in known.values() or damage.store.is_symlink():
            raise
        if not alone:
            raise KinfolkError(
                f"{damage.problem}, and other jobs read the data at the moment",
                where=damage.where,
                fix="stop them; the first that starts again tokenises the data again",
            ) from None
        view.say(f"warning: {damage.where}: {damage.problem}; the data are tokenised again")
        shutil.rmtree(folder / "data")
        stores = prepare()
    for name, digest in known.items():
        if digest is not None and name in stores and stores[name].digest != digest:
            raise KinfolkError(
                f"the tokens of the {name} data are not those that this run was begun with",
                where=str(folder / "data"),
                fix="put back the texts, the tokenizer and the versions of libraries in data.json, and delete the "
                "folder; or build into another --run",
            )
    return stores


def _added(record: Path, family: Family, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the members, and of the versions of the data, that the family has behind those of the record.

    KinfolkError for any other difference, and for a member behind one whose versions the run has.
    """
    recorded = load_family(str(record)).family
    members, versions = recorded.members, recorded.data.versions
    data = family.data.model_copy(update={"versions": family.data.versions[: len(versions)]})
    # How much is computed at once, like the number of processes, is of the machine and not of what is built; what only
    # a model card says may change as well.
    at_once = {"sequences_per_micro_batch": recorded.recipe.sequences_per_micro_batch}
    beginning = family.model_copy(
        update={
            "members": family.members[: len(members)],
            "data": data,
            "recipe": family.recipe.model_copy(update=at_once),
            "card": recorded.card,
        }
    )
    difference = first_difference(dump_family(recorded), dump_family(beginning))
    if difference:
        raise KinfolkError(
            f"this run directory was begun with another family file: {difference}",
            where=str(folder),
            fix="use the same family file and --set values, or another --run; only members and versions of the data "
            "may be added, at the end",
        )
    more = [member.name for member in family.members[len(members) :]]
    if more and versions:
        raise KinfolkError(
            f"{more[0]} cannot be added: versions of the data continue the largest member, and here they have already "
            f"continued {members[-1].name}",
            where=str(folder),
            fix="add members before versions of the data, or build into another --run",
        )
    return more, [version.name for version in family.data.versions[len(versions) :]]


def _restated(record: Path, family: Family) -> bool:
    """Whether the family file states something else for the model cards than it did."""
    return load_family(str(record)).family.card != family.card


def _check_earlier_stages(record: Path, family: Family, store: TokenStore, folder: Path, strategy: Strategy) -> None:
    """Refuse what would change a stage that the run has: what is trained cannot be undone."""
    before = strategy(_with_vocabulary(load_family(str(record)).family, store))
    after = {stage.name: stage for stage in strategy(family).stages}
    changed = [stage.name for stage in before.stages if after.get(stage.name) != stage]
    if changed:
        raise KinfolkError(
            f"with what was added, stage {changed[0]} would be trained in another way than it was",
            where=str(folder),
            fix="build into another --run; strategy trunk, and progressive with growth.start finished, can be extended",
        )


def open_run(loaded: LoadedFamily, folder: Path, strategy: Strategy = plan_family) -> Run:
    """Open a directory that `begin_run` has prepared."""
    stores = open_versions(loaded.family.data, folder / "data")
    family = _with_vocabulary(with_absolute_paths(loaded), stores[FIRST])
    plan = strategy(family)
    tokenizer = AutoTokenizer.from_pretrained(stores[FIRST].tokenizer, trust_remote_code=False)
    ledger = Ledger(folder / "ledger.jsonl")
    return Run(folder, family, plan, _document(family, plan, stores), stores, tokenizer, ledger)


def _document(family: Family, plan: Plan, stores: Stores, law: ChosenLaw | None = None) -> dict[str, Any]:
    return plan_document(family, plan, len(stores[FIRST].train), law, later_tokens(stores))


def later_tokens(stores: Stores) -> dict[str, int]:
    """Training tokens of the versions behind the first, by name."""
    return {name: len(store.train) for name, store in stores.items() if name != FIRST}


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
