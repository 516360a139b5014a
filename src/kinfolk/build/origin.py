"""What a stage starts from: random weights, its parent's last state, or that state grown.

It becomes a checkpoint, which all processes read back: so nothing of it depends on sharding. What comes from a parent,
each process writes a share of, and none has it all; random weights and those of a checkpoint that was made elsewhere
are those of the main process.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from kinfolk.build.growth_state import Growth, begin_copy, begin_growth, begin_written
from kinfolk.data.loader import sequences_per_epoch
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.family.spec import Family
from kinfolk.growth.checkpoint import Progress
from kinfolk.growth.made import Made, held
from kinfolk.growth.verify import Verification
from kinfolk.plan.stages import Grow, Load, Plan, Scratch, Stage
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import Engine, alone
from kinfolk.train.model import (
    check_token_ready,
    config_for,
    empty_model,
    load_parameters,
    new_model,
    parameters_of,
    rescale_new_model,
)
from kinfolk.train.saving import Saving

VERIFIED_SEQUENCES = 4
"""Held-out sequences on which a growth is verified."""

VERIFIED_TOKENS = 512
"""Of each of them at most: attention scores of every pair of tokens are in memory, in float64."""


@dataclass(frozen=True)
class Beginning:
    """A stage's first checkpoint, written and not finished yet."""

    saving: Saving
    grown: dict[str, Any] | None
    """What the ledger says of a growth; None without one."""


