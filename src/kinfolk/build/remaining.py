"""What is still to do in a run: of the whole family, or of the part of it that one of several jobs builds."""

from collections.abc import Sequence
from dataclasses import dataclass

from kinfolk.build.run import Run
from kinfolk.errors import KinfolkError
from kinfolk.plan.stages import Plan, Stage
from kinfolk.train import checkpoint


@dataclass(frozen=True)
class Share:
    """Members, and the stages of their lineages: other members may need some of these as well."""

    members: frozenset[str]
    stages: frozenset[str]


def share_of(plan: Plan, only: Sequence[str] = ()) -> Share:
    """The share of a job that is given these members; without any, of a build of all of them.

    KinfolkError for a member that the plan does not finish.
    """
    finished_by = {stage.member: stage.name for stage in plan.stages if stage.member is not None}
    unknown = [name for name in only if name not in finished_by]
    if unknown:
        raise KinfolkError(
            f"the family has no member {unknown[0]!r}", where="--only", fix=f"use some of {', '.join(finished_by)}"
        )
    if not only:
        return Share(frozenset(finished_by), frozenset(stage.name for stage in plan.stages))
    needed = {stage.name for name in only for stage in plan.lineage(finished_by[name])}
    return Share(frozenset(only), frozenset(needed))


def unfinished_members(run: Run) -> set[str]:
    """The members that are not finished, or whose folder has gone since."""
    finished = {event["member"] for event in run.ledger.events("member_finished")}
    wanted = {stage.member for stage in run.plan.stages if stage.member is not None}
    return {name for name in wanted if name not in finished or not run.member(name).is_dir()}


def stages_to_train(run: Run, share: Share | None = None) -> set[str]:
    """The stages that are not finished, and finished ones whose last state is gone and still needed; of a share alone,
    or of all of the plan.

    A last state is needed for as long as the stage's member is not exported, or a child has not begun.
    """
    share = share or share_of(run.plan)
    lost = given_up(run)
    finished = {event["stage"] for event in run.ledger.events("stage_finished")}
    members, found = unfinished_members(run) & share.members, set[str]()

    def is_needed(stage: Stage) -> bool:
        children = [child.name for child in run.plan.stages if child.parent == stage.name]
        return stage.member in members or any(
            child in found and checkpoint.latest(run.checkpoints(child)) is None for child in children
        )

    for stage in reversed(run.plan.stages):  # children first
        if stage.name not in share.stages:
            continue
        last = checkpoint.latest(run.checkpoints(stage.name))
        gone = last is None or checkpoint.step_of(last) < stage.steps
        if stage.name not in lost and (stage.name not in finished or (gone and is_needed(stage))):
            found.add(stage.name)
    return found


def given_up(run: Run) -> set[str]:
    """Stages of a trial that diverged, and all that were to follow them; nothing in a plan that is no trial."""
    diverged = {event["stage"] for event in run.ledger.events("stage_diverged")} if run.plan.is_trial else set()
    return {stage.name for stage in run.plan.stages if diverged & {part.name for part in run.plan.lineage(stage.name)}}
