"""What is shown to people of divergence: limits by size, and what its prediction is worth."""

from collections.abc import Sequence
from typing import Any

from kinfolk.cli.numbers import short
from kinfolk.cli.tables import print_table


def print_sweep(document: dict[str, Any]) -> None:
    """The limits at every size, the regression, its scores, and findings."""
    headings = ("size", "runs", "diverged", "stopped after", "largest stable", "smallest diverged", "refused above")
    rows = [
        [
            "unknown" if size["size"] is None else short(size["size"]),
            str(size["stable"] + size["diverged"]),
            str(size["diverged"]),
            "-" if size["stopped"] is None else f"{size['stopped']:.0%}",
            *(_peak(size[name]) for name in ("largest_stable", "smallest_diverged", "cap", "boundary")),
            f"{size['warmup_steps']:,}",
        ]
        for size in document["sizes"]
    ]
    title = f"{document['diverged']} of {document['runs']} runs diverged"
    print_table(title, (*headings, "as likely as not at", "with a warm-up of"), rows)
    regression = document["regression"]
    if regression is None:
        print("no regression: it needs three runs that diverged and three that did not")
    else:
        names = ("ln peak", "ln (1 + warm-up)", "ln steepest rise")
        weights = ", ".join(
            f"{weight / scale:+.3g} {name}"
            for name, weight, scale in zip(names, regression["weights"], regression["scale"], strict=True)
        )
        relative = ", peak and rise over the size's reference rate" if regression["sized"] else ""
        print(f"log odds of divergence: {weights} + constant{relative}")
    print_scores(document["scores"])
    for finding in document["findings"]:
        print(f"note: {finding}")


def print_scores(parts: Sequence[dict[str, Any]]) -> None:
    """Precision, recall and F1 of every predictor, by what was left out."""
    if not parts:
        print("the prediction of divergence could not be tested: too few outcomes are left without one peak or size")
        return
    rows = [
        [
            f"each {part['left_out']} of {part['groups']}",
            score["predictor"],
            str(part["judged"]),
            *(_share(score[name]) for name in ("precision", "recall", "f1")),
            str(score["false_positives"]),
            str(score["false_negatives"]),
        ]
        for part in parts
        for score in part["scores"]
    ]
    headings = ("left out", "predictor", "runs judged", "precision", "recall", "F1", "false alarms", "missed")
    print_table("prediction of divergence on runs left out", headings, rows, left=(0, 1))
    skipped = [f"{part['skipped']} by {part['left_out']}" for part in parts if part["skipped"]]
    if skipped:
        print(f"not judged, as too few of one outcome are left without them: {', '.join(skipped)}")


def _peak(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
