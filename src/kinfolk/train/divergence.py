"""A stage whose training has failed: its loss is no number, or no better than guessing."""

import math

from kinfolk.errors import KinfolkError

PATIENCE = 20
"""Steps after the warm-up, one after another, with a loss above that of guessing all tokens alike."""


class DivergedError(KinfolkError):
    """Training has failed; the weights that led to it are not kept."""

    def __init__(self, fault: str, *, step: int, steps: int, where: str, fix: str) -> None:
        super().__init__(
            f"{fault} at step {step} of {steps}: training stopped, and the weights that led to it are not kept",
            where=where,
            fix=fix,
        )
        self.fault = fault
        self.step = step


class Watch:
    """Tells from every step whether a stage has diverged.

    The loss of guessing, ln V for V tokens, is about what a run from scratch begins with; one that stays above it after
    its warm-up is lost. Only this process knows how long it has been so: after a resume, patience begins anew.
    """

    def __init__(self, vocabulary: int) -> None:
        self._guessing = math.log(vocabulary)
        self._worse = 0

    def fault(self, loss: float, gradient_norm: float, *, warmed_up: bool) -> str | None:
        """What is wrong with a step of this mean loss in nats per token, of patches too; None if nothing is."""
        if not math.isfinite(loss):
            return f"loss {loss}"
        if not math.isfinite(gradient_norm):
            return f"gradient norm {gradient_norm}"
        self._worse = self._worse + 1 if warmed_up and loss > self._guessing else 0
        if self._worse < PATIENCE:
            return None
        return f"loss {loss:.3f}, worse than the {self._guessing:.3f} of guessing for {PATIENCE} steps,"
