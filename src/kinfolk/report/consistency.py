"""How alike the members of a run predict, as matrices that a page colours."""

from dataclasses import dataclass

from kinfolk.report import numbers
from kinfolk.report.numbers import Number
from kinfolk.report.run import Run

Rows = tuple[tuple[float | None, ...], ...]

TITLES = {
    "kl": ("KL(row || column), nats", "the expectation is under the row's member"),
    "jensen_shannon": ("Jensen-Shannon divergence, nats", "the same both ways"),
    "top1_agreement": ("Same first token", "share of tokens where both rank the same token first"),
    "acceptance": ("Accepted drafts", "how often one accepts, in speculative decoding, a token that the other drafts"),
}
SHARES = ("top1_agreement", "acceptance")


@dataclass(frozen=True)
class Matrix:
    """One measure between every two members."""

    key: str
    members: tuple[str, ...]
    rows: Rows

    @property
    def title(self) -> str:
        return TITLES[self.key][0]

    @property
    def note(self) -> str:
        return TITLES[self.key][1]

    def shown(self, value: float) -> Number:
        return numbers.percent(value) if self.key in SHARES else numbers.fixed(value, 3)

    def heat(self, value: float) -> float:
        """From 0 for members that predict the same to 1 for the two that are least alike."""
        apart = [self._apart(each) for row in self.rows for each in row if each is not None]
        return self._apart(value) / max(apart) if max(apart) > 0 else 0.0

    def _apart(self, value: float) -> float:
        return 1 - value if self.key in SHARES else value


@dataclass(frozen=True)
class Alike:
    """What is known of a run's members."""

    matrices: tuple[Matrix, ...]
    measured: str
    """On what, and by whom."""
    whole: bool
    """Whether every two members were compared."""
    stale: bool
    """Whether a fuller comparison was left out because members have changed since."""


def alike(run: Run) -> Alike | None:
    """The matrices that `kinfolk consistency` has kept, or else the build's own; None with fewer than two members."""
    if len(run.members) < 2:
        return None
    kept = run.consistency
    hashes = {member.member: member.sha256 for member in run.members}
    if kept and {each.member: each.sha256 for each in kept.members} == hashes:
        order = [each.member for each in kept.members]
        wanted = tuple(member.member for member in run.members)
        places = [order.index(name) for name in wanted]
        matrices = tuple(
            Matrix(key, wanted, tuple(tuple(kept.matrices[key][row][column] for column in places) for row in places))
            for key in TITLES
            if key in kept.matrices
        )
        measured = f"all held-out text, in windows of {kept.context_length:,} tokens, by kinfolk consistency"
        return Alike(matrices, measured, whole=True, stale=False)
    return _of_build(run, stale=kept is not None)


def _of_build(run: Run, stale: bool) -> Alike | None:
    """What the build measured when it finished each member."""
    names = tuple(member.member for member in run.members)
    forward, agreement = {}, {}
    for member in run.members:
        for found in member.divergences:
            forward[found.previous, member.member] = found.kl_small_to_large
            forward[member.member, found.previous] = found.kl_large_to_small
            agreement[found.previous, member.member] = agreement[member.member, found.previous] = found.top1_agreement
    if not forward:
        return None

    def rows(values: dict[tuple[str, str], float], own: float) -> Rows:
        return tuple(tuple(own if row == column else values.get((row, column)) for column in names) for row in names)

    matrices = Matrix("kl", names, rows(forward, 0.0)), Matrix("top1_agreement", names, rows(agreement, 1.0))
    whole = all(value is not None for row in matrices[0].rows for value in row)
    tokens = {found.tokens for member in run.members for found in member.divergences if found.tokens}
    sample = f"{max(tokens):,} held-out tokens" if tokens else "a sample of held-out text"
    return Alike(matrices, f"{sample}, by the build", whole, stale)
