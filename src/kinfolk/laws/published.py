"""Published fits of the loss law, each with its citation and the parameters that it counts.

They hold for their own data and tokenizer. Rounded exponents shift predictions by a thousandth of a nat and the optimum
by more than half, so each source's digits are kept; the rounded variants are there to be compared with.
"""

import math

from kinfolk.errors import KinfolkError
from kinfolk.laws.loss import Calibration, FittedRange, LossLaw, Standing

_HOFFMANN = "Hoffmann et al., arXiv 2203.15556"
_BESIROGLU = "Besiroglu et al., arXiv 2404.10102"
_FIGURE = "240 points that arXiv 2404.10102 read off figure 4 of arXiv 2203.15556"
_FIGURE_RUNS = FittedRange(
    runs=240,
    parameters=(5.733e7, 1.6183e10),
    tokens=(8.187e8, 3.1775e11),
    compute=(1.397e18, 1.2956e22),
    ratio=(0.456, 341.1),
)
_FIGURE_CALIBRATION = Calibration(
    half_width=0.01786, reach=3.514, hidden_runs=648, basis="rolling hold-out", coverage=0.90, coverage_runs=190
)
"""By `kinfolk laws backtest` on those points; it holds for their data and tokenizer alone."""


def _law(
    name: str,
    constants: tuple[float, float, float, float, float],
    source: str,
    *,
    standing: Standing = "published",
    fitted: FittedRange | None = None,
    calibration: Calibration | None = None,
) -> LossLaw:
    constant, size, data, alpha, beta = constants
    return LossLaw(
        name=name,
        E=constant,
        A=size,
        B=data,
        alpha=alpha,
        beta=beta,
        counting="total",
        standing=standing,
        source=source,
        fitted=fitted,
        calibration=calibration,
    )


LAWS: dict[str, LossLaw] = {
    law.name: law
    for law in (
        _law("chinchilla-rounded", (1.69, 406.4, 410.7, 0.34, 0.28), f"{_HOFFMANN}, body text"),
        _law(
            "chinchilla-tex",
            (1.69337368, 406.401018, 410.722827, 0.33917084, 0.2849083),
            f"{_HOFFMANN}, the digits of its TeX source",
        ),
        _law(
            "besiroglu",
            (math.exp(0.59711196), math.exp(6.17795598), math.exp(7.64273236), 0.34781303, 0.36585412),
            f"{_BESIROGLU}, its notebook; the optimum of the absolute error, not of Huber's loss",
            fitted=_FIGURE_RUNS,
            calibration=_FIGURE_CALIBRATION,
        ),
        _law(
            "besiroglu-printed",
            (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
            f"{_BESIROGLU}, as printed (E from memory); it mixes two fits",
        ),
        _law(
            "epoch-huber",
            (1.817218, 477.83, 2143.4, 0.347310, 0.367172),
            f"our fit (Huber 1e-3 of ln loss) to the {_FIGURE}",
            standing="recomputed",
            fitted=_FIGURE_RUNS,
            calibration=_FIGURE_CALIBRATION,
        ),
        _law(
            "kyo-lower",
            (1.7002408, 184.6915, 1633.4787, 0.2890076, 0.3557941),
            "github.com/kyo-takano/chinchilla, its example; the lower envelope of the points, not their middle",
        ),
        _law(
            "muennighoff",
            (math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596),
            "Muennighoff et al., arXiv 2305.16264, README of github.com/huggingface/datablations",
        ),
    )
}


def published_law(name: str) -> LossLaw:
    """The published fit called `name`; KinfolkError that lists them if there is none."""
    if name not in LAWS:
        raise KinfolkError(f"no published law is called {name!r}", fix=f"choose one of {', '.join(LAWS)}")
    return LAWS[name]
