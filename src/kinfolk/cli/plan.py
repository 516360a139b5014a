"""kinfolk plan: of a family file, from a budget, or replayed on a public ladder"""

from pathlib import Path
from typing import Annotated

import typer

from kinfolk.cli.options import BytesOption, JsonOption, LawOption, StrategyOption
from kinfolk.cli.plan_budget import BudgetOptions, plan_budget
from kinfolk.cli.plan_cluster import plan_cluster
from kinfolk.cli.plan_family import load_with_vocabulary, show_comparison, show_plan, show_replay, tokens_given
from kinfolk.errors import KinfolkError

FILE, BUDGET, WANTED = "With a family file", "From a budget (one of these)", "What a budget is to buy"
LIMITS, OUTPUT = "What limits a budget", "What a budget's plan is written to"
MACHINES, CLUSTER, REPLAY = "Machines", "Cluster", "Replay of decisions"


def plan(
    context: typer.Context,
    family: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help="A family file, or the name of a preset; none to have one made."),
    ] = None,
    strategy: StrategyOption = None,
    unique_tokens: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Different tokens of training data at hand.")
    ] = None,
    law: LawOption = [],  # noqa: B006 (typer copies it)
    bytes_per_token: BytesOption = None,
    json_: JsonOption = False,
    budget: Annotated[
        str | None, typer.Option(metavar="FLOPS", help="Training FLOPs, counted as 6ND.", rich_help_panel=BUDGET)
    ] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="Hours of one GPU.", rich_help_panel=BUDGET)] = None,
    money: Annotated[float | None, typer.Option(help="Money, at --price a GPU-hour.", rich_help_panel=BUDGET)] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Wanted sizes, as in 1B,2B,4B; by default a sweep.", rich_help_panel=WANTED)
    ] = None,
    members: Annotated[int, typer.Option(help="Members of the sweep.", rich_help_panel=WANTED)] = 3,
    ratio: Annotated[float, typer.Option(help="Between neighbouring sizes.", rich_help_panel=WANTED)] = 2.0,
    smallest: Annotated[str | None, typer.Option(help="Least parameters.", rich_help_panel=WANTED)] = None,
    largest: Annotated[str | None, typer.Option(help="Most parameters.", rich_help_panel=WANTED)] = None,
    credit: Annotated[
        float, typer.Option(help="Share of a parent's FLOPs that growth keeps.", rich_help_panel=WANTED)
    ] = 1.0,
    patch: Annotated[
        int | None, typer.Option(help="Tokens in a patch, for a patch part.", rich_help_panel=WANTED)
    ] = None,
    patch_share: Annotated[
        float | None, typer.Option(help="Share of the tokens read in patches.", rich_help_panel=WANTED)
    ] = None,
    epochs: Annotated[float, typer.Option(help="Most passes over the unique tokens.", rich_help_panel=WANTED)] = 4.0,
    vocabulary: Annotated[int | None, typer.Option(help="Entries of the tokenizer.", rich_help_panel=WANTED)] = None,
    context_length: Annotated[
        int | None, typer.Option("--context", help="Context length.", rich_help_panel=WANTED)
    ] = None,
    architecture: Annotated[str, typer.Option(help="llama or qwen3.", rich_help_panel=WANTED)] = "llama",
    weights: Annotated[
        str | None, typer.Option(help="What each member's loss counts, as in 1,1,2.", rich_help_panel=LIMITS)
    ] = None,
    growth: Annotated[
        float, typer.Option(help="Least compute over the member before; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 1.5,
    fewest: Annotated[
        float, typer.Option(help="Fewest tokens per parameter; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 20.0,
    most: Annotated[
        float, typer.Option(help="Most tokens per parameter; 0 for no such limit.", rich_help_panel=LIMITS)
    ] = 60.0,
    served: Annotated[
        str | None,
        typer.Option(help="Tokens each member will serve, paid from the budget.", rich_help_panel=LIMITS),
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Most hours of training.", rich_help_panel=LIMITS)] = None,
    memory: Annotated[float | None, typer.Option(help="Most GB of each GPU.", rich_help_panel=LIMITS)] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The family file, to be edited or built.", rich_help_panel=OUTPUT),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with plots.", rich_help_panel=OUTPUT)
    ] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU.", rich_help_panel=MACHINES)] = "H100",
    gpus: Annotated[int, typer.Option(help="GPUs that train one model.", rich_help_panel=MACHINES)] = 1,
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPU's peak that training reaches.", rich_help_panel=MACHINES)
    ] = 0.4,
    price: Annotated[float | None, typer.Option(help="Money for a GPU-hour.", rich_help_panel=MACHINES)] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Every strategy, with and without patches.", rich_help_panel=FILE)
    ] = False,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the file.", rich_help_panel=FILE),
    ] = [],  # noqa: B006
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Memory, communication and time there: h200, h200x64 (so many GPUs) or a YAML file.",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="LADDER", help="Replay decisions on a table of runs instead.", rich_help_panel=REPLAY),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of model sizes.", rich_help_panel=REPLAY)
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of training tokens.", rich_help_panel=REPLAY)
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of losses.", rich_help_panel=REPLAY)
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of 6ND, if there are no tokens.", rich_help_panel=REPLAY),
    ] = None,
    where: Annotated[
        list[str], typer.Option(metavar="COLUMN=VALUE", help="Only rows with this value.", rich_help_panel=REPLAY)
    ] = [],  # noqa: B006
    below: Annotated[
        float | None,
        typer.Option(metavar="FLOPS", help="Fit runs below this; by default the cheaper half.", rich_help_panel=REPLAY),
    ] = None,
) -> None:
    """From a budget to a family, or every stage of a family file: costs, savings, and forecast losses.

    `kinfolk plan --budget 1e21` makes a family for a budget, `kinfolk plan FAMILY` shows the plan of a family file, and
    with both the family is held against the budget.
    """
    options = BudgetOptions(
        budget=budget,
        gpu_hours=gpu_hours,
        money=money,
        sizes=sizes,
        members=members,
        ratio=ratio,
        smallest=smallest,
        largest=largest,
        credit=credit,
        patch=patch,
        patch_share=patch_share,
        vocabulary=vocabulary,
        context=context_length,
        architecture=architecture,
        weights=weights,
        growth=growth,
        fewest=fewest,
        most=most,
        epochs=epochs,
        served=served,
        deadline=deadline,
        memory=memory,
        write=write,
        page=page,
    )
    if replay is not None:
        _only(context, {REPLAY}, "--replay decides on a table of runs", and_shared=("json_",))
        show_replay(replay, where, below, json_, parameters=parameters, tokens=tokens, loss=loss, flops=flops)
        return
    if cluster is not None:
        _only(
            context, {CLUSTER}, "--cluster plans a family file on a cluster", and_also=("set_", "utilisation", "price")
        )
        if family is None:
            raise KinfolkError(
                "there is no family to plan", where="--cluster", fix="give a family file or a preset as well"
            )
        given = load_with_vocabulary(family, set_, strategy)
        plan_cluster(given, cluster, utilisation, price, tokens_given(unique_tokens), law, bytes_per_token, json_)
        return
    if family is None and not options.given:
        raise KinfolkError(
            "there is nothing to plan",
            fix="give a family file, a preset, or a budget: --budget FLOPS, --gpu-hours HOURS, or --money and --price",
        )
    from kinfolk.plan.machines import Machines

    machines = Machines(gpu, utilisation, gpus, price)
    if family is None:
        allowed, because = (
            {BUDGET, WANTED, LIMITS, OUTPUT, MACHINES},
            "without a family file one is made for the budget",
        )
    elif options.given:
        allowed, because = {BUDGET, LIMITS, OUTPUT, MACHINES, FILE}, "the family file says what it is; --set changes it"
    else:
        allowed, because = {MACHINES, FILE}, "it belongs to a budget, and none is given"
    _only(context, allowed, because)
    loaded = load_with_vocabulary(family, set_, strategy) if family is not None else None
    if options.given:
        if compare:
            raise KinfolkError(
                "a budget's plan compares the strategies already", where="--compare", fix="leave one of the two out"
            )
        plan_budget(options, loaded, strategy, unique_tokens, machines, law, bytes_per_token, json_)
        return
    assert loaded is not None
    unique = tokens_given(unique_tokens)
    if compare:
        show_comparison(loaded, unique, machines, json_)
    else:
        show_plan(loaded, unique, machines, law, bytes_per_token, json_)


def _only(
    context: typer.Context,
    panels: set[str],
    because: str,
    and_shared: tuple[str, ...] | None = None,
    and_also: tuple[str, ...] = (),
) -> None:
    """KinfolkError for an option that was typed although it plays no part here, which would be passed over silently.

    Options without a panel are shared by all; with `and_shared` only these of them are. `and_also` are single options
    of other panels.
    """
    for parameter in context.command.params:
        name, panel = parameter.name or "", getattr(parameter, "rich_help_panel", None)
        source = context.get_parameter_source(name)
        typed = source is not None and source.name == "COMMANDLINE"
        shared = panel is None and (and_shared is None or name in and_shared)
        if typed and not shared and panel not in panels and name not in and_also:
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else name.upper()
            raise KinfolkError(f"plays no part here: {because}", where=shown, fix="leave it out")
