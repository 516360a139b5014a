"""What members wrote after the same prompts."""

from collections.abc import Sequence

from kinfolk.report.run import Run

Prompt = tuple[str, dict[str, list[tuple[str, list[str]]]]]
"""A prompt with what every member that was given it wrote, by run."""


def prompts_of(runs: Sequence[Run]) -> list[Prompt]:
    """Every prompt of the runs, in the order in which it was first given."""
    found: dict[str, dict[str, list[tuple[str, list[str]]]]] = {}
    for run in runs:
        for member in run.members:
            for prompt in dict.fromkeys(sample.prompt for sample in member.samples):
                texts = [sample.continuation for sample in member.samples if sample.prompt == prompt]
                found.setdefault(prompt, {}).setdefault(run.name, []).append((member.member, texts))
    return list(found.items())
