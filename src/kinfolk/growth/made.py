"""Tensors that are made when they are asked for, a few rows at a time: copied from a file, held, or grown."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from kinfolk.growth.rows import Rows, blocks
from kinfolk.growth.safetensors_writer import Layout

MOST_THREADS = 8


@dataclass(frozen=True)
class Made:
    """A tensor of which dtype and shape are known, and the rest is made block by block."""

    layout: Layout
    blocks: Callable[[], Iterator[tuple[int, Tensor]]]
    """Gives blocks of rows, each with its first row, in a dtype that is cast to that of the layout."""


def copied(rows: Rows) -> Made:
    """A tensor as it lies in a file."""
    if not rows.shape:
        return Made(Layout(rows.dtype, ()), lambda: iter([(0, rows.rows(0, 1))]))
    return Made(
        Layout(rows.dtype, rows.shape),
        lambda: ((start, rows.rows(start, stop)) for start, stop in blocks(rows.shape)),
    )


def held(tensor: Tensor) -> Made:
    """A tensor in memory."""
    return Made(Layout(tensor.dtype, tuple(tensor.shape)), lambda: iter([(0, tensor)]))


def make_all(
    tensors: Mapping[str, Made],
    write: Callable[[str, int, Tensor], None],
    threads: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Make tensors and give their blocks to `write` (name, first row, rows), with so many threads, `MOST_THREADS` at
    most. `progress` is told the bytes so far, by one thread at a time; what it raises stops the work.
    """
    lock, done = threading.Lock(), 0
    stop = threading.Event()

    def make(name: str) -> None:
        nonlocal done
        for first_row, rows in tensors[name].blocks():
            if stop.is_set():
                return
            write(name, first_row, rows)
            with lock:
                done += rows.numel() * tensors[name].layout.dtype.itemsize
                progress(done)

    before = torch.get_num_threads()
    # A thread of ours for each core; torch's own within them would only be in the way.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(max(1, min(threads, MOST_THREADS)))
    try:
        running = [pool.submit(make, name) for name in tensors]
        finished, _ = wait(running, return_when=FIRST_EXCEPTION)
        for each in finished:
            each.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
