"""The comparison as a page, and as plain data for machines."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinfolk.report import embed
from kinfolk.report.compare.comparison import Comparison
from kinfolk.report.compare.curve_figure import curves_plot
from kinfolk.report.compare.member_figures import colour, differences_plot, members_plot
from kinfolk.report.compare.verdict import against_reference, comparable, headline


def write_comparison(comparison: Comparison, target: Path) -> Path:
    """Write one self-contained page to `target`, and return `target`; KinfolkError where that is not possible."""
    embed.refuse_folder(target, "compare.html")
    return embed.write_page(
        embed.environment(),
        "compare.html.jinja",
        target,
        [differences_plot(comparison), curves_plot(comparison), members_plot(comparison)],
        it=comparison,
        sides=list(zip(comparison.sides, map(colour, range(len(comparison.sides))), strict=True)),
        headline=headline(comparison),
        held=against_reference(comparison),
        comparable=comparable(comparison),
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page says, as plain data."""
    level, verdict, consequence = comparable(comparison)
    return {
        "answer": headline(comparison),
        "against_first": [each.sentence for each in against_reference(comparison)],
        "comparable": {
            "level": level,
            "verdict": f"{verdict} {consequence}",
            "held_out_text": comparison.agreement.text,
            "same_tokenizer": comparison.agreement.tokenizer,
            "common_documents": comparison.agreement.documents,
            "not_paired": comparison.not_paired or None,
            "members_not_paired": [asdict(each) for each in comparison.unpaired],
        },
        "families": [
            {
                "name": side.name,
                "strategy": side.strategy,
                "runs": [str(build.folder) for build in side.builds],
                "seeds": list(side.seeds),
                "complete": side.complete,
                "flops": side.cost.model_dump(),
                "planned": not side.trained,
                "tokens": side.tokens,
                "seconds": side.seconds,
                "machines": side.machines,
            }
            for side in comparison.sides
        ],
        "members": [
            {
                "member": row.name,
                "families": {
                    side.name: {
                        "loss": entry.loss,
                        "bits_per_byte": entry.bits_per_byte,
                        "bits_per_byte_interval": entry.interval,
                        "bits_per_byte_by_seed": [score.bits_per_byte for score in entry.scores],
                        "parameters": entry.parameters,
                        "flops": entry.flops.model_dump(),
                        "tokens": entry.tokens,
                        "seconds": entry.seconds,
                        "difference": asdict(difference) if difference else None,
                    }
                    for side, entry, difference in zip(comparison.sides, row.entries, differences, strict=True)
                    if entry
                },
            }
            for row, differences in zip(comparison.rows, comparison.differences, strict=True)
        ],
        "spec_differences": {difference.field: list(difference.values) for difference in comparison.specs},
        "cautions": [asdict(caution) for caution in comparison.cautions],
    }
