"""What somebody wants of a family: a budget and constraints, checked before anything is computed from them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import ValidationError

from kinfolk.errors import KinfolkError
from kinfolk.family.patch import Patch
from kinfolk.plan.machines import Machines

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Budget:
    """Training FLOPs that may be spent, and how they are counted."""

    flops: float
    counting: Literal["six_nd", "matmul"]
    """six_nd for a budget in FLOPs, as papers count; matmul for hours and money, which pay for the real products."""
    given: str
    """As the user gave it."""


@dataclass(frozen=True)
class Wish:
    """A budget with everything that limits its use. Sizes count all parameters."""

    budget: Budget
    machines: Machines
    sizes: tuple[float, ...] | None = None
    """Wanted sizes; None lets the law choose the largest, and `members` and `ratio` the others."""
    members: int = 3
    ratio: float = 2.0
    """Between neighbouring sizes."""
    smallest: float | None = None
    largest: float | None = None
    weights: tuple[float, ...] | None = None
    """What each member's loss counts; alike by default."""
    strategy: Literal["independent", "progressive", "trunk"] = "progressive"
    credit: float = 1.0
    patch: Patch | None = None
    growth: float | None = 1.5
    """Least compute of a member over the one before it; None takes the guard away."""
    fewest: float | None = 20.0
    """Tokens per parameter that every member gets at least; None takes the guard away."""
    most: float | None = 60.0
    """Most tokens per parameter; None takes the guard away. Beyond about 60 an over-trained parent is worth less to the
    next member than the budget rule credits it with (`kinfolk.plan.credit`)."""
    unique_tokens: float | None = None
    epochs: float = 4.0
    """Most passes over the unique tokens."""
    served: tuple[float, ...] | None = None
    """Tokens that each member will serve; their 2N FLOPs are paid from the budget."""
    memory: float | None = None
    """Bytes of a GPU that training may use."""
    deadline: float | None = None
    """Hours."""
    vocabulary: int | None = None
    context: int | None = None
    architecture: Literal["llama", "qwen3"] = "llama"

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_lengths(self)
        if self.strategy != "independent" and self.growth is None and not (self.most or self.unique_tokens):
            raise KinfolkError(
                "nothing keeps the smaller members from growing without end: in a chain their compute is spared by "
                "the larger ones, so any split of it costs the same",
                where="--growth and --most",
                fix="keep one of the two, or give --unique-tokens",
            )

    @property
    def count(self) -> int:
        """Number of members."""
        return len(self.sizes) if self.sizes else self.members


