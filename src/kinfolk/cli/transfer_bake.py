"""kinfolk transfer bake"""

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


def bake(
    context: typer.Context,
    base: Annotated[Path, typer.Option(help="Folder of the member.")],
    value: Annotated[Path, typer.Option(help="Folder of the value network.")],
    data: DataOption,
    run: RunOption,
    mu: Annotated[float, typer.Option(help="Weight of the pair; the responses have 1 - mu.")] = 1.0,
    alpha: Annotated[float | None, typer.Option(help="Of the pair.", show_default="as trained")] = None,
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
    """Distil a base and its value network into one plain model that decodes at the base's cost."""
    from kinfolk.transfer.bake import BakeRequest, bake_pair

    request = BakeRequest(
        base=base,
        value=value,
        share=mu,
        alpha=alpha,
        data=data_from(context.params),
        settings=settings_from(context.params),
    )
    result = carried_out(lambda view: bake_pair(request, run, view), json_)
    if result is None:
        return
    print(
        f"held-out loss:  base {result['base_loss']:.4f}, pair {result['pair_loss']:.4f}, baked "
        f"{result['baked_loss']:.4f} (nats per response token)"
    )
    print(f"KL(pair||baked) {result['kl']:.4f} nats per response token")
    print(f"steps:          {result['steps']:,}, best at {result['best_step']:,}; {result['flops']['total']:.3g} FLOPs")
    print(f"baked:          {run / result['path']}")
