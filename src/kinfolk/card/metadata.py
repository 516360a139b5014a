"""The YAML block of a card, by huggingface_hub's own classes, and what can be read back from one."""

from pathlib import Path
from typing import Any

from kinfolk.card.card import Card, Facts
from kinfolk.card.licenses import LANGUAGE, LICENSES

TASK = "text-generation"


def metadata(card: Card) -> str:
    """The YAML between the two lines of dashes."""
    from huggingface_hub import EvalResult, ModelCardData

    measured = [
        EvalResult(
            task_type=TASK,
            task_name="Text generation",
            dataset_type=each.dataset,
            dataset_name=each.dataset_name,
            metric_type=each.metric,
            metric_name=each.metric_name,
            metric_value=each.value,
            metric_args=each.settings or None,
        )
        for each in card.measured
    ]
    facts = card.facts
    relation: dict[str, Any] = {"base_model_relation": card.relation} if card.bases and card.relation else {}
    data = ModelCardData(
        library_name=card.library,
        pipeline_tag=TASK if card.is_language_model else None,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        language=list(facts.languages) or None,
        tags=list(card.tags),
        datasets=list(card.datasets) or None,
        base_model=list(card.bases) or None,
        model_name=card.title if measured else None,
        eval_results=measured or None,
        **relation,
    )
    order = ["library_name", "pipeline_tag", "license", "license_name", "license_link", "language", "tags", "datasets"]
    return data.to_yaml(original_order=[*order, "base_model", "base_model_relation"])


def facts_of(folder: Path) -> Facts:
    """Licence and languages that a checkpoint's card states; none where it has no card, or one that cannot be read.

    Only what the hub knows is taken over: cards of others may hold anything.
    """
    import yaml
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard((folder / "README.md").read_text("utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return Facts()
    languages = data.language if isinstance(data.language, list) else [data.language]
    known = tuple(each for each in languages if isinstance(each, str) and LANGUAGE.fullmatch(each))
    license = data.license if isinstance(data.license, str) and data.license in LICENSES else None
    named = license == "other"
    return Facts(
        license=license,
        license_name=_text(data.license_name) if named else None,
        license_link=_text(data.license_link) if named else None,
        languages=known,
    )


def common_facts(folders: list[Path]) -> Facts:
    """What the cards of all these checkpoints agree on."""
    found = [facts_of(folder) for folder in folders]
    if not found:
        return Facts()
    first = found[0]
    same_license = all(
        (each.license, each.license_name, each.license_link) == (first.license, first.license_name, first.license_link)
        for each in found
    )
    languages = first.languages if all(each.languages == first.languages for each in found) else ()
    if not same_license:
        return Facts(languages=languages)
    return Facts(first.license, first.license_name, first.license_link, languages)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
