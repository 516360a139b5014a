"""What lm-eval found out, as records: one for each figure, with its standard error and a 90 % interval."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

_LEVEL = 0.9
_DEVIATIONS = float(norm.ppf((1 + _LEVEL) / 2))
"""Standard errors to each side of a 90 % interval."""

_UNNAMED = "Yaml"
"""What lm-eval calls the version of a task that states none."""


def figures_of(results: Any, asked: str) -> list[dict[str, Any]]:
    """A record for every metric of the task or group `asked`, and then of its parts, from lm-eval's results."""
    names = sorted(results["results"], key=lambda name: name != asked)
    return [
        {"task": name, "part_of": None if name == asked else asked, **figure}
        for name in names
        for figure in _figures(results, name)
    ]


def right_answers(samples: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """For each metric that is right or wrong, a digit for every question of all tasks: 1 for right, 0 for wrong."""
    found: dict[str, list[Any]] = defaultdict(list)
    for name in samples:
        for key, values in _values(samples[name]).items():
            found[key] += values
    return {key: "".join(str(int(value)) for value in values) for key, values in found.items() if _is_binary(values)}


def interval(value: float, stderr: float | None, values: Sequence[Any] | None, metric: str) -> list[float] | None:
    """A 90 % interval for a figure, or None where there is nothing to tell it from.

    For a share of right answers (`values` 0 or 1) it is Wilson's, which is honest also where all or none are right. A
    perplexity, exp(-mean of `values`), has it on the scale of its logarithm, where errors are nearly normal. Any other
    figure has 1.645 standard errors to each side.
    """
    if values is not None and len(values) and _is_binary(values) and math.isclose(value, float(np.mean(values))):
        share = binomtest(int(sum(values)), len(values)).proportion_ci(_LEVEL, method="wilson")
        return [float(share.low), float(share.high)]
    if metric == "perplexity" and values is not None and len(values) > 1:
        logarithms = np.asarray(values, dtype=np.float64)
        half = _DEVIATIONS * float(logarithms.std(ddof=1)) / math.sqrt(len(logarithms))
        return _finite([math.exp(min(700.0, -float(logarithms.mean()) + side * half)) for side in (-1, 1)])
    if stderr is None:
        return None
    return _finite([value - _DEVIATIONS * stderr, value + _DEVIATIONS * stderr])


def _figures(results: Any, name: str) -> list[dict[str, Any]]:
    found = results["results"][name]
    values = _values(results["samples"].get(name, []))
    version = results["versions"].get(name)
    shots = results["n-shot"].get(name)
    records = []
    for key, value in found.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = _number(found.get(f"{metric}_stderr,{filter_name}"))
        number = _number(value)
        records.append(
            {
                "metric": metric,
                "filter": filter_name,
                "value": number,
                "stderr": stderr,
                "interval": None if number is None else interval(number, stderr, values.get(key), metric),
                "examples": int(found.get("sample_count", {}).get(key, found["sample_len"])),
                "version": None if version in (None, _UNNAMED) else str(version),
                "shots": shots if isinstance(shots, int) else None,
                "higher_is_better": results["higher_is_better"].get(name, {}).get(metric),
            }
        )
    return records


def _values(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What each question gave, by "metric,filter", in the order of the questions."""
    found: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            found[f"{metric},{sample['filter']}"].append(sample[metric])
    return found


def _is_binary(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (bool, int, float, np.number, np.bool_)) and value in (0, 1) for value in values)


def _number(value: Any) -> float | None:
    """A finite number, or None for what JSON cannot hold and for lm-eval's "N/A"."""
    return float(value) if isinstance(value, (int, float, np.number)) and math.isfinite(value) else None


def _finite(limits: list[float]) -> list[float] | None:
    return limits if all(math.isfinite(limit) for limit in limits) else None
