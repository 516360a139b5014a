"""kinfolk plan with a budget: a family made for it, or one that is given and held against it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinfolk.family.load import LoadedFamily
    from kinfolk.plan.machines import Machines
    from kinfolk.plan.wish import Wish


@dataclass(frozen=True)
class BudgetOptions:
    """What the command line said of a budget and its limits, as it was typed."""

    budget: str | None
    gpu_hours: float | None
    money: float | None
    sizes: str | None
    members: int
    ratio: float
    smallest: str | None
    largest: str | None
    credit: float
    patch: int | None
    patch_share: float | None
    vocabulary: int | None
    context: int | None
    architecture: str
    weights: str | None
    growth: float
    fewest: float
    most: float
    epochs: float
    served: str | None
    deadline: float | None
    memory: float | None
    write: Path | None
    page: Path | None

    @property
    def given(self) -> bool:
        """Whether there is a budget of any kind."""
        return any(value is not None for value in (self.budget, self.gpu_hours, self.money))


def plan_budget(
    options: BudgetOptions,
    family: "LoadedFamily | None",
    strategy: str | None,
    unique_tokens: str | None,
    machines: "Machines",
    law: list[str],
    bytes_per_token: float | None,
    json_: bool,
) -> None:
    """Plan a family for the budget, or hold `family` against it; show, write and draw what came out."""
    from kinfolk.laws.choose import choose_law
    from kinfolk.plan.design import design, hold
    from kinfolk.plan.design_document import design_document, refuse_not_finite
    from kinfolk.plan.family_file import refuse_existing, write_family_file

    wish = _wish(options, family, strategy, unique_tokens, machines)
    if options.write is not None:
        refuse_existing(options.write)
    chosen = choose_law(law, bytes_per_token)
    made = design(wish, chosen) if family is None else hold(family.family, wish, family.origin)
    document = design_document(made, chosen)
    refuse_not_finite(document)
    if options.write is not None:
        write_family_file(options.write, made.family, wish.budget.given)
    if options.page is not None:
        from kinfolk.report.design import write_design_page

        write_design_page(made, chosen, document, options.page)
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.plan_budget_tables import print_budget_plan

    print_budget_plan(document)
    for path in (options.write, options.page):
        if path is not None:
            print(f"written: {path}")


def _wish(
    options: BudgetOptions,
    family: "LoadedFamily | None",
    strategy: str | None,
    unique_tokens: str | None,
    machines: "Machines",
) -> "Wish":
    from kinfolk.plan.wish import Wish, budget_of, parse_count, parse_counts, per_member

    wanted = _wanted(options, strategy) if family is None else _settled(family)
    sizes = wanted["sizes"]
    count = len(sizes) if sizes else options.members
    return Wish(
        budget=budget_of(options.budget, options.gpu_hours, options.money, machines),
        machines=machines,
        weights=per_member(parse_counts(options.weights, "--weights", 0, 1e9), count),
        growth=options.growth or None,
        fewest=options.fewest or None,
        most=options.most or None,
        unique_tokens=parse_count(unique_tokens, "--unique-tokens", 1e4, 1e17) if unique_tokens else None,
        served=per_member(parse_counts(options.served, "--served", 1e4, 1e20), count),
        memory=None if options.memory is None else options.memory * 1e9,
        deadline=options.deadline,
        **wanted,
    )


def _wanted(options: BudgetOptions, strategy: str | None) -> dict[str, Any]:
    """What the options want of a family that is still to be made."""
    from kinfolk.plan.wish import parse_count, parse_counts, patch_of, word

    return {
        "sizes": parse_counts(options.sizes, "--sizes", 1e4, 1e14),
        "members": options.members,
        "ratio": options.ratio,
        "smallest": parse_count(options.smallest, "--smallest", 1e4, 1e14) if options.smallest else None,
        "largest": parse_count(options.largest, "--largest", 1e4, 1e14) if options.largest else None,
        "strategy": word(strategy or "progressive", "--strategy", ("independent", "progressive", "trunk")),
        "credit": options.credit,
        "patch": patch_of(options.patch, options.patch_share),
        "epochs": options.epochs,
        "vocabulary": options.vocabulary,
        "context": options.context,
        "architecture": word(options.architecture, "--architecture", ("llama", "qwen3")),
    }


def _settled(loaded: "LoadedFamily") -> dict[str, Any]:
    """What a family file has settled."""
    from kinfolk.plan.design import wishes_of

    return wishes_of(loaded.family, loaded.origin)
