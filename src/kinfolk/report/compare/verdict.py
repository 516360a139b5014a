"""The answer in words: which family is better, and at what cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Literal

from kinfolk.report import numbers
from kinfolk.report.compare.comparison import Comparison
from kinfolk.report.compare.differences import Difference, Verdict
from kinfolk.report.compare.sides import Side

_SAID: dict[Verdict, str] = {"better": "better", "worse": "worse", "undecided": "undecided", "same": "the same"}


@dataclass(frozen=True)
class Against:
    """One family held against the reference."""

    side: Side
    reference: Side
    differences: tuple[Difference, ...]
    """Of the members that both have, small to large."""
    uncompared: str
    """Why members that both have cannot be compared; empty where all can be, or there are none."""

    def count(self, verdict: Verdict) -> int:
        return sum(difference.verdict == verdict for difference in self.differences)

    @property
    def cost(self) -> float:
        """6ND FLOPs more than the reference, as a share of it; of the whole family."""
        return self.side.cost.six_nd / self.reference.cost.six_nd - 1

    @property
    def cost_matmul(self) -> float:
        return self.side.cost.matmul / self.reference.cost.matmul - 1

    @property
    def seconds(self) -> float | None:
        """Time more than the reference, as a share of it; None where the two cannot be compared."""
        same = self.side.machines == self.reference.machines and len(self.side.machines) == 1
        both = self.side.trained and self.reference.trained
        return self.side.seconds / self.reference.seconds - 1 if same and both and self.reference.seconds else None

    @property
    def level(self) -> Literal["good", "bad", "hint"]:
        """How the family does against the reference, cost aside."""
        if not self.count("better") and not self.count("worse"):
            return "hint"
        if not self.count("worse"):
            return "good"
        return "hint" if self.count("better") else "bad"

    @property
    def quality(self) -> str:
        """Whether its members are better, without the family's name."""
        total = len(self.differences)
        if not total and self.uncompared:
            return f"cannot be told better or worse, for {self.uncompared}"
        if not total:
            return "has no finished member in common with it yet"
        if self.count("better") == total:
            return f"is better in {_all(total)}"
        if self.count("worse") == total:
            return f"is worse in {_all(total)}"
        if self.count("same") == total:
            return f"has the very same weights in {_all(total)}"
        if self.count("undecided") + self.count("same") == total:
            return f"is not measurably better or worse in {'its member' if total == 1 else 'any member'}"
        parts = [f"{said} in {self.count(verdict)}" for verdict, said in _SAID.items() if self.count(verdict)]
        return f"is {', '.join(parts)} of {total} members"

    @property
    def range(self) -> str:
        """Between which bounds the differences lie."""
        shares = sorted(difference.relative for difference in self.differences)
        if not any(shares):
            return ""
        ends = dict.fromkeys(f"{'+' if share > 0 else ''}{numbers.percent(share)}" for share in (shares[0], shares[-1]))
        return f" (bits per byte {' to '.join(ends)})"

    @property
    def price(self) -> str:
        """What it costs against the reference."""
        planned = "" if self.side.trained and self.reference.trained else " as planned"
        if abs(self.cost) < 0.0005:
            return f"costs the same compute{planned}"
        return f"costs {numbers.percent(abs(self.cost))} {'more' if self.cost > 0 else 'less'} compute{planned}"

    @property
    def sentence(self) -> str:
        mixed = (self.level == "good" and self.cost >= 0.0005) or (self.level == "bad" and self.cost <= -0.0005)
        return f"{self.side.name} {self.quality}{self.range}, {'but' if mixed else 'and'} {self.price}."


def against_reference(comparison: Comparison) -> list[Against]:
    """Every family but the first, held against the first."""
    found = []
    for place, side in enumerate(comparison.sides[1:], start=1):
        shared = [row for row in range(len(comparison.rows)) if _shared(comparison, row, place)]
        known = [comparison.differences[row][place] for row in shared]
        differences = tuple(difference for difference in known if difference)
        reason = _uncompared(comparison) if len(differences) < len(known) else ""
        found.append(Against(side, comparison.sides[0], differences, reason))
    return found


