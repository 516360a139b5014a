"""Patch-level training in the family file, and its two vocabularies.

Shao et al. (arXiv 2407.12665) say: patches of K tokens for a share lambda of the *tokens*. Token superposition (arXiv
2605.06546) says: bags of s tokens for a share r of the *steps*. With K = s they are one method; the functions here turn
one share into the other.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from kinfolk.family.base import Spec
from kinfolk.family.faults import MisfitError

DEFAULT_SHARE = 2 / 3


def step_share_of(size: int, token_share: float) -> float:
    """Share r of the positions (so of compute and equal steps) that a share lambda of the tokens takes.

    r = (lambda / K) / (lambda / K + 1 - lambda).

    >>> round(step_share_of(4, 2 / 3), 12)
    0.333333333333
    """
    return (token_share / size) / relative_cost(size, token_share)


def token_share_of(size: int, step_share: float) -> float:
    """Share lambda of the tokens that a share r of the positions reads: lambda = r K / (r K + 1 - r).

    >>> round(token_share_of(6, 0.3), 12)
    0.72
    """
    return step_share * size / (step_share * size + 1 - step_share)


def relative_cost(size: int, token_share: float) -> float:
    """Positions per token, so the cost beside token-level training on the same tokens: lambda / K + 1 - lambda.

    >>> round(relative_cost(4, 2 / 3), 12)
    0.5
    """
    return token_share / size + 1 - token_share


class Patch(Spec):
    """The first part of some members' training reads patches: several tokens at a time (see docs/patch.md)."""

    size: int = Field(default=4, ge=1, le=1024)
    """K, tokens in a patch."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the tokens that are read in patches, lambda; two thirds by default."""
    step_share: float | None = Field(default=None, gt=0, lt=1)
    """The same as a share r of the steps, in place of `share`."""
    slot_exponent: float = Field(default=0.0, ge=0, le=4)
    """Slot k of the predicted patch, from 1, weighs 1 / k^exponent; 0 weighs all alike."""
    optimizer: Literal["carry", "reset"] = "carry"
    """Carry optimizer and schedule over the switch at constant positions a step; or, as in arXiv 2407.12665, begin
    both anew for the token part, at constant tokens a step."""
    members: Literal["scratch", "all"] | list[str] = "scratch"
    """Whose training begins with patches: those that start from random weights, all, or these."""

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        if self.share is not None and self.step_share is not None:
            raise MisfitError(
                "share and step_share are both given, and each follows from the other",
                field="step_share",
                fix=f"leave it out: share {self.share:g} is a step_share of {step_share_of(self.size, self.share):.4g}",
            )
        return self

    @property
    def token_share(self) -> float:
        """lambda, whichever share was given."""
        if self.step_share is not None:
            return token_share_of(self.size, self.step_share)
        return DEFAULT_SHARE if self.share is None else self.share

    @property
    def position_share(self) -> float:
        """r, whichever share was given."""
        return step_share_of(self.size, self.token_share) if self.step_share is None else self.step_share

    @property
    def cost(self) -> float:
        """Cost beside token-level training on the same tokens."""
        return relative_cost(self.size, self.token_share)

    def opens(self, name: str, from_scratch: bool) -> bool:
        """Whether the training of member `name` begins with patches."""
        if isinstance(self.members, str):
            return self.members == "all" or from_scratch
        return name in self.members
