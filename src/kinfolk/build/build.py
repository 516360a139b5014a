"""The executor: walks any plan, stage by stage, and goes on where an earlier process stopped."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import kinfolk
from kinfolk import files
from kinfolk.build.ledger import Ledger, only_build_in
from kinfolk.build.members import export_member, model_card
from kinfolk.build.origin import first_state, load_stage_model, stage_config
from kinfolk.data import tokens
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.evaluate.loss import held_out_documents, score
from kinfolk.evaluate.samples import sample_text
from kinfolk.family.load import LoadedFamily, dump_family, first_difference, with_absolute_paths
from kinfolk.family.spec import Family
from kinfolk.plan.document import plan_document, source_document, stage_flops
from kinfolk.plan.stages import Plan, Stage
from kinfolk.plan.strategies import plan_family
from kinfolk.train import checkpoint
from kinfolk.train.engine import Engine, alone, resolve_precision, start_engine
from kinfolk.train.interruption import Interrupted, Interruption
from kinfolk.train.model import empty_model
from kinfolk.train.monitor import View, final_loss, read_metrics
from kinfolk.train.stage import held_out_sample, train_stage

SAMPLE_PROMPTS = 2
"""Held-out documents whose first words each member continues, for the report."""


class BuildView(View, Protocol):
    """A view that also knows the whole plan, and watches the preparation of the data."""

    def planned(self, name: str, stages: Sequence[dict[str, Any]]) -> None: ...

    def prepared(self, what: str, done: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class _Run:
    """What every part of a build needs to know, fixed once the data are ready."""

    folder: Path
    family: Family
    plan: Plan
    document: dict[str, Any]
    store: TokenStore
    tokenizer: PreTrainedTokenizerBase
    ledger: Ledger

    @property
    def stages(self) -> Path:
        return self.folder / "stages"


def build(loaded: LoadedFamily, folder: Path, view: BuildView) -> None:
    """Build every member of the family in the run directory `folder`, or what is still missing of it.

    Under torchrun every process calls this. Raises KinfolkError for what the user can mend, and Interrupted after
    saving when a stop was asked for; the same call goes on from there.
    """
    missing = [member.name for member in loaded.family.members if member.shape is None]
    if missing:
        raise KinfolkError(
            f"{missing[0]} has no shape, only a number of parameters: it can be planned, not built",
            where=f"{loaded.origin}: members",
            fix="give every member a shape",
        )
    plan_family(loaded.family)  # a plan that cannot be made is refused before the disk is touched
    existed = folder.exists()
    began = time.time()
    interruption = Interruption()
    with start_engine() as engine, interruption.watched(), ExitStack() as held:
        if engine.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_build_in(folder))
                _prepare(loaded, folder, view)
            except BaseException:
                if not existed:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        engine.wait()
        run = _open(folder, loaded)
        if engine.is_main:
            run.ledger.append("build_started", command=_command(), versions=versions(), machine=machine(engine))
            view.planned(run.family.name, run.document["stages"])
        done = {event["stage"] for event in run.ledger.events("stage_finished")}
        engine.wait()
        for stage in run.plan.stages:
            if stage.name not in done:
                _train(run, stage, engine, view, interruption)
            if engine.is_main and stage.member is not None:
                _finish_member(run, stage, engine, view)
            engine.wait()
        if engine.is_main:
            run.ledger.append("build_finished", seconds=time.time() - began)


def _prepare(loaded: LoadedFamily, folder: Path, view: BuildView) -> None:
    """Tokenise the data and write down the resolved family and plan; refuses a folder that holds another family."""
    began = time.time()
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
    fresh = not (folder / "data" / "data.json").exists()
    store = tokens.prepare(family, loaded.folder, folder / "data", view.prepared, where=loaded.origin)
    if not record.exists():
        document = plan_document(_with_vocabulary(family, store), plan_family(_with_vocabulary(family, store)))
        files.write_json(folder / "plan.json", document)
        files.write_text(record, dump_family(family))
    if fresh:
        Ledger(folder / "ledger.jsonl").append("data_prepared", **data_counts(store), seconds=time.time() - began)


def _open(folder: Path, loaded: LoadedFamily) -> _Run:
    store = tokens.open_store(folder / "data")
    family = _with_vocabulary(with_absolute_paths(loaded), store)
    plan = plan_family(family)
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer)
    ledger = Ledger(folder / "ledger.jsonl")
    return _Run(folder, family, plan, plan_document(family, plan), store, tokenizer, ledger)


def _with_vocabulary(family: Family, store: TokenStore) -> Family:
    """The family with the embedding's rows settled, which a loaded tokenizer decides."""
    rows = family.model.vocab_size or store.vocab_size
    return family.model_copy(update={"model": family.model.model_copy(update={"vocab_size": rows})})


