"""kinfolk average"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption


class Decay(StrEnum):
    linear = "linear"
    cosine = "cosine"
    one_minus_sqrt = "1-sqrt"


def average(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory; the build may be at work in it.")],
    stage: Annotated[str | None, typer.Option(help="By default the last one with several checkpoints.")] = None,
    last: Annotated[int, typer.Option(min=2, help="Checkpoints to average.")] = 5,
    decay: Annotated[
        Decay, typer.Option(help="The decay that the weights stand for; linear is the plain mean.")
    ] = Decay.linear,
    output: Annotated[Path | None, typer.Option(help="By default RUN/averages/STAGE.", show_default=False)] = None,
    json_: JsonOption = False,
) -> None:
    """A free, unfinished member: the mean of spaced checkpoints along a constant learning rate (LAWA, WSM)."""
    from rich.console import Console

    with Console(stderr=True).status("averaging"):
        from kinfolk.build.snapshot import average_stage

        made = average_stage(run, stage, last, decay.value, output)
    if json_:
        print(json.dumps(made.to_dict(), indent=2, allow_nan=False))
        return
    print(f"{made.stage}: mean of steps {', '.join(f'{step:,}' for step in made.steps)}")
    print(
        f"held-out loss {made.held_out['loss']:.4f} nats per token, {made.held_out['bits_per_byte']:.4f} bits per byte"
    )
    print(made.folder)
