"""The states of members before their learning rate decayed, where a run keeps them."""

from pathlib import Path

from kinfolk.build.origin import stage_config
from kinfolk.build.run import Run
from kinfolk.build.snapshot import open_existing
from kinfolk.evaluate.load import separator_of
from kinfolk.evaluate.measure import Loaded
from kinfolk.plan.stages import Continue, Stage
from kinfolk.train import checkpoint
from kinfolk.train.engine import alone, single_engine
from kinfolk.train.model import empty_model


def before_decay(folder: Path, member: str) -> Path | None:
    """The training checkpoint that a member's decay began from; None where the run keeps none.

    Kept is the last state of the stage that a decay branches off: in strategy trunk, and in a progressive family that
    grows from undecayed states. A stage that holds and decays in one keeps its end only. It is None too where the state
    was trained on patches last.
    """
    run = open_existing(folder)
    stage = _stage(run, member)
    if stage is None or not isinstance(stage.source, Continue) or stage.rate.decay_steps < stage.steps:
        return None
    saved = checkpoint.latest(run.checkpoints(stage.source.stage))
    return saved if saved is not None and checkpoint.position_of(saved).token_ready else None


def load_state(folder: Path, member: str, saved: Path, like: Loaded) -> Loaded:
    """The model of a training checkpoint of a member's shape, with the member's own tokenizer."""
    run = open_existing(folder)
    stage = _stage(run, member)
    assert stage is not None
    model = empty_model(stage_config(stage, run.family, run.store))
    checkpoint.load(saved, checkpoint.tensors_of(model, None), alone())
    engine = single_engine()
    engine.place(model)
    return Loaded(str(saved), model, like.tokenizer, separator_of(model, like.tokenizer), engine.device)


def _stage(run: Run, member: str) -> Stage | None:
    return next((stage for stage in run.plan.stages if stage.member == member), None)
