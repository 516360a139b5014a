"""One forecast with all that belongs to it: interval, range, the price of its split, and the compute-only view."""

from dataclasses import asdict
from typing import Any

from kinfolk.errors import KinfolkError
from kinfolk.laws.compute import UNIFIED
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.repeated import effective_tokens, predict_repeated

TUNING_LIMIT = 2000.0
"""Tokens per parameter above which fine-tuning has been seen to suffer: OLMo-1B at 3T tokens (2,540) is more than 2 %
worse after instruction tuning than at 2.3T (1,950); arXiv 2503.19206."""

COMPUTE_LAW_RATIOS = (10.0, 60.0)
SMALLEST_UNIFIED = 6e9
"""Parameters of the smallest model in the unified law's fit."""


def predict_document(
    law: LossLaw,
    parameters: float | None,
    tokens: float | None,
    compute: float | None = None,
    unique: float | None = None,
    reach: float | None = None,
) -> dict[str, Any]:
    """A law's forecast at N `parameters` and D `tokens`, or at the optimal split of `compute`, as JSON.

    `reach` is a loss to be reached instead: by `parameters` on the tokens that takes, or by the least compute. With
    `unique` tokens fewer than `tokens`, repetitions count for less. KinfolkError for values that are not positive or do
    not go together.
    """
    for name, value in (
        ("parameters", parameters),
        ("tokens", tokens),
        ("compute", compute),
        ("unique", unique),
        ("loss", reach),
    ):
        if value is not None and not 0 < value < 1e40:
            raise KinfolkError(f"{value:g} is not a positive number", where=f"--{name}", fix="give a plain count")
    if reach is not None and (tokens is not None or compute is not None or unique is not None):
        raise KinfolkError(
            "a loss to be reached says what the tokens and the compute are",
            where="--loss",
            fix="give it alone, or with --parameters",
        )
    if reach is not None and parameters is not None:
        tokens = law.tokens_for(reach, parameters)
    elif reach is not None:
        compute = law.compute_for(reach)
    if compute is not None and parameters is None and tokens is None:
        best = law.optimum(compute)
        parameters, tokens = best.parameters, best.tokens
    if parameters is None or tokens is None or (compute is not None and unique is not None):
        raise KinfolkError(
            "it is not clear what to forecast",
            fix="give --parameters and --tokens (and --unique if some repeat), or --compute or --loss alone",
        )
    worth = tokens if unique is None else effective_tokens(tokens, unique)
    if law.calibration is not None and law.fitted is not None:
        # A forecast reaches as far as the tokens that are worth something.
        forecast = law.forecast(parameters, worth)
    else:
        forecast = law.forecast(parameters, tokens)
    loss = forecast.loss if unique is None else predict_repeated(law, parameters, tokens, unique)
    shift = loss / forecast.loss
    has_optimum = min(law.A, law.B, law.alpha, law.beta) > 0
    flops = 6.0 * parameters * tokens
    calibration = law.calibration
    return {
        "law": law.name,
        "standing": law.standing,
        "source": law.source,
        "counting": law.counting,
        "unit": law.unit,
        "parameters": parameters,
        "tokens": tokens,
        "tokens_worth": worth,
        "compute": flops,
        "ratio": tokens / parameters,
        "loss": loss,
        "low": None if forecast.low is None else forecast.low * shift,
        "high": None if forecast.high is None else forecast.high * shift,
        "level": forecast.level,
        "interval_basis": calibration.basis if calibration else None,
        "coverage": calibration.coverage if calibration else None,
        "coverage_runs": calibration.coverage_runs if calibration else 0,
        "within_fitted_range": forecast.within_fitted_range,
        "optimum": {**asdict(best), "ratio": best.ratio} if has_optimum and (best := law.optimum(flops)) else None,
        "effective_compute": law.effective_compute(parameters, tokens) if has_optimum else None,
        "compute_law": {
            "bits_per_character": float(UNIFIED.predict(parameters, tokens)),
            "effective_compute": 1.0,
            "source": UNIFIED.source,
        },
        "cautions": _cautions(law, parameters, tokens, forecast.within_fitted_range),
    }


def _cautions(law: LossLaw, parameters: float, tokens: float, within: bool | None) -> list[str]:
    ratio = tokens / parameters
    found = []
    if within is False:
        found.append("the point is outside the range of the fitted runs")
    if law.calibration is None:
        found.append("no interval: nothing is known of how well this law forecasts")
    elif law.calibration.basis == "assumed":
        found.append("the interval's width is an assumption: there were too few runs to hide some")
    if law.standing in ("published", "recomputed"):
        found.append("a published law holds for its own data and tokenizer; for yours its loss is a rough guess")
    low, high = COMPUTE_LAW_RATIOS
    if not low <= ratio <= high:
        found.append(
            f"{ratio:.3g} tokens per parameter is outside {low:g} to {high:g}, where the compute-only law holds"
        )
    if parameters < SMALLEST_UNIFIED:
        found.append("the compute-only law has seen no model as small as this")
    if ratio > TUNING_LIMIT:
        found.append(
            f"above {TUNING_LIMIT:,.0f} tokens per parameter fine-tuning has been seen to suffer (arXiv 2503.19206)"
        )
    return found
