"""What happens to a member once its stage is trained: measured, sampled, exported, recorded."""

from typing import Any

from transformers import PreTrainedModel

from kinfolk.build.member_card import member_card
from kinfolk.build.members import export_member
from kinfolk.build.origin import load_stage_model
from kinfolk.build.run import BuildView, Run
from kinfolk.card.card import render
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.evaluate.loss import held_out_documents, score
from kinfolk.evaluate.samples import TEMPERATURE, TOP_P, sample_text
from kinfolk.family.data import FIRST
from kinfolk.plan.stages import Stage
from kinfolk.train.engine import Engine, alone
from kinfolk.train.stage import held_out_sample

SAMPLE_PROMPTS = 2
"""Held-out documents whose first words each member continues, for the report."""

SAMPLE_TOKENS = 60
"""The most tokens of a continuation."""


def finish_member(run: Run, stage: Stage, engine: Engine, view: BuildView) -> None:
    """Evaluate and export the member that a finished stage made; work of one process, on its device."""
    assert stage.member is not None
    model = load_stage_model(stage, run.family, run.store, run.stages)
    engine.place(model)
    context = run.family.model.context_length
    held_out = score(model, held_out_documents(run.store), run.store.separator_id, context, engine.device).to_dict()
    seed = run.family.recipe.seed
    samples = sample_text(model, run.tokenizer, _prompts(run), SAMPLE_TOKENS, seed, engine.device)
    earlier = _kl_from_earlier(run, stage, model, engine)
    newest = _held_out_of_version(run, stage, model, engine)
    alone().place(model)
    target = run.member(stage.member)
    card = render(member_card(run, stage, held_out, newest))
    digest = export_member(target, model, run.tokenizer, card)
    run.ledger.append(
        "member_finished",
        member=stage.member,
        stage=stage.name,
        path=str(target.relative_to(run.folder)),
        sha256=digest,
        held_out=held_out,
        held_out_of_version=newest,
        samples=samples,
        sampling={"seed": seed, "temperature": TEMPERATURE, "top_p": TOP_P, "max_new_tokens": SAMPLE_TOKENS},
        kl_from_previous=_of_previous(run, stage, earlier),
        kl_from_earlier=earlier,
    )
    view.say(
        f"{stage.member}  finished: held-out loss {held_out['loss']:.4f} nats per token, "
        f"{held_out['bits_per_byte']:.4f} bits per byte  ->  {target}"
    )


def compare_members(run: Run, engine: Engine) -> None:
    """Compare members that were finished by several jobs, the earlier after the later, as `finish_member` would have.

    Events of versions that compared with the one before only are left as they are.
    """
    compared = [
        event
        for event in run.ledger.events()
        if event["event"] in ("member_finished", "members_compared") and "kl_from_earlier" in event
    ]
    known = {event["member"]: event["kl_from_earlier"] for event in compared}
    for stage in run.plan.stages:
        if stage.member is None or stage.member not in known:
            continue
        before = {each["previous"]: each for each in known[stage.member]}
        missing = [name for name in _earlier_members(run, stage) if name not in before and run.member(name).is_dir()]
        if not missing:
            continue
        model, _ = load_checkpoint(run.member(stage.member), "cpu")
        engine.place(model)
        before |= {name: _kl_from(run, name, model, engine) for name in missing}
        found = [before[name] for name in _earlier_members(run, stage) if name in before]
        run.ledger.append(
            "members_compared",
            member=stage.member,
            stage=stage.name,
            kl_from_previous=_of_previous(run, stage, found),
            kl_from_earlier=found,
        )


def _kl_from_earlier(run: Run, stage: Stage, model: PreTrainedModel, engine: Engine) -> list[dict[str, Any]]:
    """How far the predictions of every member before this one, or version of it, are from this one's.

    They are read as they were exported. Members whose folder has been removed since are left out, and so are those that
    another job has not finished yet.
    """
    finished = {event["member"] for event in run.ledger.events("member_finished")}
    there = [name for name in _earlier_members(run, stage) if name in finished and run.member(name).is_dir()]
    return [_kl_from(run, name, model, engine) for name in there]


def _kl_from(run: Run, earlier: str, model: PreTrainedModel, engine: Engine) -> dict[str, Any]:
    """How far the predictions of an earlier member are from a model's."""
    small, _ = load_checkpoint(run.member(earlier), "cpu")
    engine.place(small)
    sequences = held_out_sample(run.store, run.family.model.context_length)
    return {"previous": earlier, **adjacent_kl(small, model, sequences, engine.device).to_dict()}


def _of_previous(run: Run, stage: Stage, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was found of the next smaller member, or of the version before."""
    previous = _earlier_members(run, stage)[-1:]
    return next((each for each in found if [each["previous"]] == previous), None)


def _earlier_members(run: Run, stage: Stage) -> list[str]:
    """The members that come before the one that a stage finishes."""
    members = [each.member for each in run.plan.stages if each.member is not None]
    return members[: members.index(str(stage.member))]


def _held_out_of_version(run: Run, stage: Stage, model: PreTrainedModel, engine: Engine) -> dict[str, Any] | None:
    """The score on what is held out of the newest data that the member has read; None where that is the first."""
    version = stage.data[-1]
    store = run.stores[version]
    if version == FIRST or not len(store.held_out_documents):
        return None
    context = run.family.model.context_length
    found = score(model, held_out_documents(store), store.separator_id, context, engine.device)
    return {"version": version, **found.to_dict()}


def _prompts(run: Run) -> list[str]:
    """The first words of a few held-out documents: eight, or as many as fill half of the context."""
    tokens = min(64, run.family.model.context_length // 2)
    prompts = []
    for ids, _ in held_out_documents(run.store):
        text = str(run.tokenizer.decode(ids[:tokens].tolist(), clean_up_tokenization_spaces=False))
        # A cut may go through a character, of which decoding makes U+FFFD.
        prompts.append(" ".join(text.rstrip("\ufffd").split(" ")[:8]))
        if len(prompts) == SAMPLE_PROMPTS:
            break
    return prompts