def parse_count(text: str, where: str, low: float, high: float) -> float:
    """A number with an optional unit, such as 1e9, 350M or 1.5 B; KinfolkError for what cannot be meant.

    Values below `low` are mostly counts in millions or billions whose unit was left out.

    >>> parse_count("1.5B", "--sizes", 1e4, 1e14)
    1500000000.0
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*", text)
    try:
        value = float(match[1]) * UNITS[match[2].lower()] if match else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise KinfolkError(f"{text!r} is not a count", where=where, fix="write 1e9, 350M or 1.5B")
    if value <= 0:
        raise KinfolkError(f"{text} is not positive", where=where, fix="write 1e9, 350M or 1.5B")
    if value < low:
        raise KinfolkError(
            f"{text} cannot be meant: it looks like millions or billions", where=where, fix=f"write {text}M or {text}B"
        )
    if value > high:
        raise KinfolkError(f"{text} is too large", where=where, fix="check its unit")
    return value


def plain(value: float) -> str:
    """A large number as people type it.

    >>> plain(1e21), plain(2.5e10)
    ('1e21', '2.5e10')
    """
    return f"{value:.4g}".replace("e+0", "e").replace("e+", "e")


def parse_counts(text: str | None, where: str, low: float, high: float) -> tuple[float, ...] | None:
    """Several counts with commas between them; None for None."""
    return None if text is None else tuple(parse_count(part, where, low, high) for part in text.split(","))


def budget_of(flops: str | None, gpu_hours: float | None, money: float | None, machines: Machines) -> Budget:
    """The budget that was given in one of three ways; KinfolkError for none, several, or an impossible one."""
    given = [value for value in (flops, gpu_hours, money) if value is not None]
    if len(given) != 1:
        raise KinfolkError(
            "there is no budget" if not given else f"{len(given)} budgets are given",
            fix="give one of --budget FLOPS, --gpu-hours HOURS, and --money MONEY with --price for a GPU-hour",
        )
    if flops is not None:
        value = parse_count(flops, "--budget", 1e-300, 1e300)
        if value < 1e10:
            raise KinfolkError(
                f"{value:g} FLOPs train nothing: it looks like peta or exa",
                where="--budget",
                fix="write FLOPs such as 1e21",
            )
        if value > 1e32:
            raise KinfolkError(f"{value:g} FLOPs are more than there are", where="--budget", fix="check its unit")
        return Budget(value, "six_nd", f"{plain(value)} FLOPs (6ND)")
    option, amount = ("--gpu-hours", gpu_hours) if gpu_hours is not None else ("--money", money)
    if amount is None or not 0 < amount < 1e12:
        raise KinfolkError(f"{amount} is not a positive number", where=option, fix="write a plain number such as 1000")
    if money is not None and machines.price is None:
        raise KinfolkError("money needs a price", where="--money", fix="give --price, money for one GPU-hour")
    hours = amount if machines.price is None or gpu_hours is not None else amount / machines.price
    text = f"{hours:,.4g} GPU-hours of {machines.gpu} at {machines.utilisation:.0%}"
    if money is not None:
        text = f"{amount:,.6g} for {text}"
    return Budget(hours * machines.flops_per_hour, "matmul", text)


def _check_counts(wish: Wish) -> None:
    limits = (
        ("--ratio", wish.ratio, 1.05, 1000.0),
        ("--credit", wish.credit, 0.0, 1.0),
        ("--growth", wish.growth, 1.01, 1e6),
        ("--fewest", wish.fewest, 1e-3, 1e6),
        ("--most", wish.most, 0.1, 1e6),
        ("--epochs", wish.epochs, 0.01, 1000.0),
        ("--members", float(wish.members), 1.0, 8.0),
        ("--memory", wish.memory, 1e6, 1e14),
        ("--deadline", wish.deadline, 1e-3, 1e7),
        ("--vocabulary", wish.vocabulary, 257, 1e7),
        ("--context", wish.context, 8, 1e8),
    )
    for where, value, low, high in limits:
        if value is not None and not low <= value <= high:
            raise KinfolkError(f"{value:g} cannot be meant", where=where, fix=f"use {low:g} to {high:g}")


def _check_lengths(wish: Wish) -> None:
    if wish.sizes is not None:
        if len(wish.sizes) > 8:
            raise KinfolkError(f"{len(wish.sizes)} members are too many", where="--sizes", fix="ask for 8 or fewer")
        for small, large in zip(wish.sizes, wish.sizes[1:], strict=False):
            if large < 1.05 * small:
                raise KinfolkError(
                    f"{large:.4g} does not follow {small:.4g}", where="--sizes", fix="order sizes from small to large"
                )
        if wish.smallest or wish.largest:
            raise KinfolkError("sizes are given, and a range of them", where="--sizes", fix="leave one of them out")
    if wish.fewest and wish.most and wish.fewest > wish.most:
        raise KinfolkError(
            f"members would get at least {wish.fewest:g} and at most {wish.most:g} tokens per parameter",
            where="--fewest",
            fix="exchange them",
        )
    if wish.smallest and wish.largest and wish.smallest > wish.largest:
        raise KinfolkError(
            f"the smallest member would have {wish.smallest:.4g} parameters and the largest {wish.largest:.4g}",
            where="--smallest",
            fix="exchange them",
        )
    for where, values in (("--weights", wish.weights), ("--served", wish.served)):
        if values is not None and len(values) != wish.count:
            raise KinfolkError(
                f"{len(values)} values for {wish.count} members", where=where, fix="give one for each, small to large"
            )


def per_member(values: Sequence[float] | None, count: int) -> tuple[float, ...] | None:
    """One value for all members repeated, or as given."""
    return (
        tuple(values) * count if values is not None and len(values) == 1 else None if values is None else tuple(values)
    )


def patch_of(size: int | None, share: float | None) -> Patch | None:
    """The patch part that was asked for; KinfolkError for one that cannot be."""
    if size is None and share is None:
        return None
    try:
        return Patch(size=4 if size is None else size, share=share)
    except ValidationError:
        raise KinfolkError(
            f"patches of {size} for a share of {share} are not possible",
            where="--patch and --patch-share",
            fix="use for example --patch 4 --patch-share 0.667",
        ) from None


Word = TypeVar("Word", bound=str)


def word(text: str, where: str, choices: tuple[Word, ...]) -> Word:
    """The one of `choices` that `text` is; KinfolkError if it is none."""
    for choice in choices:
        if text == choice:
            return choice
    raise KinfolkError(f"{text!r} is not known here", where=where, fix=f"use one of {', '.join(choices)}")
