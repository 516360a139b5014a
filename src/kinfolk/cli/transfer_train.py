"""kinfolk transfer train"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import JsonOption
from kinfolk.cli.transfer_options import (
    BatchOption,
    ClipOption,
    DataOption,
    DecayOption,
    EpochsOption,
    HeldOutEveryOption,
    HeldOutOption,
    HeldOutShareOption,
    MaxLengthOption,
    MicroBatchOption,
    PatienceOption,
    Precision,
    PrecisionOption,
    RateOption,
    RunOption,
    SaveEveryOption,
    SeedOption,
    TemplateOption,
    TooLong,
    TooLongOption,
    WarmupOption,
    carried_out,
    data_from,
    settings_from,
)


class Scheme(StrEnum):
    residual = "residual"
    cascade = "cascade"
    cascade_without_text = "cascade_without_text"


class Norm(StrEnum):
    masked = "masked"
    released = "released"
    kl = "kl"


def train(
    context: typer.Context,
    base: Annotated[list[Path], typer.Option(help="Frozen base: the folder of a member; repeat for several.")],
    value: Annotated[
        str, typer.Option(metavar="INIT", help="Folder whose weights it starts from; scratch; or scratch:FOLDER.")
    ],
    data: DataOption,
    run: RunOption,
    zero_head: Annotated[bool, typer.Option("--zero-head", help="Start exactly at the base.")] = False,
    scheme: Annotated[Scheme, typer.Option(help="What the value network reads.")] = Scheme.residual,
    beta: Annotated[float, typer.Option(help="Use, and train, at alpha = 1 / beta.")] = 1.0,
    norm: Annotated[Norm, typer.Option(help="The regulariser.")] = Norm.masked,
    norm_weight: Annotated[float, typer.Option(help="Its weight, lambda.")] = 0.0,
    entropy_weight: Annotated[float, typer.Option(help="Weight of the pair's entropy, which is kept high.")] = 0.0,
    anchor: Annotated[
        Path | None, typer.Option(help="Text on which to keep what the base predicts.", show_default=False)
    ] = None,
    anchor_weight: Annotated[float, typer.Option(help="Weight of that.")] = 0.0,
    watch: Annotated[
        Path | None, typer.Option(help="Base of the held-out loss; by default those of training.", show_default=False)
    ] = None,
    cache_logits: Annotated[bool, typer.Option("--cache-logits", help="Compute the bases' logits only once.")] = False,
    held_out: HeldOutOption = None,
    held_out_share: HeldOutShareOption = 0.05,
    template: TemplateOption = None,
    max_length: MaxLengthOption = None,
    too_long: TooLongOption = TooLong.refuse,
    epochs: EpochsOption = 3.0,
    batch: BatchOption = 32,
    learning_rate: RateOption = 1e-4,
    warmup: WarmupOption = 0.01,
    weight_decay: DecayOption = 0.01,
    gradient_clip: ClipOption = 1.0,
    micro_batch_tokens: MicroBatchOption = None,
    held_out_every: HeldOutEveryOption = None,
    patience: PatienceOption = 4,
    precision: PrecisionOption = Precision.auto,
    seed: SeedOption = 0,
    save_every: SaveEveryOption = None,
    json_: JsonOption = False,
) -> None:
    """Train a value network on frozen bases: what post-training changes, to be added to any member."""
    from kinfolk.transfer.objective import Regulariser
    from kinfolk.transfer.value import train_value
    from kinfolk.transfer.value_request import ValueRequest

    request = ValueRequest(
        bases=tuple(base),
        value=value,
        data=data_from(context.params),
        settings=settings_from(context.params),
        zero_head=zero_head,
        scheme=scheme.value,
        beta=beta,
        regulariser=Regulariser(norm.value, norm_weight, entropy_weight, anchor_weight),
        watch=watch,
        anchor=anchor,
        cache_logits=cache_logits,
    )
    result = carried_out(lambda view: train_value(request, run, view), json_)
    if result is None:
        return
    from kinfolk.cli.tables import print_table

    print_table(
        "Loss in nats per response token, held-out demonstrations",
        ("base", "trained on it", "base alone", "with the value network"),
        [
            (
                each["base"],
                "yes" if each["trained_on"] else "no",
                f"{each['base_loss']:.4f}",
                f"{each['pair_loss']:.4f}",
            )
            for each in result["held_out"]
        ],
    )
    print(f"steps:  {result['steps']:,}, best at {result['best_step']:,}; {result['flops']['total']:.3g} FLOPs")
    print(f"value:  {run / result['path']}")
