"""What a sweep of runs says of divergence, as JSON: limits at every size, the regression, and what both are worth."""

from typing import Any

import numpy as np

from kinfolk.schedule.divergence import reference_rate
from kinfolk.schedule.divergence_scores import left_out_scores, scores_document
from kinfolk.schedule.runs import Runs
from kinfolk.schedule.shapes import warmup_of
from kinfolk.schedule.stability import stability


def sweep_document(runs: Runs) -> dict[str, Any]:
    """Limits and likeliest boundary by size, the regression, its scores on peaks and sizes left out, and findings.

    The boundary is the peak at which divergence is as likely as not, at the median warm-up of the size's runs.
    """
    seen = stability(runs.runs)
    sizes = []
    for limits in seen.sizes:
        warmups = [warmup_of(run.schedule) for run in runs.runs if limits.size in (run.size, None) or run.size is None]
        warmup = int(np.median(warmups))
        boundary = seen.regression.boundary(warmup, limits.size) if seen.regression else None
        sizes.append(
            {
                **limits.model_dump(mode="json"),
                "cap": limits.cap,
                "reference_rate": None if limits.size is None else reference_rate(limits.size),
                "warmup_steps": warmup,
                "boundary": boundary,
            }
        )
    return {
        "source": runs.source,
        "runs": len(runs.runs),
        "diverged": seen.diverged,
        "sizes": sizes,
        "regression": seen.regression.model_dump(mode="json") if seen.regression else None,
        "scores": scores_document(left_out_scores(runs.runs)),
        "findings": list(runs.findings),
    }
