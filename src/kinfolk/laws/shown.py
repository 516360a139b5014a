"""The numbers of a fitted law as people may see them: no digits that the runs do not hold."""

import math

from kinfolk.laws.fitted import LawFit


def rounded(value: float, digits: int = 3) -> str:
    """A number rounded to so many digits, without an exponent where it is of a size that people read.

    >>> [rounded(v) for v in (2218.3, 207669.1, 0.3202, 1.956, 12, 3.1e9)]
    ['2,220', '208,000', '0.32', '1.96', '12', '3.1e+09']
    """
    if value == 0 or not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def with_error(value: float, error: float | None) -> str:
    """A value with as many digits as its standard error lets it have: two of the error's.

    >>> with_error(477.83, 117.0), with_error(0.34731, 0.0146), with_error(1.8, None)
    ('480 ± 120', '0.347 ± 0.015', '1.8')
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return rounded(value, 2)
    digits = 1 - math.floor(math.log10(error))
    places = max(digits, 0)
    return f"{round(value, digits):,.{places}f} ± {round(error, digits):,.{places}f}"


def shown_parameter(fitted: LawFit, name: str) -> tuple[str, str]:
    """A parameter's value, and its 90 % interval or why there is none."""
    value = getattr(fitted.law, name)
    if fitted.borrowed_from and name in ("alpha", "beta"):
        return rounded(value), f"borrowed from {fitted.borrowed_from}"
    shown = rounded(value, 2) if value > 1e-6 else "0"
    if not fitted.identification.identified:
        return shown, "not known"
    if fitted.resampled is None:
        return shown, "not resampled"
    low, high = fitted.resampled.interval(name)
    return with_error(value, fitted.resampled.standard_error(name)), f"{rounded(low)} to {rounded(high)}"
