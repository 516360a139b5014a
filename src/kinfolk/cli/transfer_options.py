"""Options that all trainings on demonstrations share, and how such a training is run from the command line."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.live import is_main_process, live_view

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


def data_from(given: Mapping[str, Any]) -> "Data":
    """The demonstrations that the options of a command name, from all its parameters."""
    from kinfolk.transfer.sources import Data

    return Data(
        path=given["data"],
        held_out=given["held_out"],
        held_out_share=given["held_out_share"],
        template=given["template"],
        longest=given["max_length"],
        too_long=given["too_long"].value,
    )


def settings_from(given: Mapping[str, Any]) -> "Settings":
    """How to train, by the options of a command, from all its parameters."""
    from kinfolk.family.recipe import Checkpoints
    from kinfolk.transfer.settings import Settings

    return Settings(
        epochs=given["epochs"],
        demonstrations_per_step=given["batch"],
        learning_rate=given["learning_rate"],
        warmup_share=given["warmup"],
        weight_decay=given["weight_decay"],
        gradient_clip=given["gradient_clip"],
        tokens_per_micro_batch=given["micro_batch_tokens"],
        held_out_every_steps=given["held_out_every"],
        patience=given["patience"],
        precision=given["precision"].value,
        seed=given["seed"],
        checkpoints=Checkpoints() if given["save_every"] is None else Checkpoints(steps=given["save_every"]),
    )


def carried_out(work: "Callable[[TransferView], dict[str, Any]]", json_: bool) -> dict[str, Any] | None:
    """Do `work` with a live view; its result, or None where there is nothing more to say."""
    import json

    with live_view() as view:
        result = work(view)
    if not is_main_process():
        return None
    if json_:
        print(json.dumps(result, indent=2, allow_nan=False))
        return None
    return result
