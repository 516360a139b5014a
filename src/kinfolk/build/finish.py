"""What happens to a member once its stage is trained: measured, sampled, exported, recorded.

Every process takes part in what runs a model, whose blocks are spread over them: none need hold a whole one. The main
process writes, and takes the weights from the files of the checkpoint.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from kinfolk.build.alikeness import kl_from_earlier, of_previous
from kinfolk.build.held_out import held_out_score
from kinfolk.build.member_card import member_card
from kinfolk.build.members import export_saved
from kinfolk.build.origin import last_checkpoint, load_stage_model
from kinfolk.build.run import BuildView, Run
from kinfolk.card.card import render
from kinfolk.evaluate.loss import held_out_documents
from kinfolk.evaluate.samples import TEMPERATURE, TOP_P, sample_text
from kinfolk.family.data import FIRST
from kinfolk.plan.stages import Stage
from kinfolk.train.engine import Engine

SAMPLE_PROMPTS = 2
"""Held-out documents whose first words each member continues, for the report."""

SAMPLE_TOKENS = 60
"""The most tokens of a continuation."""


def finish_member(run: Run, stage: Stage, engine: Engine, view: BuildView, heed: Callable[[], None]) -> None:
    """Evaluate and export the member that a finished stage made; every process calls this.

    They call `heed` now and then, which raises where they are to stop.
    """
    assert stage.member is not None
    member, seed = stage.member, run.family.recipe.seed
    # One mode for all of it: FSDP gathers a block into the memory that it had before, which no other mode may write to.
    with torch.inference_mode():
        model = load_stage_model(stage, run.family, run.store, run.stages, engine=engine)
        held_out = held_out_score(run, run.store, model, engine, heed)
        samples = sample_text(model, run.tokenizer, _prompts(run), SAMPLE_TOKENS, seed, engine.device, engine=engine)
        earlier = kl_from_earlier(run, member, model, engine, heed)
        newest = _held_out_of_version(run, stage, model, engine, heed)

    def write() -> None:
        target = run.member(member)
        card = render(member_card(run, stage, held_out, newest))
        digest = export_saved(target, last_checkpoint(stage, run.stages), model, run.tokenizer, card)
        run.ledger.append(
            "member_finished",
            member=member,
            stage=stage.name,
            path=str(target.relative_to(run.folder)),
            sha256=digest,
            held_out=held_out,
            held_out_of_version=newest,
            samples=samples,
            sampling={"seed": seed, "temperature": TEMPERATURE, "top_p": TOP_P, "max_new_tokens": SAMPLE_TOKENS},
            kl_from_previous=of_previous(run, member, earlier),
            kl_from_earlier=earlier,
        )
        view.say(
            f"{member}  finished: held-out loss {held_out['loss']:.4f} nats per token, "
            f"{held_out['bits_per_byte']:.4f} bits per byte  ->  {target}"
        )

    engine.on_main(write)


def _held_out_of_version(
    run: Run, stage: Stage, model: PreTrainedModel, engine: Engine, heed: Callable[[], None]
) -> dict[str, Any] | None:
    """The score on what is held out of the newest data that the member has read; None where that is the first."""
    version = stage.data[-1]
    store = run.stores[version]
    if version == FIRST or not len(store.held_out_documents):
        return None
    return {"version": version, **held_out_score(run, store, model, engine, heed)}


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