def _train(run: _Run, stage: Stage, engine: Engine, view: BuildView, interruption: Interruption) -> None:
    folder = run.stages / stage.name
    saves = folder / "checkpoints"
    assert stage.shape is not None
    precision = resolve_precision(run.family.recipe.precision, stage.shape, engine.device)
    if engine.is_main:
        saved = checkpoint.latest(saves)
        if saved is None:
            state, position, grown = first_state(stage, run.plan, run.family, run.store, run.stages)
            if grown:
                run.ledger.append("grown", stage=stage.name, **grown)
                view.say(f"{stage.name}  grown from {stage.parent}: {grown['description']}")
            run.ledger.append(
                "stage_started", stage=stage.name, precision=precision, source=source_document(stage.source)
            )
            checkpoint.save(saves, state, position, alone())
        else:
            run.ledger.append("stage_resumed", stage=stage.name, step=checkpoint.position_of(saved).step)
            view.say(f"{stage.name}  goes on from step {checkpoint.position_of(saved).step} of {stage.steps}")
    engine.wait()
    model = empty_model(stage_config(stage, run.family, run.store))
    context = run.family.model.context_length
    try:
        trained = train_stage(
            stage, model, run.store, run.family.recipe, context, precision, engine, folder, view, interruption
        )
    except Interrupted:
        if engine.is_main:
            step = checkpoint.position_of(checkpoint.checkpoints(saves)[-1]).step
            run.ledger.append("interrupted", stage=stage.name, step=step)
        raise
    if engine.is_main:
        run.ledger.append(
            "stage_finished",
            stage=stage.name,
            steps=stage.steps,
            tokens=stage.tokens,
            epochs=trained.epochs,
            seconds=trained.seconds,
            checkpoint_seconds=trained.checkpoint_seconds,
            final_loss=final_loss(read_metrics(folder / "metrics.jsonl")),
            flops=stage_flops(run.family, stage),
        )


def _finish_member(run: _Run, stage: Stage, engine: Engine, view: BuildView) -> None:
    """Evaluate and export the member that a finished stage made, unless that was done before."""
    target = run.folder / "members" / str(stage.member)
    finished = {event["member"]: event for event in run.ledger.events("member_finished")}
    if stage.member in finished and target.is_dir():
        return
    model = load_stage_model(stage, run.family, run.store, run.stages)
    engine.place(model)
    context = run.family.model.context_length
    held_out = score(model, held_out_documents(run.store), run.store.separator_id, context, engine.device).to_dict()
    record = {
        "held_out": held_out,
        "samples": sample_text(model, run.tokenizer, _prompts(run), 60, run.family.recipe.seed, engine.device),
        "kl_from_previous": _kl_from_previous(run, stage, model, engine),
    }
    card = model_card(stage, run.plan, run.family, run.document, data_counts(run.store), held_out)
    alone().place(model)
    digest = export_member(target, model, run.tokenizer, card)
    run.ledger.append(
        "member_finished",
        member=stage.member,
        stage=stage.name,
        path=str(target.relative_to(run.folder)),
        sha256=digest,
        **record,
    )
    view.say(
        f"{stage.member}  finished: held-out loss {held_out['loss']:.4f} nats per token, "
        f"{held_out['bits_per_byte']:.4f} bits per byte  ->  {target}"
    )


def _kl_from_previous(run: _Run, stage: Stage, model: PreTrainedModel, engine: Engine) -> dict[str, Any] | None:
    """How far the next smaller member's predictions are from this one's."""
    names = [member.name for member in run.family.members]
    index = names.index(str(stage.member))
    if index == 0:
        return None
    previous = next(each for each in run.plan.stages if each.member == names[index - 1])
    small = load_stage_model(previous, run.family, run.store, run.stages)
    engine.place(small)
    sequences = held_out_sample(run.store, run.family.model.context_length)
    return {"previous": previous.member, **adjacent_kl(small, model, sequences, engine.device).to_dict()}


def _prompts(run: _Run) -> list[str]:
    """The first eight words or so of a few held-out documents."""
    prompts = []
    for ids, _ in held_out_documents(run.store):
        text = str(run.tokenizer.decode(ids[:64].tolist(), clean_up_tokenization_spaces=False))
        prompts.append(" ".join(text.split(" ")[:8]))
        if len(prompts) == SAMPLE_PROMPTS:
            break
    return prompts


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


def _command() -> str:
    return " ".join(["kinfolk", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "kinfolk": kinfolk.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine(engine: Engine) -> dict[str, Any]:
    """What computes: device, processes, threads."""
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else platform.machine()
    return {
        "device": engine.device.type,
        "name": name,
        "processes": engine.world_size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
