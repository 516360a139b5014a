"""Numbers for people: a short text, and beside it the exact value for whoever wants it."""

import math
from dataclasses import dataclass

SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Number:
    """A value as the page shows it (`text`) and as it was recorded (`exact`)."""

    text: str
    exact: str

    def __str__(self) -> str:
        return self.text


def exact(value: float) -> str:
    """The value with nothing rounded away; whole numbers without a decimal point.

    >>> exact(12.0), exact(0.1)
    ('12', '0.1')
    """
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 2**63 else repr(value)


def count(value: float, unit: str = "") -> Number:
    """Parameters, tokens, bytes: in thousands, millions, billions, trillions.

    >>> count(1_234_567).text.replace(SPACE, " "), count(999).text
    ('1.23 M', '999')
    """
    return Number(_scaled(value, ("", "k", "M", "B", "T"), unit), exact(value))


def flops(value: float) -> Number:
    """Operations, with the prefixes of the SI.

    >>> flops(3.4e15).text.replace(SPACE, " ")
    '3.4 PFLOP'
    """
    return Number(_scaled(value, ("", "k", "M", "G", "T", "P", "E", "Z", "Y"), "FLOP"), exact(value))


def seconds(value: float) -> Number:
    """A duration in its two largest units.

    >>> [seconds(value).text.replace(SPACE, " ") for value in (2.345, 200, 18720, 180000)]
    ['2.35 s', '3 min 20 s', '5 h 12 min', '2 d 2 h']
    """
    if not math.isfinite(value) or value < 59.95:
        return Number(f"{_digits(value)}{SPACE}s", exact(value))
    units = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
    large, size, lesser, part = next(unit for unit in units if round(value) >= unit[1])
    whole, rest = divmod(round(value / part), size // part)
    return Number(f"{whole}{SPACE}{large}" + (f"{SPACE}{rest}{SPACE}{lesser}" if rest else ""), exact(value))


def percent(share: float) -> Number:
    """A share of one as a percentage.

    >>> percent(0.3314).text.replace(SPACE, " ")
    '33.1 %'
    """
    text = f"{100 * share:.1f}" if math.isfinite(share) else str(share)
    return Number(f"{'0.0' if text == '-0.0' else text.replace('-', MINUS)}{SPACE}%", exact(share))


def fixed(value: float, places: int = 3) -> Number:
    """A loss, or anything else of the order of one."""
    return Number(f"{value:.{places}f}".replace("-", MINUS), exact(value))


def signed(value: float, places: int = 3) -> Number:
    """A difference, with its sign."""
    text = f"{value:+.{places}f}".replace("-", MINUS)
    return Number(text, exact(value))


def small(value: float) -> Number:
    """What may be many orders of magnitude below one: a rounding error, a divergence, a rate.

    >>> small(1.25e-15).text.replace(SPACE, " ").replace(TIMES, "x"), small(0.003).text, small(0.0).text
    ('1.25 x 10⁻¹⁵', '0.003', '0')
    """
    if value == 0 or not math.isfinite(value) or 1e-4 < abs(value) < 1e5:
        return Number(f"{value:.3g}".replace("-", MINUS), exact(value))
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", MINUS)
    return Number(f"{mantissa}{SPACE}{TIMES}{SPACE}10{str(int(exponent)).translate(SUPERSCRIPTS)}", exact(value))


def _scaled(value: float, prefixes: tuple[str, ...], unit: str) -> str:
    if not math.isfinite(value):
        return f"{value}{SPACE}{unit}" if unit else str(value)
    power = 0
    # What rounds to 1000 belongs to the next prefix.
    while abs(float(f"{value:.3g}")) >= 1000 and power + 1 < len(prefixes):
        value /= 1000
        power += 1
    suffix = f"{prefixes[power]}{unit}"
    return f"{_digits(value)}{SPACE}{suffix}" if suffix else _digits(value)


def _digits(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    if not math.isfinite(value):
        return str(value)
    text = f"{float(f'{value:.3g}'):.12f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", MINUS) if text else "0"
