"""Numbers for people, in the tables of the command line."""


def short(value: float) -> str:
    """A number with three digits and a unit: 950, 12.3 k, 1.2 M, 20 B, 6.4 T, 1.5e+19.

    >>> [short(v) for v in (950, 12_345, 1.2e6, 2e10, 6.4e12, 1.5e19)]
    ['950', '12.3 k', '1.2 M', '20 B', '6.4 T', '1.5e+19']
    """
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if size <= value < 1e15:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
