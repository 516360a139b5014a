"""The trainings of benchmarks/transfer.py: full fine-tuning of every base, and value networks; what
`kinfolk transfer tune` and `train` do, in one process for every seed, since loading torch costs as much as a training.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_family import MEMBERS, base_folder

from kinfolk.transfer.objective import Regulariser
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import Data, TransferView
from kinfolk.transfer.tune import TuneRequest, tune_member
from kinfolk.transfer.value import train_value
from kinfolk.transfer.value_request import ValueRequest

SMALLEST = MEMBERS[0]
PEAK = 3e-3
EPOCHS = 4.0
PATIENCE = 4


@dataclass(frozen=True)
class Arm:
    """A value network and how it is trained; bases and initialisation by member."""

    bases: tuple[str, ...] = (SMALLEST,)
    initial: str = SMALLEST
    zero_head: bool = True
    scheme: str = "residual"
    regulariser: Regulariser = field(default_factory=Regulariser)
    anchored: bool = False
    epochs: float = EPOCHS
    patience: int = PATIENCE


ARMS: dict[str, Arm] = {
    "residual": Arm(),
    "long": Arm(epochs=3 * EPOCHS),
    "two bases, to the end": Arm(bases=("100k", "200k"), epochs=3 * EPOCHS, patience=0),
    "wider": Arm(initial="200k"),
    "wider, two bases": Arm(bases=("100k", "200k"), initial="200k"),
    "trained on 400k": Arm(bases=("400k",)),
    "norm 1": Arm(regulariser=Regulariser("masked", 1.0)),
    "norm 10": Arm(regulariser=Regulariser("masked", 10.0)),
    "entropy 0.1": Arm(regulariser=Regulariser(entropy_weight=0.1)),
    "cascade": Arm(scheme="cascade"),
    "cascade, no text": Arm(scheme="cascade_without_text"),
    "anchor 1": Arm(regulariser=Regulariser(anchor_weight=1.0), anchored=True),
    "with its head": Arm(zero_head=False),
    "released norm": Arm(regulariser=Regulariser("released", 1.0)),
    "KL 0.1": Arm(regulariser=Regulariser("kl", 0.1)),
}
"""`trained on 400k` is no transfer there: it tells what a network of this size can do on that base at best. `residual`,
whose regulariser is 0, is Portable Reward Tuning too; `entropy` is that with an entropy term."""


def settings(seed: int, epochs: float = EPOCHS, patience: int = PATIENCE) -> Settings:
    return Settings(
        epochs=epochs,
        learning_rate=PEAK,
        warmup_share=0.05,
        precision="float32",
        seed=seed,
        held_out_every_steps=20,
        patience=patience,
    )


def demonstrations(work: Path) -> Data:
    return Data(work / "task" / "train.jsonl", work / "task" / "development.jsonl")


def tune(work: Path, seed: int, name: str, view: TransferView) -> dict[str, Any]:
    """Fine-tune a whole base; returns the ledger's last line."""
    request = TuneRequest(base_folder(work, seed, name), demonstrations(work), settings(seed))
    return tune_member(request, run_folder(work, seed, f"tuned {name}"), view)


def train(work: Path, seed: int, name: str, view: TransferView) -> dict[str, Any]:
    """Train the value network of an arm; returns the ledger's last line."""
    arm = ARMS[name]
    request = ValueRequest(
        bases=tuple(base_folder(work, seed, base) for base in arm.bases),
        value=str(base_folder(work, seed, arm.initial)),
        data=demonstrations(work),
        settings=settings(seed, arm.epochs, arm.patience),
        zero_head=arm.zero_head,
        scheme=arm.scheme,
        regulariser=arm.regulariser,
        anchor=work / "anchor.txt" if arm.anchored else None,
    )
    return train_value(request, run_folder(work, seed, name), view)


def run_folder(work: Path, seed: int, name: str) -> Path:
    return work / "post-training" / f"seed{seed}" / name.replace(",", "").replace(" ", "-")
