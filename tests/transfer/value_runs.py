"""How the tests of this folder train value networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from kinfolk.family.recipe import Checkpoints
from kinfolk.train.monitor import read_metrics
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import Data
from kinfolk.transfer.value_request import ValueRequest

SETTINGS = Settings(
    epochs=1.5,
    demonstrations_per_step=6,
    learning_rate=0.02,
    held_out_every_steps=3,
    precision="float32",
    seed=4,
    checkpoints=Checkpoints(steps=2),
)


def ask(place: Path, **changes: Any) -> ValueRequest:
    wanted = {
        "bases": (place / "small",),
        "value": str(place / "small"),
        "data": Data(place / "rows.jsonl", held_out_share=0.2),
        "settings": SETTINGS,
        "zero_head": True,
    }
    settings = {name: changes.pop(name) for name in list(changes) if hasattr(SETTINGS, name)}
    return ValueRequest(**(wanted | {"settings": replace(SETTINGS, **settings)} | changes))


def figures(folder: Path) -> list[dict[str, Any]]:
    unlike = ("seconds", "tokens_per_second")
    records = read_metrics(folder / "training" / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in unlike} for record in records]
