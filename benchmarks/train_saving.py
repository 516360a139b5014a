"""Writing a checkpoint: kinfolk's writer beside DCP's own one for safetensors and a hash of what it wrote.

Called by benchmarks/train.py.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTES, TENSORS = 200, 60


def saving(work: Path, rounds: int = 7) -> None:
    """Medians of both, in turn, each into a new folder, flushed to the disk."""
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    from kinfolk import files
    from kinfolk.train.checkpoint import calling_dcp
    from kinfolk.train.state_writer import StateWriter

    tensors: dict[str, Any] = {
        f"weight.{number}": torch.randn(MEGABYTES * 250_000 // TENSORS) for number in range(TENSORS)
    }

    def ours(folder: Path) -> None:
        save(tensors, storage_writer=StateWriter(folder, rank=0), no_dist=True)
        files.flush_directory(folder)

    def theirs(folder: Path) -> None:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True), no_dist=True)
        files.flush_directory(folder)
        for path in sorted(folder.glob("*.safetensors")):
            files.sha256(path)

    work.mkdir(parents=True, exist_ok=True)
    taken: dict[str, list[float]] = {"kinfolk": [], "DCP's writer, hashed": []}
    with calling_dcp():
        for round_ in range(rounds + 1):
            for name, write in zip(taken, (ours, theirs), strict=True):
                seconds = _seconds(write, work)
                if round_:  # the first one warms up
                    taken[name].append(seconds)
    pairs = [mine / other for mine, other in zip(*taken.values(), strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    for name, each in taken.items():
        print(f"{name}: {statistics.median(each):.2f} s for {MEGABYTES} MB")
    print(f"kinfolk / DCP's writer: {middle:.2f} ({low:.2f} to {high:.2f})")


def _seconds(write: Callable[[Path], None], work: Path) -> float:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        began = time.perf_counter()
        write(Path(folder))
        return time.perf_counter() - began
