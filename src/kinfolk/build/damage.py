"""What is damaged in a run directory is found before the build goes on, set aside and said.

What counts is then the state before it: an earlier checkpoint, the stage that came before, or the stage of a member.
"""

import shutil
from functools import partial

from kinfolk import files
from kinfolk.build.locks import stage_lock
from kinfolk.build.members import weights_digest
from kinfolk.build.remaining import Share, unfinished_members
from kinfolk.build.run import BuildView, Run
from kinfolk.plan.stages import Stage
from kinfolk.train import checkpoint

DAMAGED = "damaged"
"""Folder of the run directory for damaged members; nothing reads it, and it can be deleted."""


def set_aside_damaged(run: Run, share: Share, view: BuildView) -> set[str]:
    """Look through what a share needs of all that was written: members by hash, checkpoints by hash, the ledger.

    Returns the stages that were left out, because another job is at work on them.
    """
    lines = ", ".join(map(str, run.ledger.damaged()))
    if lines:
        view.say(f"warning: {run.folder / 'ledger.jsonl'}: line {lines} is damaged or cut in half, and is passed over")
    left_out = set()
    for stage in reversed(run.plan.stages):  # children first: one that has lost all it had begins anew from its parent
        if stage.name in share.stages:
            with stage_lock(run.folder, stage.name) as lock:
                if lock.take():
                    set_aside_of_stage(run, stage, share, view)
                else:
                    left_out.add(stage.name)
    return left_out


def set_aside_of_stage(run: Run, stage: Stage, share: Share, view: BuildView) -> None:
    """Look through the member and the checkpoints of one stage, whose lock the caller holds.

    Checkpoints are read only where something of the share still begins with them.
    """
    if stage.member in share.members:
        _member(run, stage.member, view)
    children = [child.name for child in run.plan.stages if child.parent == stage.name and child.name in share.stages]
    finished = {event["stage"] for event in run.ledger.events("stage_finished")}
    begun = all(checkpoint.latest(run.checkpoints(child)) for child in children)
    if stage.name in finished and stage.member not in unfinished_members(run) and begun:
        return
    for error in checkpoint.set_aside_damaged(run.checkpoints(stage.name), _checking(stage.name, view)):
        path = str(error.where).removeprefix(f"{run.folder}/")
        run.ledger.append("damaged", path=path, problem=error.problem)
        before = checkpoint.latest(run.checkpoints(stage.name))
        state = f"its step {checkpoint.step_of(before)}" if before else "its beginning"
        view.say(f"warning: {error.where}: {error.problem}; the stage goes on from {state}")


def _member(run: Run, name: str, view: BuildView) -> None:
    hashes = {event["member"]: event["sha256"] for event in run.ledger.events("member_finished")}
    folder = run.member(name)
    if name in hashes and folder.is_dir() and weights_digest(folder, _checking(name, view)) != hashes[name]:
        aside = run.folder / DAMAGED / name
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        problem = "the weights are not those that were written"
        run.ledger.append("damaged", path=str(folder.relative_to(run.folder)), problem=problem)
        view.say(f"warning: {folder}: {problem}; it is set aside as {aside}, and {name} is exported again")


def _checking(what: str, view: BuildView) -> files.Progress:
    return partial(view.prepared, f"reading what is saved of {what}")
