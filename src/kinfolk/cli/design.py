"""kinfolk design"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import BytesOption, JsonOption, LawOption

BUDGET, SIZES, LIMITS, MACHINES, OUTPUT = "Budget (one of them)", "Family", "Limits", "Machines", "Law and output"


def design(
    budget: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="Training FLOPs, counted as 6ND.", rich_help_panel=BUDGET)
    ] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Hours of one GPU.", rich_help_panel=BUDGET)] = None,
    money: Annotated[float | None, typer.Option(help="Money, at --price a GPU-hour.", rich_help_panel=BUDGET)] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Wanted sizes, as in 1B,2B,4B; by default a sweep.", rich_help_panel=SIZES)
    ] = None,
    members: Annotated[int, typer.Option(help="Members of the sweep.", rich_help_panel=SIZES)] = 3,
    ratio: Annotated[float, typer.Option(help="Between neighbouring sizes.", rich_help_panel=SIZES)] = 2.0,
    smallest: Annotated[str | None, typer.Option(help="Least parameters.", rich_help_panel=SIZES)] = None,
    largest: Annotated[str | None, typer.Option(help="Most parameters.", rich_help_panel=SIZES)] = None,
    weights: Annotated[
        str | None, typer.Option(help="What each member's loss counts, as in 1,1,2.", rich_help_panel=SIZES)
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="independent, progressive or trunk.", rich_help_panel=SIZES)
    ] = "progressive",
    credit: Annotated[
        float, typer.Option(help="Share of a parent's FLOPs that is worth as much.", rich_help_panel=SIZES)
    ] = 1.0,
    patch: Annotated[
        int | None, typer.Option(help="Tokens in a patch, for a patch part.", rich_help_panel=SIZES)
    ] = None,
    patch_share: Annotated[
        float | None, typer.Option(help="Share of the tokens read in patches.", rich_help_panel=SIZES)
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Entries of the tokenizer.", rich_help_panel=SIZES)] = None,
    context: Annotated[int | None, typer.Option(help="Context length.", rich_help_panel=SIZES)] = None,
    architecture: Annotated[str, typer.Option(help="llama or qwen3.", rich_help_panel=SIZES)] = "llama",
    growth: Annotated[
        float, typer.Option(help="Least compute over the member before; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 1.5,
    fewest: Annotated[
        float, typer.Option(help="Fewest tokens per parameter; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 20.0,
    most: Annotated[
        float, typer.Option(help="Most tokens per parameter; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 60.0,
    unique_tokens: Annotated[
        str | None, typer.Option(help="Different tokens of training data at hand.", rich_help_panel=LIMITS)
    ] = None,
    epochs: Annotated[float, typer.Option(help="Most passes over them.", rich_help_panel=LIMITS)] = 4.0,
    served: Annotated[
        str | None,
        typer.Option(help="Tokens each member will serve, paid from the budget.", rich_help_panel=LIMITS),
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Most hours of training.", rich_help_panel=LIMITS)] = None,
    memory: Annotated[float | None, typer.Option(help="Most GB of each GPU.", rich_help_panel=LIMITS)] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU.", rich_help_panel=MACHINES)] = "H100",
    gpus: Annotated[int, typer.Option(help="GPUs that train one model.", rich_help_panel=MACHINES)] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPU's peak that training reaches.", rich_help_panel=MACHINES)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Money for a GPU-hour.", rich_help_panel=MACHINES)] = None,
    law: LawOption = [],  # noqa: B006 (typer copies it)
    bytes_per_token: BytesOption = None,
    write: Annotated[Path | None, typer.Option(help="Write the family file here.", rich_help_panel=OUTPUT)] = None,
    page: Annotated[Path | None, typer.Option(help="Write a page with plots here.", rich_help_panel=OUTPUT)] = None,
    json_: JsonOption = False,
) -> None:
    """From a budget to a family: sizes, shapes, tokens, rates, forecasts and costs."""
    from kinfolk.laws.choose import choose_law
    from kinfolk.plan.design import design as make_design
    from kinfolk.plan.design_document import design_document, refuse_not_finite
    from kinfolk.plan.family_file import write_family_file
    from kinfolk.plan.machines import Machines
    from kinfolk.plan.wish import Wish, budget_of, parse_count, parse_counts, patch_of, per_member, word

    machines = Machines(gpu, utilisation, gpus, price)
    wanted = parse_counts(sizes, "--sizes", 1e4, 1e14)
    count = len(wanted) if wanted else members
    wish = Wish(
        budget=budget_of(budget, gpu_hours, money, machines),
        machines=machines,
        sizes=wanted,
        members=members,
        ratio=ratio,
        smallest=parse_count(smallest, "--smallest", 1e4, 1e14) if smallest else None,
        largest=parse_count(largest, "--largest", 1e4, 1e14) if largest else None,
        weights=per_member(parse_counts(weights, "--weights", 0, 1e9), count),
        strategy=word(strategy, "--strategy", ("independent", "progressive", "trunk")),
        credit=credit,
        patch=patch_of(patch, patch_share),
        growth=growth or None,
        fewest=fewest or None,
        most=most or None,
        unique_tokens=parse_count(unique_tokens, "--unique-tokens", 1e4, 1e17) if unique_tokens else None,
        epochs=epochs,
        served=per_member(parse_counts(served, "--served", 1e4, 1e20), count),
        memory=None if memory is None else memory * 1e9,
        deadline=deadline,
        vocabulary=vocabulary,
        context=context,
        architecture=word(architecture, "--architecture", ("llama", "qwen3")),
    )
    chosen = choose_law(law, bytes_per_token)
    made = make_design(wish, chosen)
    document = design_document(made, chosen)
    refuse_not_finite(document)
    if write is not None:
        write_family_file(write, made.family, wish.budget.given)
    if page is not None:
        from kinfolk.report.design import write_design_page

        write_design_page(made, chosen, document, page)
    if json_:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    from kinfolk.cli.design_tables import print_design

    print_design(document)
    for path in (write, page):
        if path is not None:
            print(f"written: {path}")
