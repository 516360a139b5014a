"""Where the time of kinfolk's step goes, by torch's profiler. Called by benchmarks/train.py."""

from pathlib import Path

from train_steps import our_step
from train_task import prepare

PARTS = {
    "linear layers' products": ("aten::mm", "aten::addmm"),
    "attention's products": ("aten::bmm", "aten::baddbmm"),
    "attention's softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
    "head's loss without products": ("_LinearCrossEntropy", "_LinearCrossEntropyBackward", "aten::exp_"),
    "copies and casts": ("aten::copy_",),
    "sums and products by element": ("aten::add", "aten::add_", "aten::mul", "aten::mul_"),
    "optimizer": ("aten::_fused_adamw_",),
}
"""Names of torch's operators; all others are the rest."""


def profile(work: Path, sizes: list[str], steps: int = 6) -> None:
    """The table: shares of the processor time of steps with two threads, of operators themselves."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    prepare(work)
    torch.set_num_threads(2)
    print(f"| model | {' | '.join(PARTS)} | the rest |\n|---|{'---|' * (len(PARTS) + 1)}")
    for size in sizes:
        step = our_step(size, work)
        step()
        with profiled(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(steps):
                step()
        times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
        whole = sum(times.values())
        shares = [sum(times.get(name, 0) for name in names) for names in PARTS.values()]
        cells = [f"{share / whole:.0%}" for share in (*shares, whole - sum(shares))]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
