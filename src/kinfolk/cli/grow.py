"""kinfolk grow"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kinfolk.cli.live import live_view
from kinfolk.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from kinfolk.build.probe import Candidate
    from kinfolk.growth.checkpoint import Progress
    from kinfolk.growth.configs import Changes


def grow(
    source: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint, or RUN/stages/STAGE.")],
    target: Annotated[Path, typer.Argument(help="New folder for the larger one.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="SHAPE", help="FIELD=VALUE,... of config.json, or a config.json or model folder to match."
        ),
    ],
    width: Annotated[str, typer.Option(help="energy_split, tile, fpi, aki, lemon or zero_pad.")] = "energy_split",
    depth: Annotated[str, typer.Option(help="zero_exit, stack, interpolate or middle.")] = "zero_exit",
    placement: Annotated[str, typer.Option(help="Of zero-exit blocks: top, even, or layers such as 2,5.")] = "top",
    block: Annotated[str, typer.Option(help="What zero-exit blocks hold: copied or drawn matrices.")] = "copied",
    split: Annotated[str, typer.Option(help="Shares of the copies of a unit: even or uneven.")] = "even",
    noise: Annotated[float, typer.Option(help="Zero-sum noise, in standard deviations of each tensor.")] = 1.0,
    snr: Annotated[float | None, typer.Option(help="Signal-to-noise ratio in dB; takes the place of --noise.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the target; by default the source's.")] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Measure the difference; by default where there must be none."),
    ] = None,
    verify_dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to verify on; by default a built-in one.")] = None,
    optimizer: Annotated[str, typer.Option(help="Of a training checkpoint: carry, asymmetric or reset.")] = "carry",
    probe: Annotated[
        str | None,
        typer.Option(metavar="FAMILY", help="Try ways of growing on a family's data first, and take the best."),
    ] = None,
    probe_steps: Annotated[int, typer.Option(min=1, help="Steps that --probe trains each way for.")] = 200,
    json_: JsonOption = False,
) -> None:
    """Make a larger checkpoint of a checkpoint, and prove what was preserved."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting"):
        import torch

        from kinfolk.errors import KinfolkError
        from kinfolk.growth.checkpoint import refuse_target
        from kinfolk.growth.compare import ClaimError
        from kinfolk.growth.product import GrowthFailedError, grow_checkpoint
        from kinfolk.growth.request import changes_for, dtype_named, dynamics_with, is_stage, operator_from
        from kinfolk.plan.strategies import operator_of

        operator = operator_from(width, depth, placement, block, split, noise, snr, seed)
        dynamics = dynamics_with(optimizer)
        verified_in = dtype_named(verify_dtype, "--verify-dtype", (torch.float32, torch.float64, torch.bfloat16))
        stored_in = dtype_named(dtype, "--dtype") if dtype is not None else None
        changes = changes_for(to)
    probed: list[Candidate] = []
    if probe is not None:
        if is_stage(source):
            raise KinfolkError(
                "a probe starts from a Hugging Face checkpoint", where="--probe", fix="give RUN/members/MEMBER"
            )
        refuse_target(target, source, 0)
        probed = _probe(source, target, changes, probe, probe_steps, console)
        operator = operator_of(probed[0].growth, seed)
    try:
        if is_stage(source):
            from kinfolk.build.growing import grow_stage

            with _progress(console) as progress:
                result = grow_stage(source, target, changes, operator, dynamics, progress)
        else:
            with _progress(console) as progress:
                result = grow_checkpoint(
                    source,
                    target,
                    changes,
                    operator,
                    dtype=stored_in,
                    verify=verify,
                    verify_dtype=verified_in,
                    text=text,
                    progress=progress,
                ).to_dict()
    except ClaimError as failure:
        if json_ and isinstance(failure, GrowthFailedError):
            print(json.dumps(failure.growth.to_dict(), indent=2, allow_nan=False))
        print(f"error: {failure}", file=sys.stderr)
        raise typer.Exit(1) from failure
    trials = [{"name": each.name, "loss": each.loss, "losses": each.losses} for each in probed]
    _show(result | {"target": str(target)} | ({"probe": trials} if trials else {}), json_)


def _probe(
    source: Path, target: Path, changes: "Changes", family: str, steps: int, console: "Console"
) -> "list[Candidate]":
    """Train every candidate from `source` in a run directory beside the target, and show how they rank."""
    from rich.table import Table

    from kinfolk.build.probe import probe_growth
    from kinfolk.family.load import load_family

    folder = target.with_name(target.name + ".probe")
    with live_view() as view:
        ranked = probe_growth(load_family(family), source, changes, steps, folder, view)
    table = Table("way of growing", "held-out loss", f"after {steps} steps, less the best")
    for each in ranked:
        table.add_row(each.name, f"{each.loss:.4f}", f"{each.loss - ranked[0].loss:+.4f}")
    console.print(table)
    return ranked


@contextmanager
def _progress(console: "Console") -> "Iterator[Progress]":
    """A bar for each activity, with a rate and the time left; drawn ten times a second at most."""
    import time

    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, tuple[TaskID, float]] = {}
    drawn = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, rate=""), now
        elif now < drawn + 0.1 and done < total:
            return
        drawn = now
        task, began = tasks[what]
        rate = done / max(now - began, 1e-3)
        bars.update(task, completed=done, rate=f"{rate / 1e6:,.0f} MB/s" if what == "growing" else f"{rate:,.1f} /s")

    with bars:
        yield show


def _show(result: dict[str, Any], json_: bool) -> None:
    if json_:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    from kinfolk.cli.numbers import short

    print(result["description"])
    print(f"parameters  {short(result['parameters_before'])} -> {short(result['parameters_after'])}")
    if result.get("max_abs_logit_difference") is None:
        reasons = "; ".join(result["breaks"])
        print(f"verified    no ({f'not exact: {reasons}' if reasons else 'not asked for'})")
    else:
        verdict = {True: "preserved", False: "NOT preserved", None: "not claimed"}[result["passed"]]
        print(
            f"function    {verdict}: logits differ by {result['max_abs_logit_difference']:.2g} at most (largest "
            f"{result['max_abs_logit']:.3g}), KL {result['kl']:.2g}"
        )
        print(f"loss        {result['loss_before']:.6f} -> {result['loss_after']:.6f} on {result['text']}")
        if result["max_residual_difference"] is not None:
            print(f"layers      residual stream within {result['max_residual_difference']:.2g} of its scale everywhere")
        if result["new_token_mass"]:
            print(f"vocabulary  new tokens get {result['new_token_mass']:.2%} of the probability")
    peak = result["peak_memory_bytes"] / 1e6
    print(f"took        {result['seconds']:.1f} s, {peak:,.0f} MB of memory at the peak")
    print(f"written     {result['target']}")
