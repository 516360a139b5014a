"""What is asked for when a value network is to be trained, and whether it makes sense."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.transfer.objective import Regulariser
from kinfolk.transfer.settings import Settings
from kinfolk.transfer.sources import Data, TransferView, checkpoint_document, file_document

NAME = "value"
SCRATCH = "scratch"


@dataclass(frozen=True)
class ValueRequest:
    """What is asked for."""

    bases: tuple[Path, ...]
    value: str
    """A checkpoint whose weights it starts from; `scratch`, of the shape of the first base; or `scratch:FOLDER`."""
    data: Data
    settings: Settings = field(default_factory=Settings)
    zero_head: bool = False
    scheme: str = "residual"
    beta: float = 1.0
    """alpha = 1 / beta, in training and in use."""
    regulariser: Regulariser = field(default_factory=Regulariser)
    watch: Path | None = None
    """The base of the held-out loss; by default those of training."""
    anchor: Path | None = None
    cache_logits: bool = False

    def document(self, view: TransferView) -> dict[str, Any]:
        """For the run's record; KinfolkError for a request that makes no sense, or names what is not there."""
        if not self.bases:
            raise KinfolkError("no base", where="--base", fix="give the folder of a member")
        if self.beta <= 0:
            raise KinfolkError(f"{self.beta:g} is not above 0", where="--beta", fix="give a positive number")
        if self.cache_logits and self.scheme != "residual":
            raise KinfolkError(
                f"the scheme {self.scheme} reads what the base predicts at every position, prompts too",
                where="--cache-logits",
                fix="leave it out, or use --scheme residual",
            )
        if (self.anchor is None) != (self.regulariser.anchor_weight == 0):
            raise KinfolkError(
                "anchor text and its weight go together",
                where="--anchor",
                fix="give both --anchor FILE and --anchor-weight",
            )
        folder = init_folder(self.value)
        return {
            "kind": NAME,
            "bases": [checkpoint_document(base, view) for base in self.bases],
            "value": self.value if folder is None else f"{SCRATCH}:" * self.is_scratch + folder.resolve().name,
            "value_source": checkpoint_document(folder, view) if folder else None,
            "zero_head": self.zero_head,
            "scheme": self.scheme,
            "beta": self.beta,
            "alpha": 1 / self.beta,
            "regulariser": asdict(self.regulariser),
            "watch": checkpoint_document(self.watch, view) if self.watch else None,
            "anchor": file_document(self.anchor) if self.anchor else None,
            "cache_logits": self.cache_logits,
            **self.data.document(),
            "settings": self.settings.to_dict(),
            "seeds": self.settings.seeds,
        }

    @property
    def is_scratch(self) -> bool:
        """Whether the value network begins with weights that are drawn."""
        return self.value == SCRATCH or self.value.startswith(f"{SCRATCH}:")


def init_folder(value: str) -> Path | None:
    """The folder that --value names, if it names one."""
    return None if value == SCRATCH else Path(value.removeprefix(f"{SCRATCH}:"))
