"""Seconds to the first step of a stage that is new, grown or resumed, imports included.

Called by benchmarks/train.py: a chain of the three sizes is stopped after each step and called again.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from train_build import begin_run, watched_build
from train_process import called
from train_task import SHAPES, family_document, member, prepare, write_family

STEPS = 3
"""Of every stage."""
NAME, RUN = "starts", "run-starts"


def starts(work: Path) -> None:
    """The table, by stage."""
    from kinfolk.build.ledger import Ledger

    prepare(work)
    document = family_document("1M")
    document |= {"name": NAME, "members": [member(size, STEPS) for size in SHAPES]}
    document |= {"strategy": "progressive", "growth": {"start": "finished"}}
    document["recipe"] |= {"checkpoints": {"steps": 1}}
    write_family(work, NAME, document)
    run = work / RUN
    begin_run(work, run)
    found: dict[str, list[float]] = {size: [] for size in SHAPES}
    began, events = time.time(), Ledger(run / "ledger.jsonl")
    while start := called("start", "--work", str(work)):
        # A call that finishes a member first, with its evaluation and export, is counted from there.
        since = max([began, *(event["time"] for event in events.events("member_finished"))])
        found[start["stage"]].append(start["first_step_at"] - since)
        began = time.time()
    grown = {event["stage"]: event["seconds"] for event in events.events("grown")}
    print(
        "| stage | to its first step | of which growth, with its proof | resumed, to the next step |\n|---|---|---|---|"
    )
    for size, (first, *resumed) in found.items():
        growth = f"{grown[size]:.1f} s" if size in grown else ""
        print(f"| {size} | {first:.1f} s | {growth} | {', '.join(f'{each:.1f} s' for each in resumed)} |")


def one_start(work: Path) -> dict[str, Any]:
    """Go on with the build of `starts` for one step: its stage, and when it was done; empty where all is built."""
    from kinfolk.train.interruption import Interrupted

    found: dict[str, Any] = {}

    def on_loss(stage: str, loss: float) -> None:
        if not found:
            found.update(first_step_at=time.time(), stage=stage)
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(Interrupted):
        watched_build(work, NAME, work / RUN, on_loss)
    return found
