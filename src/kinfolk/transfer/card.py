"""Model cards of what post-training makes: README.md beside the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kinfolk.card.card import Card, Part, Result, Table, hashes, load_code, render
from kinfolk.card.metadata import facts_of


def value_card(record: dict[str, Any]) -> str:
    """Of a value network."""
    names = ", ".join(base["name"] for base in record["bases"])
    held_out = record["results"]["held_out"]
    rows = tuple(
        (each["base"], "yes" if each["trained_on"] else "no", f"{each['base_loss']:.4f}", f"{each['pair_loss']:.4f}")
        for each in held_out
    )
    zeroed = ", its head zeroed" if record["zero_head"] else ""
    card = Card(
        title=f"A value network for {names}",
        summary="**Not a language model.** Trained by inverse value learning (Lu et al., arXiv 2410.21027): its logits "
        "d are added to those of a base, z = z_base + alpha d, which is then a post-trained model. It can be added to "
        f"any base with the same tokenizer (SHA-256 of its entries `{record['tokenizer']['sha256']}`), in the scheme "
        f"*{record['scheme']}* with alpha {record['alpha']:g}.",
        tags=("kinfolk", "value-network"),
        is_language_model=False,
        measured=tuple(_result(record, f"pair_loss_{each['base']}", each["pair_loss"]) for each in held_out),
        results=Part(
            "Loss in nats per response token on held-out demonstrations:",
            (Table(("base", "trained on it", "base alone", "base with this"), rows),),
        ),
        lineage=Part(
            f"Started from {record['value']}{zeroed}. {_regulariser(record)}", (_checkpoints("base", record["bases"]),)
        ),
        data=_data(record),
        compute=_compute(record),
        limits=("Alone it continues no text sensibly: use it together with a base.",),
        usage=f"from kinfolk.transfer import Pair\n\n"
        f'pair = Pair.of(base, value, {record["alpha"]:g}, "{record["scheme"]}")  # two loaded checkpoints',
        built=_built(record, "train"),
    )
    return render(card)


def model_card(record: dict[str, Any], base: Path, lineage: str, table: Table, losses: dict[str, float]) -> str:
    """Of a plain model tuned or baked from `base`: `lineage` says how, `table` and `losses` with what result."""
    kind = record["kind"]
    card = Card(
        title=f"{record['bases'][0]['name']}, {kind}",
        summary=f"Post-trained: a stock checkpoint with a chat template. {lineage}",
        tags=("kinfolk", kind),
        facts=facts_of(base),
        relation="finetune",
        measured=tuple(_result(record, name, value) for name, value in losses.items()),
        results=Part("In nats per response token of held-out demonstrations:", (table,)),
        lineage=Part(lineage, (_checkpoints("starting point", _starts(record)),)),
        data=_data(record),
        compute=_compute(record),
        limits=(
            "It has learned what its demonstrations show; nothing else was done to keep it from harmful text.",
            "It was measured on held-out demonstrations of the same kind, and on nothing else.",
        ),
        usage=load_code(None),
        built=_built(record, "bake" if kind == "baked" else "tune"),
    )
    return render(card)


def pair_card(pair: PreTrainedModel) -> str:
    """Of a base and a value network that are one model."""
    config: Any = pair.config
    usage = "import kinfolk.transfer  # makes pairs known to transformers\n" + load_code(None)
    card = Card(
        title="A base and a value network",
        summary="One model of two (Lu et al., arXiv 2410.21027): z_pair = z_base + alpha d, in the scheme "
        f"*{config.scheme}* with alpha {config.alpha:g}.",
        tags=("kinfolk", "value-network"),
        library="kinfolk",
        limits=("Loading it needs kinfolk; `kinfolk transfer bake` makes a plain model of it.",),
        usage=usage,
    )
    return render(card)


def _starts(record: dict[str, Any]) -> list[dict[str, Any]]:
    value = record.get("value")
    return [*record["bases"], *([value] if isinstance(value, dict) else [])]


def _result(record: dict[str, Any], metric: str, value: float) -> Result:
    name = record["data"]["name"]
    what = metric.replace("_", " ") + (", nats per response token" if metric.endswith("loss") else "")
    return Result(name, f"{name}, held-out demonstrations", metric, what, value)


def _regulariser(record: dict[str, Any]) -> str:
    chosen = record["regulariser"]
    parts = [f"the norm *{chosen['norm']}* with weight {chosen['norm_weight']:g}"] * bool(chosen["norm_weight"])
    parts += [f"entropy with weight {chosen['entropy_weight']:g}"] * bool(chosen["entropy_weight"])
    parts += [f"anchor text with weight {chosen['anchor_weight']:g}"] * bool(chosen["anchor_weight"])
    return f"Regularised by {', '.join(parts)}." if parts else "No regulariser."


def _data(record: dict[str, Any]) -> Part:
    train, held_out, data = record["demonstrations"]["train"], record["demonstrations"]["held_out"], record["data"]
    rows = (
        ("training", f"{train['demonstrations']:,}", f"{train['response_tokens']:,}"),
        ("held out", f"{held_out['demonstrations']:,}", f"{held_out['response_tokens']:,}"),
    )
    return Part(
        f"Demonstrations: {data['name']} (SHA-256 `{data['sha256']}`); chat template: "
        f"{record['chat_template']['source']}.",
        (Table(("", "demonstrations", "response tokens"), rows),),
    )


def _compute(record: dict[str, Any]) -> Part:
    settings, results = record["settings"], record["results"]
    steps = (
        f"{results['steps']:,} steps of {settings['demonstrations_per_step']} demonstrations, peak learning rate "
        f"{settings['learning_rate']:g}; the weights of step {results['best_step']:,} were best on held-out "
        "demonstrations"
    )
    flops = f"{results['flops']['total']:.4g} ({results['flops']['rule']})"
    return Part(tables=(Table(("", ""), (("training", steps), ("FLOPs", flops))),))


def _built(record: dict[str, Any], command: str) -> Part:
    software = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    return Part(f"`kinfolk transfer {command}`, with the settings in `transfer.json`: {software}.")


def _checkpoints(what: str, checkpoints: Sequence[dict[str, Any]]) -> Table:
    return hashes(what, [(each["name"], each["sha256"]) for each in checkpoints])
