"""Options that all trainings on demonstrations share, and how such a training is run from the command line."""

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kinfolk.transfer.settings import Settings
    from kinfolk.transfer.sources import Data, TransferView


class TooLong(StrEnum):
    refuse = "refuse"
    cut = "cut"


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


DataOption = Annotated[
    Path, typer.Option("--data", help="Demonstrations (.jsonl, also .gz, .bz2, .zst): chat, or prompt and response.")
]
RunOption = Annotated[Path, typer.Option("--run", help="Run directory; the same command goes on in it.")]
HeldOutOption = Annotated[Path | None, typer.Option("--held-out", help="Held-out demonstrations.", show_default=False)]
HeldOutShareOption = Annotated[float, typer.Option(help="Share of --data to hold out by hash, without --held-out.")]
TemplateOption = Annotated[
    Path | None, typer.Option(help="Chat template; by default the tokenizer's, else kinfolk's.", show_default=False)
]
MaxLengthOption = Annotated[
    int | None, typer.Option(help="Tokens of a demonstration; by default the models' context.", show_default=False)
]
TooLongOption = Annotated[TooLong, typer.Option(help="What to do with longer ones.")]
EpochsOption = Annotated[float, typer.Option(help="Passes over the demonstrations.")]
BatchOption = Annotated[int, typer.Option(help="Demonstrations per step.")]
RateOption = Annotated[float, typer.Option("--learning-rate", help="Peak; cosine to 0.")]
WarmupOption = Annotated[float, typer.Option("--warmup", help="Share of the steps.")]
DecayOption = Annotated[float, typer.Option("--weight-decay", help="On matrices.")]
ClipOption = Annotated[float, typer.Option("--gradient-clip", help="Largest norm of a step's gradient.")]
MicroBatchOption = Annotated[
    int | None,
    typer.Option("--micro-batch-tokens", help="Tokens that are computed at once.", show_default="by device"),
]
HeldOutEveryOption = Annotated[
    int | None, typer.Option(help="Steps between two held-out losses.", show_default="a twentieth of the steps")
]
PatienceOption = Annotated[int, typer.Option(help="Stop after so many held-out losses without a better one; 0 never.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Of matrix products.")]
SeedOption = Annotated[int, typer.Option(help="Of the order; the next ones are of other draws.")]
SaveEveryOption = Annotated[
    int | None, typer.Option(help="Save every so many steps.", show_default="by the clock, at 2 % of the time at most")
]


def data_from(
    data: Path,
    held_out: Path | None,
    held_out_share: float,
    template: Path | None,
    max_length: int | None,
    too_long: TooLong,
) -> "Data":
    """The demonstrations that the options name."""
    from kinfolk.transfer.sources import Data

    return Data(data, held_out, held_out_share, template, max_length, too_long.value)


def settings_from(save_every: int | None, precision: Precision, **given: Any) -> "Settings":
    """The settings that the options name."""
    from kinfolk.family.recipe import Checkpoints
    from kinfolk.transfer.settings import Settings

    saving = Checkpoints() if save_every is None else Checkpoints(steps=save_every)
    return Settings(**given, precision=precision.value, checkpoints=saving)


def carried_out(work: "Callable[[TransferView], dict[str, Any]]", json_: bool) -> dict[str, Any] | None:
    """Do `work` with a live view; its result, or None in a process that has nothing to say.

    Ends the process as a build does where a stop was asked for.
    """
    import json

    from rich.console import Console

    from kinfolk.build.view import LiveView
    from kinfolk.train.engine import MainStopped
    from kinfolk.train.interruption import Interrupted

    is_main = os.environ.get("RANK", "0") == "0"  # under torchrun, one process speaks for all
    console = Console(stderr=True, quiet=not is_main)
    try:
        with LiveView(console) as view:
            result = work(view)
    except Interrupted as stop:
        message = f"stopped by {stop}; what was done is saved, and the same command goes on from there"
        console.print(message, soft_wrap=True)
        sys.exit(128 + stop.number)
    except MainStopped:
        sys.exit(1)
    if not is_main:
        return None
    if json_:
        print(json.dumps(result, indent=2, allow_nan=False))
        return None
    return result
