"""What `kinfolk schedule peaks` shows to people."""

from typing import Any

from kinfolk.cli.numbers import short
from kinfolk.cli.tables import print_table


def print_peaks(document: dict[str, Any]) -> None:
    """A row for each member, two columns for each published rule, what transfer and laws say, and the warnings."""
    members, laws = document["members"], document["laws"]
    published = [name for name in members[0]["rules"] if name != "exponent"]
    headings = [
        "member",
        "non-embedding",
        "tokens alone",
        "steps",
        "in use",
        "by",
        f"exponent {document['peak_exponent']:g}",
    ]
    for name in published:
        headings += [name, "anchored"]
    headings += ["apart", "anchored", _transfer_heading(members[0]["rate_transfer"])]
    headings += [each["law"] for each in laws]
    rows = [
        [
            member["name"],
            short(member["parameters"]["non_embedding"]),
            short(member["tokens"]),
            f"{member['steps']:,}",
            f"{member['peak_learning_rate']:.3g}",
            member["basis"],
            f"{member['rules']['exponent']['anchored']:.3g}",
            *(cell for name in published for cell in _rule(member["rules"][name])),
            *(f"{member['apart'][kind]:.2g} x" for kind in ("absolute", "anchored")),
            _transfer(member["rate_transfer"]),
            *(_law(each) for each in member["laws"]),
        ]
        for member in members
    ]
    rule = document["peak_rule"]
    used = f"{rule} {document['peak_exponent']:g}" if rule == "exponent" else rule
    transfer = f", rate transfer by {document['rate_transfer']}" if document["rate_transfer"] != "none" else ""
    print_table(f"{document['family']}: peak learning rates; the recipe uses {used}{transfer}", headings, rows)
    print(
        f"anchored: by the rule's ratio between members, from the recipe's peak of the first, "
        f"{document['peak_learning_rate']:g}; *: outside the runs that the rule was fitted to"
    )
    if members[0]["rate_transfer"]:
        print("rate transfer: rates of the layers' matrices; embeddings keep the base's")
    for each in laws:
        if each["member"]:
            print(
                f"{each['law']}: the best fitted peak for {each['member']} under the recipe's schedule, and the peaks "
                f"that cannot be told from it; forecast loss {each['loss']:.4f}"
            )
    for warning in document["warnings"]:
        print(f"warning: {warning}")


def _rule(rule: dict[str, Any]) -> list[str]:
    return [f"{rule['absolute']:.3g}{'*' if rule['outside'] else ''}", f"{rule['anchored']:.3g}"]


def _transfer_heading(transfer: dict[str, Any] | None) -> str:
    if transfer is None:
        return "muP"
    return f"{transfer['rule']} (in use)" if transfer["in_use"] else str(transfer["rule"])


def _transfer(transfer: dict[str, Any] | None) -> str:
    if transfer is None:
        return "-"
    low, high = (f"{transfer['hidden_matrices'][end]:.3g}" for end in ("smallest", "largest"))
    return low if low == high else f"{low} to {high}"


def _law(said: dict[str, Any] | None) -> str:
    if said is None:
        return "-"
    return f"{said['peak']:.3g} ({said['low']:.3g} to {said['high']:.3g}), {said['basis']}"