def begin_stage(
    stage: Stage,
    plan: Plan,
    family: Family,
    store: TokenStore,
    stages: Path,
    engine: Engine | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Beginning:
    """Write what a stage starts from; every process calls this, and then finishes the checkpoint.

    Raises KinfolkError when a growth does not preserve what its operator claims; nothing of it is then left.
    """
    engine = engine or alone()
    folder = stages / stage.name / "checkpoints"
    if isinstance(stage.source, Scratch | Load):
        start = Position(0, 0, patch_size=stage.patch_size, token_ready=_reads_tokens(stage))
        made: dict[str, Made] = {}
        engine.on_main(lambda: made.update(_held(_first_model(stage, family, store))))
        return Beginning(begin_written(made, folder, start, engine, has_optimizer=False, progress=progress), None)
    parent = plan.stage(stage.source.stage)
    saved = engine.from_main(lambda: last_checkpoint(parent, stages))
    before = checkpoint.position_of(saved)
    start = Position(
        step=0,
        sequences=plan.sequences_before(stage.name, family.model.context_length),
        positions=before.positions,
        patch_size=stage.patch_size,
        token_ready=before.token_ready and stage.patch_size == 1,
    )
    if isinstance(stage.source, Grow):
        return _grown(stage, parent, saved, start, family, store, folder, engine, progress)
    with_optimizer = stage.source.optimizer != "reset"
    return Beginning(begin_copy(saved, folder, start, with_optimizer, engine, progress), None)


def _reads_tokens(stage: Stage) -> bool:
    """Whether a stage's weights are a language model from its beginning on: those of another checkpoint are."""
    return isinstance(stage.source, Load) or stage.patch_size == 1


def _held(model: PreTrainedModel) -> dict[str, Made]:
    tensors = checkpoint.tensors_of(model, None) | {"random.cpu": torch.get_rng_state()}
    return {name: held(tensor) for name, tensor in tensors.items()}


def _first_model(stage: Stage, family: Family, store: TokenStore) -> PreTrainedModel:
    """A model of random weights, or with those of a checkpoint that was made elsewhere."""
    if isinstance(stage.source, Load):
        return _loaded(stage, stage.source.folder, family, store)
    assert isinstance(stage.source, Scratch)
    model = new_model(stage_config(stage, family, store), stage.source.seed)
    factors, base = family.factors(stage.shape), family.base_shape
    if factors is not None and base is not None:
        rescale_new_model(model, factors, base)
    return model


def _loaded(stage: Stage, folder: str, family: Family, store: TokenStore) -> PreTrainedModel:
    """The weights of a checkpoint that was made elsewhere, in the stage's own model."""
    loaded, tokenizer = load_checkpoint(folder, "cpu")
    own = AutoTokenizer.from_pretrained(store.tokenizer, trust_remote_code=False)
    if tokenizer.get_vocab() != own.get_vocab():
        raise KinfolkError(
            "the checkpoint's tokenizer is not the one that the data were written with",
            where=folder,
            fix="set tokenizer.load to the checkpoint's folder, in a new run directory",
        )
    model = empty_model(stage_config(stage, family, store))
    load_parameters(model, parameters_of(loaded))
    return model


def stage_config(stage: Stage, family: Family, store: TokenStore) -> Any:
    """The transformers config of a stage's model."""
    assert stage.shape is not None
    return config_for(stage.shape, family.model, family.embedding_rows, store.separator_id)


def load_stage_model(
    stage: Stage, family: Family, store: TokenStore, stages: Path, force: bool = False, engine: Engine | None = None
) -> PreTrainedModel:
    """The model that a stage left at its newest checkpoint, on the CPU; or spread over an engine, of which every
    process calls this.

    KinfolkError if it was trained on patches last, unless forced; then its config says `token_ready: false`.
    """
    engine = engine or alone()
    saved = engine.from_main(lambda: last_checkpoint(stage, stages))
    model = empty_model(stage_config(stage, family, store))
    is_ready = checkpoint.position_of(saved).token_ready
    check_token_ready(is_ready, str(saved), force)
    if not is_ready:
        model.config.token_ready = False
    engine.spread(model)
    checkpoint.load(saved, checkpoint.tensors_of(model, None), engine)
    return model


def last_checkpoint(stage: Stage, stages: Path) -> Path:
    """The newest checkpoint of a stage that has been trained; KinfolkError where there is none."""
    saved = checkpoint.latest(stages / stage.name / "checkpoints")
    if saved is None:
        raise KinfolkError(
            "the stage's last checkpoint is gone, and what follows needs it",
            where=str(stages / stage.name),
            fix="put it back, or delete the member that this stage finished: the build then trains it again",
        )
    return saved


def _grown(
    stage: Stage,
    parent: Stage,
    saved: Path,
    start: Position,
    family: Family,
    store: TokenStore,
    folder: Path,
    engine: Engine,
    progress: Progress,
) -> Beginning:
    assert isinstance(stage.source, Grow) and parent.shape is not None and stage.shape is not None
    began = time.monotonic()
    growth = Growth(
        family.model.architecture,
        (parent.shape, stage.shape),
        (stage_config(parent, family, store), stage_config(stage, family, store)),
        stage.source.operator,
        stage.source.dynamics,
    )
    text = verification_text(store, family)
    saving, verification = begin_growth(saved, folder, start, growth, text, engine, progress)
    try:
        engine.on_main(lambda: _refuse_broken(verification, parent, stage))
    except BaseException:
        saving.discard()
        raise
    record = {
        "parent": parent.name,
        "description": growth.description,
        "verification": verification.to_dict(),
        "seconds": time.monotonic() - began,
    }
    return Beginning(saving, record)


def _refuse_broken(verification: Verification, parent: Stage, stage: Stage) -> None:
    if verification.passed is False:
        raise KinfolkError(
            f"growing {parent.name} into {stage.name} claims to preserve the function and does not: the largest logit "
            f"difference in float64 is {verification.float64.max_abs_logit_difference:.3g}",
            where=f"stage {stage.name}",
            fix="this is a fault of kinfolk, please report it with the family file; nothing was written",
        )


def verification_text(store: TokenStore, family: Family) -> Tensor:
    """The beginnings of the first held-out sequences, (batch, time)."""
    context = family.model.context_length
    windows = min(VERIFIED_SEQUENCES, max(1, sequences_per_epoch(len(store.held_out), context)))
    tokens = torch.from_numpy(store.held_out[: windows * context].astype("int64"))
    return tokens.view(windows, -1)[:, :VERIFIED_TOKENS]
