"""What a stage starts from: random weights, its parent's last state, or that state grown.

It is made by one process, and read back by all of them: so initialisation never depends on sharding, and growth needs
no code of its own for many processes.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from kinfolk.data.loader import sequences_per_epoch
from kinfolk.data.tokens import TokenStore
from kinfolk.errors import KinfolkError
from kinfolk.evaluate.load import load_checkpoint
from kinfolk.family.shapes import Shape
from kinfolk.family.spec import Family
from kinfolk.growth.claims import claims_preservation, describe
from kinfolk.growth.dynamics import grow_optimizer
from kinfolk.growth.grow import grow_weights
from kinfolk.growth.verify import Verification, verify
from kinfolk.plan.stages import Dynamics, Grow, Load, Operator, Plan, Scratch, Stage
from kinfolk.train import checkpoint
from kinfolk.train.checkpoint import Position
from kinfolk.train.engine import alone
from kinfolk.train.model import (
    check_token_ready,
    config_for,
    empty_model,
    load_parameters,
    new_model,
    parameters_of,
    rescale_new_model,
)
from kinfolk.train.optimizer import MOMENTS, make_optimizer

VERIFIED_SEQUENCES = 4
"""Held-out sequences on which a growth is verified."""


def first_state(
    stage: Stage, plan: Plan, family: Family, store: TokenStore, stages: Path
) -> tuple[dict[str, Tensor], Position, dict[str, Any] | None]:
    """The tensors and position that a stage starts from, and what the ledger says of a growth (None without one).

    Raises KinfolkError when a growth does not preserve what its operator claims.
    """
    if isinstance(stage.source, Scratch):
        model = new_model(stage_config(stage, family, store), stage.source.seed)
        factors, base = family.factors(stage.shape), family.base_shape
        if factors is not None and base is not None:
            rescale_new_model(model, factors, base)
        start = Position(0, 0, patch_size=stage.patch_size, token_ready=stage.patch_size == 1)
        return checkpoint.tensors_of(model, None), start, None
    if isinstance(stage.source, Load):
        start = Position(0, 0, patch_size=stage.patch_size)
        return _loaded(stage, stage.source.folder, family, store), start, None
    parent = plan.stage(stage.source.stage)
    source = stage.source.dynamics if isinstance(stage.source, Grow) else stage.source
    state = last_state(parent, family, store, stages, with_optimizer=source.optimizer != "reset")
    before = checkpoint.position_of(_last_checkpoint(parent, stages))
    start = Position(
        step=0,
        sequences=plan.sequences_before(stage.name, family.model.context_length),
        positions=before.positions,
        patch_size=stage.patch_size,
        token_ready=before.token_ready and stage.patch_size == 1,
    )
    grown = None
    if isinstance(stage.source, Grow):
        state, grown = _grow(state, stage, parent, family, store)
    return state, start, grown


def _loaded(stage: Stage, folder: str, family: Family, store: TokenStore) -> dict[str, Tensor]:
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
    return checkpoint.tensors_of(model, None)


def stage_config(stage: Stage, family: Family, store: TokenStore) -> Any:
    """The transformers config of a stage's model."""
    assert stage.shape is not None
    return config_for(stage.shape, family.model, family.embedding_rows, store.separator_id)


def load_stage_model(
    stage: Stage, family: Family, store: TokenStore, stages: Path, force: bool = False
) -> PreTrainedModel:
    """The model that a stage left at its newest checkpoint, on the CPU.

    KinfolkError if it was trained on patches last, unless forced; then its config says `token_ready: false`.
    """
    saved = _last_checkpoint(stage, stages)
    model = empty_model(stage_config(stage, family, store))
    is_ready = checkpoint.position_of(saved).token_ready
    check_token_ready(is_ready, str(saved), force)
    if not is_ready:
        model.config.token_ready = False
    checkpoint.load(saved, checkpoint.tensors_of(model, None), alone())
    return model


def _last_checkpoint(stage: Stage, stages: Path) -> Path:
    saved = checkpoint.latest(stages / stage.name / "checkpoints")
    if saved is None:
        raise KinfolkError(
            "the stage's last checkpoint is gone, and what follows needs it",
            where=str(stages / stage.name),
            fix="put it back, or delete the member that this stage finished: the build then trains it again",
        )
    return saved


def last_state(
    stage: Stage, family: Family, store: TokenStore, stages: Path, with_optimizer: bool
) -> dict[str, Tensor]:
    """Weights and, if asked for, optimizer state of a finished stage, under the names that checkpoints use."""
    model = empty_model(stage_config(stage, family, store))
    optimizer = make_optimizer(model, family.recipe.optimizer) if with_optimizer else None
    tensors = checkpoint.tensors_of(model, optimizer)
    checkpoint.load(_last_checkpoint(stage, stages), tensors, alone())
    return tensors


def _grow(
    state: dict[str, Tensor], stage: Stage, parent: Stage, family: Family, store: TokenStore
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    assert isinstance(stage.source, Grow) and parent.shape is not None and stage.shape is not None
    began = time.monotonic()
    tensors, description, verification = grow_state(
        state,
        family.model.architecture,
        (parent.shape, stage.shape),
        (stage_config(parent, family, store), stage_config(stage, family, store)),
        stage.source.operator,
        stage.source.dynamics,
        verification_text(store, family),
    )
    if verification.passed is False:
        raise KinfolkError(
            f"growing {parent.name} into {stage.name} claims to preserve the function and does not: the largest logit "
            f"difference in float64 is {verification.float64.max_abs_logit_difference:.3g}",
            where=f"stage {stage.name}",
            fix="this is a fault of kinfolk, please report it with the family file; nothing was written",
        )
    record = {
        "parent": parent.name,
        "description": description,
        "verification": verification.to_dict(),
        "seconds": time.monotonic() - began,
    }
    return tensors, record


def grow_state(
    state: dict[str, Tensor],
    architecture: str,
    shapes: tuple[Shape, Shape],
    configs: tuple[Any, Any],
    operator: Operator,
    dynamics: Dynamics,
    text: Tensor,
) -> tuple[dict[str, Tensor], str, Verification]:
    """Weights and optimizer state of a checkpoint grown from the first shape to the second, and what was measured.

    `text` is (batch, time) of token ids.
    """
    weights = grow_weights(_part(state, "model."), architecture, *shapes, operator)
    tensors = {f"model.{name}": value for name, value in weights.items()}
    keys = (*MOMENTS, "step")
    first, second, counts = (_part(state, f"optimizer.{key}.") for key in keys)
    grown = grow_optimizer(first, second, counts, architecture, *shapes, operator, dynamics)
    for key, values in zip(keys, grown, strict=True):
        tensors |= {f"optimizer.{key}.{name}": value for name, value in values.items()}

    before, after = map(empty_model, configs)
    load_parameters(before, _part(state, "model."))
    load_parameters(after, weights)
    description = describe(operator, *shapes)
    claims = claims_preservation(operator, *shapes, architecture)
    return tensors, description, verify(before, after, text, claims, description)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def verification_text(store: TokenStore, family: Family) -> Tensor:
    """The first held-out sequences, (batch, context)."""
    context = family.model.context_length
    windows = min(VERIFIED_SEQUENCES, max(1, sequences_per_epoch(len(store.held_out), context)))
    tokens = torch.from_numpy(store.held_out[: windows * context].astype("int64"))
    return tokens.view(windows, -1)
