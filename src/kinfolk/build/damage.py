"""What is damaged in a run directory is found before the build goes on, set aside and said.

What counts is then the state before it: an earlier checkpoint, the stage that came before, or the stage of a member.
"""

import shutil
from collections.abc import Callable

from kinfolk.build.members import weights_digest
from kinfolk.build.run import Run, unfinished_members
from kinfolk.train import checkpoint

DAMAGED = "damaged"
"""Folder of the run directory for damaged members; nothing reads it, and it can be deleted."""


def set_aside_damaged(run: Run, say: Callable[[str], None]) -> None:
    """Look through all that the build needs of what it wrote: members by hash, checkpoints by hash, the ledger's lines.

    Checkpoints are read only where something still begins with them.
    """
    lines = ", ".join(map(str, run.ledger.damaged()))
    if lines:
        say(f"warning: {run.folder / 'ledger.jsonl'}: line {lines} is damaged or cut in half, and is passed over")
    _members(run, say)
    _checkpoints(run, say)


def _members(run: Run, say: Callable[[str], None]) -> None:
    hashes = {event["member"]: event["sha256"] for event in run.ledger.events("member_finished")}
    for name, expected in hashes.items():
        folder = run.member(name)
        if folder.is_dir() and weights_digest(folder) != expected:
            aside = run.folder / DAMAGED / name
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
            problem = "the weights are not those that were written"
            run.ledger.append("damaged", path=str(folder.relative_to(run.folder)), problem=problem)
            say(f"warning: {folder}: {problem}; it is set aside as {aside}, and {name} is exported again")


def _checkpoints(run: Run, say: Callable[[str], None]) -> None:
    finished = {event["stage"] for event in run.ledger.events("stage_finished")}
    members = unfinished_members(run)
    for stage in reversed(run.plan.stages):  # children first: one that has lost all it had begins anew from its parent
        children = [child.name for child in run.plan.stages if child.parent == stage.name]
        begun = all(checkpoint.latest(run.checkpoints(child)) for child in children)
        if stage.name in finished and stage.member not in members and begun:
            continue
        for error in checkpoint.set_aside_damaged(run.checkpoints(stage.name)):
            run.ledger.append("damaged", path=error.where, problem=error.problem)
            before = checkpoint.latest(run.checkpoints(stage.name))
            state = f"its step {checkpoint.step_of(before)}" if before else "its beginning"
            say(f"warning: {error.where}: {error.problem}; the stage goes on from {state}")
