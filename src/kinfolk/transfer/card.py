"""Model cards of what post-training makes: README.md beside the weights."""

from typing import Any

import kinfolk


def value_card(record: dict[str, Any]) -> str:
    """Of a value network."""
    names = ", ".join(base["name"] for base in record["bases"])
    rows = "\n".join(
        f"| {each['base']} | {'yes' if each['trained_on'] else 'no'} | {each['base_loss']:.4f} "
        f"| {each['pair_loss']:.4f} |"
        for each in record["results"]["held_out"]
    )
    zeroed = ", its head zeroed" if record["zero_head"] else ""
    return f"""{_head("value-network")}# A value network for {names}

**Not a language model.** Trained with [kinfolk](https://pypi.org/project/kinfolk/) {kinfolk.__version__} by inverse
value learning (Lu et al., arXiv 2410.21027): its logits d are added to those of a base, z = z_base + alpha d, which
is then a post-trained model. It can be added to any base with the same tokenizer (SHA-256 of its entries
`{record["tokenizer"]["sha256"]}`), in the scheme *{record["scheme"]}* with alpha {record["alpha"]:g}.

## Results
Loss in nats per response token on held-out demonstrations:

| base | trained on it | base alone | base with this |
|---|---|---|---|
{rows}

## Lineage
Started from {record["value"]}{zeroed}. {_regulariser(record)}
{_training(record)}{_hashes("base", record["bases"])}"""


def model_card(record: dict[str, Any], title: str, lineage: str, table: str) -> str:
    """Of a plain model that was tuned or baked; `lineage` says from what, `table` what came of it."""
    return f"""{_head("text-generation")}# {title}

Post-trained with [kinfolk](https://pypi.org/project/kinfolk/) {kinfolk.__version__}: a stock checkpoint with a chat
template. {lineage}

## Results
{table}

## Lineage
{_training(record)}{_hashes("starting point", record["bases"])}"""


def _head(tag: str) -> str:
    pipeline = "pipeline_tag: text-generation\n" if tag == "text-generation" else ""
    return f"""---
library_name: transformers
{pipeline}tags:
- kinfolk
- {tag}
---
"""


def _regulariser(record: dict[str, Any]) -> str:
    chosen = record["regulariser"]
    parts = [f"the norm *{chosen['norm']}* with weight {chosen['norm_weight']:g}"] * bool(chosen["norm_weight"])
    parts += [f"entropy with weight {chosen['entropy_weight']:g}"] * bool(chosen["entropy_weight"])
    parts += [f"anchor text with weight {chosen['anchor_weight']:g}"] * bool(chosen["anchor_weight"])
    return f"Regularised by {', '.join(parts)}." if parts else "No regulariser."


def _training(record: dict[str, Any]) -> str:
    settings, results, train = record["settings"], record["results"], record["demonstrations"]["train"]
    return f"""
| | |
|---|---|
| demonstrations | {record["data"]["name"]}: {train["demonstrations"]:,}, of {train["response_tokens"]:,} response \
tokens |
| training | {results["steps"]:,} steps of {settings["demonstrations_per_step"]} demonstrations, peak learning rate \
{settings["learning_rate"]:g}; the weights of step {results["best_step"]:,} were best on held-out demonstrations |
| FLOPs | {results["flops"]["total"]:.4g} ({results["flops"]["rule"]}) |
| chat template | {record["chat_template"]["source"]} |
"""


def _hashes(what: str, checkpoints: list[dict[str, Any]]) -> str:
    rows = "\n".join(
        f"| {each['name']} | {name} | `{digest}` |" for each in checkpoints for name, digest in each["sha256"].items()
    )
    return f"""
| {what} | file | SHA-256 |
|---|---|---|
{rows}
"""
