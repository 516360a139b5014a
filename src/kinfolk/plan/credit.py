"""What a parent's compute is worth to the larger member that grows from it, by a law: an estimate, not a measurement.

If growth keeps the loss, the grown member stands where it would stand after D0 tokens alone, with L(N, D0) the parent's
loss. The credit is 6 N D0 over the parent's compute. An over-trained parent has spent much for its loss, which a larger
model reaches for less: its credit is below that of a compute-optimal one.
"""

from collections.abc import Sequence

from kinfolk.errors import KinfolkError
from kinfolk.laws.loss import LossLaw


def loss_matched_credits(law: LossLaw, sizes: Sequence[float], tokens: Sequence[float]) -> list[float | None]:
    """The credit of each step of a chain of members with N `sizes` (as the law counts) and D `tokens` alone.

    None where the law says that the larger model never has the parent's loss.
    """
    found: list[float | None] = []
    for index in range(1, len(sizes)):
        try:
            start = law.tokens_for(law.predict(sizes[index - 1], tokens[index - 1]), sizes[index])
        except KinfolkError:
            found.append(None)
            continue
        found.append(sizes[index] * start / (sizes[index - 1] * tokens[index - 1]))
    return found
