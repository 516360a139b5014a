"""How a model is trained on demonstrations; the defaults are the published scripts' where they say one (section 4 of
the method's notes: AdamW, peak 1e-4, cosine, warm-up 1 %, weight decay 0.01, 3 epochs, batch 32)."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kinfolk.errors import KinfolkError
from kinfolk.family.recipe import Checkpoints, Optimizer
from kinfolk.plan.stages import Rate

HELD_OUT_DEMONSTRATIONS = 256
"""At most so many of the held-out demonstrations are scored during training; at its end, all."""


@dataclass(frozen=True)
class Settings:
    """A training on demonstrations."""

    epochs: float = 3.0
    demonstrations_per_step: int = 32
    learning_rate: float = 1e-4
    """At its peak."""
    warmup_share: float = 0.01
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    tokens_per_micro_batch: int | None = None
    held_out_every_steps: int | None = None
    """By default twenty times a training."""
    patience: int = 4
    """Stop after so many held-out losses in a row that are no better than the best; 0 never does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    """Of the order of the demonstrations; those after it are of the other draws, see `seeds`."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    def __post_init__(self) -> None:
        limits = {
            "epochs": self.epochs > 0,
            "demonstrations_per_step": self.demonstrations_per_step >= 1,
            "learning_rate": 0 < self.learning_rate < 1e6,
            "warmup_share": 0 <= self.warmup_share <= 1,
            "weight_decay": self.weight_decay >= 0,
            "gradient_clip": self.gradient_clip > 0,
            "tokens_per_micro_batch": self.tokens_per_micro_batch is None or self.tokens_per_micro_batch >= 1,
            "held_out_every_steps": self.held_out_every_steps is None or self.held_out_every_steps >= 1,
            "patience": self.patience >= 0,
            "seed": 0 <= self.seed < 2**31 - 1,
        }
        for name, fits in limits.items():
            if not fits:
                raise KinfolkError(
                    f"{getattr(self, name)} is out of bounds", where=name, fix="see kinfolk transfer train --help"
                )

    @property
    def seeds(self) -> dict[str, int]:
        """One for each purpose."""
        return {"order": self.seed, "weights": self.seed + 1, "anchors": self.seed + 2}

    @property
    def optimizer(self) -> Optimizer:
        """AdamW as the published scripts have it."""
        return Optimizer(betas=(0.9, 0.999), weight_decay=self.weight_decay)

    def steps(self, demonstrations: int) -> int:
        """Optimizer steps over so many demonstrations; the last one may read into the next epoch."""
        return max(1, round(self.epochs * demonstrations / self.demonstrations_per_step))

    def rate(self, steps: int) -> Rate:
        """Warm-up, then a cosine down to 0."""
        warmup = round(self.warmup_share * steps)
        return Rate(self.learning_rate, warmup, steps - warmup, "cosine")

    def to_dict(self) -> dict[str, Any]:
        """For a run's record."""
        return asdict(self) | {"checkpoints": self.checkpoints.model_dump()}
