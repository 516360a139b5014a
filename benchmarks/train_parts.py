"""The data pipeline and the tokenizer alone, without training. Called by benchmarks/train.py."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from train_task import (
    CONTEXT,
    SEQUENCES_PER_STEP,
    TOKENS_PER_STEP,
    VOCABULARY,
    family_document,
    prepare,
    read_family,
    write_family,
)


def parts(work: Path) -> None:
    """Reading batches beside what training takes in; tokenising, files to disk, beside `encode_batch` in memory."""
    import numpy as np

    from kinfolk.data.corpus import split
    from kinfolk.data.loader import batch
    from kinfolk.data.tokenizer import document_encoder, load_tokenizer
    from kinfolk.data.tokens import prepare as tokenise

    prepare(work)
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=20_000_000).astype(np.uint16)

    def read(round_: int) -> int:
        for step in range(200):
            batch(tokens, CONTEXT, (200 * round_ + step) * SEQUENCES_PER_STEP, SEQUENCES_PER_STEP, seed=0)
        return 200 * TOKENS_PER_STEP

    print(f"reading: {rate(read):,.0f} tokens/s")
    tokenizer = str((work / "data" / "tokenizer").resolve())
    write_family(work, "tokenise", family_document("1M") | {"tokenizer": {"load": tokenizer}})
    loaded = read_family(work, "tokenise")
    texts = [text.text for text, _ in split(loaded.family.data, loaded.folder, "")]
    encoder = document_encoder(load_tokenizer(tokenizer, loaded.folder, ""))

    def ours(round_: int) -> int:
        target = work / "tokenised"
        shutil.rmtree(target, ignore_errors=True)
        store = tokenise(loaded.family, loaded.folder, target, where="")
        return len(store.train) + len(store.held_out)

    def theirs(round_: int) -> int:
        return sum(len(found.ids) for found in encoder.encode_batch(texts, add_special_tokens=False))

    in_memory, to_disk = rate(theirs), rate(ours)
    print(f"tokenising: {to_disk:,.0f} tokens/s, encode_batch {in_memory:,.0f}, ratio {to_disk / in_memory:.2f}")


def rate(work: Callable[[int], int], rounds: int = 5) -> float:
    """Median of what `work` says it did, per second of wall time."""
    rates = []
    for round_ in range(rounds):
        began = time.perf_counter()
        done = work(round_)
        rates.append(done / (time.perf_counter() - began))
    return statistics.median(rates)