def headline(comparison: Comparison) -> str:
    """The whole comparison in one or two sentences. Its counts do not depend on the order of the families."""
    held = against_reference(comparison)
    reference = comparison.sides[0]
    if not held:
        seeds = _and([str(seed) for seed in reference.seeds])
        runs = "Both" if len(reference.builds) == 2 else f"All {len(reference.builds)}"
        return f"{runs} runs are one family, {reference.name}, with the seeds {seeds}."
    if len(held) == 1:
        only = held[0]
        return f"Against {reference.name}, {only.sentence}"
    least = min(side.cost.six_nd for side in comparison.sides)
    cheapest = [side for side in comparison.sides if isclose(side.cost.six_nd, least, rel_tol=1e-9)]
    cost = f"{_least_compute(cheapest, len(comparison.sides))}, {numbers.flops(least)}"
    if not any(each.differences for each in held):
        return f"Which family is best cannot be said yet; {cost}."
    lowest = _lowest(comparison)
    if not lowest:
        return f"No member can be compared in all families; {cost}."
    wins = [lowest.count([side]) for side in comparison.sides]
    level = len(lowest) - sum(wins)
    total = f"{len(lowest)} member{'' if len(lowest) == 1 else 's'}"
    shared = f" (in {level} several families share the lowest)" if level else ""
    best = [side for side, won in zip(comparison.sides, wins, strict=True) if won == max(wins)]
    if not max(wins):
        return f"Several families share the lowest bits per byte in all of {total}; {cost}."
    if len(best) > 1:
        tied = ", ".join(f"{side.name} in {max(wins)}" for side in best)
        return f"Lowest bits per byte of {total}: {tied}{shared}; {cost}."
    count = f"{best[0].name} has the lowest bits per byte in {max(wins)} of {total}{shared}"
    return f"{count}, and costs the least compute." if cheapest == best else f"{count}; {cost}."


def _lowest(comparison: Comparison) -> list[list[Side]]:
    """For each member that can be compared in all families, those in which it is lowest: several if exactly level.

    The smallest member of several strategies has the same weights, so that is no rare case.
    """
    found = []
    for row, differences in zip(comparison.rows, comparison.differences, strict=True):
        shifts = [0.0, *(difference.mean for difference in differences[1:] if difference)]
        if len(row.found) == len(comparison.sides) == len(shifts):
            found.append([side for side, shift in zip(comparison.sides, shifts, strict=True) if shift == min(shifts)])
    return found


def _least_compute(cheapest: Sequence[Side], families: int) -> str:
    if len(cheapest) == families:
        return "all cost the same compute"
    verb = "costs" if len(cheapest) == 1 else "cost"
    return f"{_and([side.name for side in cheapest])} {verb} the least compute"


def _and(names: Sequence[str]) -> str:
    """As in a sentence.

    >>> _and(["a"]), _and(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _uncompared(comparison: Comparison) -> str:
    """Why two members that are there have no difference, in a subordinate clause."""
    if comparison.agreement.text == "in part":
        return "only some of the documents that they hold out are the same, and they were not measured on these alone"
    return "the two were measured on different held-out text"


def comparable(comparison: Comparison) -> tuple[Literal["good", "hint", "bad"], str, str]:
    """Whether figures may be held against each other: how well, in a few words, and what follows."""
    found = comparison.agreement
    if not comparison.rows:
        text = {"same": "The runs hold out the same text.", "different": "The runs hold out different text."}
        unknown = "Whether the runs hold out the same text shows once one is."
        return "hint", "No member has been measured yet.", text.get(found.text, unknown)
    documents = f"{found.documents:,}" if found.documents is not None else ""
    tokenizers = {
        True: "The tokenizer is the same too, so losses per token can be compared as well.",
        False: "The tokenizers differ: compare bits per byte only, for losses are per token of each one's own.",
        None: "Whether the tokenizers are the same is not known: compare bits per byte only.",
    }[found.tokenizer]
    if found.text in ("same", "same text"):
        return "good", "All runs were measured on the same held-out text.", tokenizers
    if found.text == "same size":
        return (
            "hint",
            "All runs were measured on held-out text of the same size.",
            "Whether it is the same text cannot be checked, for the data of a run are not on disk.",
        )
    if found.text == "in part":
        paired = any(difference for line in comparison.differences for difference in line)
        given = (
            "Differences are of these documents; the other" if paired else "No member was measured on them alone; the"
        )
        return (
            "hint",
            f"The runs hold out different text, of which {documents} documents are the same.",
            f"{given} figures are of each run's own text. {tokenizers}",
        )
    if found.text == "unknown":
        return "hint", "No member has been measured in some of the runs.", "There is nothing to compare yet."
    return (
        "bad",
        "The runs were measured on different held-out text, so their losses cannot be compared.",
        "Costs can. Build them from the same data, or measure all on one text: `kinfolk evaluate RUN RUN --text FILE`.",
    )


def _shared(comparison: Comparison, row: int, place: int) -> bool:
    entries: Sequence[object] = comparison.rows[row].entries
    return entries[0] is not None and entries[place] is not None


def _all(total: int) -> str:
    return {1: "its one member", 2: "both members"}.get(total, f"all {total} members")
