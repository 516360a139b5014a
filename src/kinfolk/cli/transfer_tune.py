"""kinfolk transfer tune"""

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


def tune(
    context: typer.Context,
    member: Annotated[Path, typer.Argument(metavar="MEMBER", help="Folder of the member.")],
    data: DataOption,
    run: RunOption,
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
    """Fine-tune a whole member on demonstrations: what transfer is to be compared with."""
    from kinfolk.transfer.tune import TuneRequest, tune_member

    request = TuneRequest(
        member=member,
        data=data_from(context.params),
        settings=settings_from(context.params),
    )
    result = carried_out(lambda view: tune_member(request, run, view), json_)
    if result is None:
        return
    print(f"held-out loss:  {result['base_loss']:.4f} before, {result['tuned_loss']:.4f} after (nats per token)")
    print(f"steps:          {result['steps']:,}, best at {result['best_step']:,}; {result['flops']['total']:.3g} FLOPs")
    print(f"tuned:          {run / result['path']}")
