"""How far the predictions of each member are from those of the members before it, on held-out text."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from kinfolk.build.members import spread_member
from kinfolk.build.origin import stage_config
from kinfolk.build.run import Run
from kinfolk.evaluate.consistency import adjacent_kl
from kinfolk.plan.stages import Stage
from kinfolk.train.engine import Engine
from kinfolk.train.stage import held_out_sample


def kl_from_earlier(
    run: Run, member: str, model: PreTrainedModel, engine: Engine, heed: Callable[[], None]
) -> list[dict[str, Any]]:
    """Compare a member's model with every member before it, or version of it; every process calls this, and `heed`.

    They are read as they were exported. Members whose folder has been removed since are left out, and so are those that
    another job has not finished yet.
    """

    def there() -> list[str]:
        finished = {event["member"] for event in run.ledger.events("member_finished")}
        return [name for name in _members_before(run, member) if name in finished and run.member(name).is_dir()]

    return _kl_from(run, engine.from_main(there), model, engine, heed)


def compare_members(run: Run, engine: Engine, heed: Callable[[], None]) -> None:
    """Compare members that were finished by several jobs, the earlier after the later, as `kl_from_earlier` would have.

    Every process calls this, and `heed`. Events of versions that compared with the one before only are left as they
    are.
    """
    for member, missing in engine.from_main(lambda: _not_compared(run)).items():
        engine.use_threads(stage_config(_stage_of(run, member), run.family, run.store))
        with torch.inference_mode():
            new = _kl_from(run, missing, _model_of(run, member, engine), engine, heed)
        engine.on_main(partial(_record, run, member, new))


def of_previous(run: Run, member: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was found of the next smaller member, or of the version before."""
    previous = _members_before(run, member)[-1:]
    return next((each for each in found if [each["previous"]] == previous), None)


def _kl_from(
    run: Run, names: list[str], model: PreTrainedModel, engine: Engine, heed: Callable[[], None]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    sequences = held_out_sample(run.store, run.family.model.context_length)
    for name in names:
        heed()
        earlier = _model_of(run, name, engine)
        found.append({"previous": name, **adjacent_kl(earlier, model, sequences, engine.device).to_dict()})
    return found


def _model_of(run: Run, member: str, engine: Engine) -> PreTrainedModel:
    """The model of a finished member, spread over the engine."""
    return spread_member(run.member(member), stage_config(_stage_of(run, member), run.family, run.store), engine)


def _stage_of(run: Run, member: str) -> Stage:
    return next(stage for stage in run.plan.stages if stage.member == member)


def _not_compared(run: Run) -> dict[str, list[str]]:
    """The members that have been compared, and which earlier ones could be and have not."""
    missing = {}
    compared = _compared(run)
    for member in (stage.member for stage in run.plan.stages if stage.member in compared):
        known = {each["previous"] for each in compared[member]}
        before = [name for name in _members_before(run, member) if name not in known and run.member(name).is_dir()]
        missing[member] = before
    return {member: names for member, names in missing.items() if names}


def _compared(run: Run) -> dict[str, list[dict[str, Any]]]:
    """What the ledger says of each member beside earlier ones."""
    return {
        event["member"]: event["kl_from_earlier"]
        for event in run.ledger.events()
        if event["event"] in ("member_finished", "members_compared") and "kl_from_earlier" in event
    }


def _record(run: Run, member: str, new: list[dict[str, Any]]) -> None:
    by_name = {each["previous"]: each for each in [*_compared(run)[member], *new]}
    found = [by_name[name] for name in _members_before(run, member) if name in by_name]
    run.ledger.append(
        "members_compared",
        member=member,
        stage=_stage_of(run, member).name,
        kl_from_previous=of_previous(run, member, found),
        kl_from_earlier=found,
    )


def _members_before(run: Run, member: str) -> list[str]:
    members = [stage.member for stage in run.plan.stages if stage.member is not None]
    return members[: members.index(member)]
