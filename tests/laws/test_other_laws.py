"""Figures of laws.md for the laws of other forms, for switching between configurations, and for using another size."""

import pytest

from kinfolk.errors import KinfolkError
from kinfolk.laws.loss import LossLaw
from kinfolk.laws.other_forms import EXPERTS_64, EXPERTS_DENSE, critical_batch, kaplan_loss, sparse_loss
from kinfolk.laws.switching import Curve, best_switch

CHEAP, GOOD = Curve(2, 0.4, 2.5), Curve(3, 0.2, 2)


@pytest.mark.parametrize(
    ("base", "tokens", "granularity", "loss"),
    [(1e8, 4.37e9, 8, 3.110), (1e9, 28.94e9, 16, 2.471), (7e9, 137.6e9, 32, 2.060)],
)
def test_fine_grained_experts(base: float, tokens: float, granularity: float, loss: float) -> None:
    parameters = base * (1 / 3 + 64 * 2 / 3)
    assert EXPERTS_64.predict(parameters, tokens, granularity) == pytest.approx(loss, abs=6e-4)
    assert EXPERTS_64.predict(parameters, tokens, granularity) < EXPERTS_DENSE.predict(base, tokens)


@pytest.mark.parametrize(("sparsity", "loss"), [(0, 1.9098), (0.5, 1.8372), (0.75, 1.7933)])
def test_sparse_models(sparsity: float, loss: float) -> None:
    assert sparse_loss(1e8, 1e10, sparsity) == pytest.approx(loss, abs=6e-5)


def test_kaplan() -> None:
    """With endless data the law in N alone, with an endless model that in D alone, as the paper has them."""
    assert kaplan_loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert kaplan_loss(1e30, 1e11) == pytest.approx((1.8e13 / 1e11) ** 0.103, rel=1e-3)
    assert critical_batch(2.0) == pytest.approx(2.1e8 / 2 ** (1 / 0.21))


def test_switching_between_two_curves() -> None:
    switch = best_switch(CHEAP, GOOD, 2.55)
    assert switch.loss == pytest.approx(2.625255, abs=6e-7)
    assert switch.first == pytest.approx(1018.80, abs=6e-3)
    assert GOOD.compute_at(switch.loss) == pytest.approx(2542.85, abs=6e-3)
    assert switch.cost == pytest.approx(3304.23, abs=6e-3)
    assert GOOD.compute_at(2.55) == pytest.approx(4828.28, abs=6e-3)
    assert switch.saving == pytest.approx(0.3157, abs=6e-5)
    assert best_switch(CHEAP, GOOD, 2.4).saving == pytest.approx(0.0642, abs=6e-5)


def test_no_other_switch_is_cheaper() -> None:
    best = best_switch(CHEAP, GOOD, 2.55).cost
    for loss in (2.56, 2.6, 2.62, 2.63, 2.7, 3.0, 4.0):
        assert CHEAP.compute_at(loss) + GOOD.compute_at(2.55) - GOOD.compute_at(loss) >= best


def test_what_cannot_be_switched_is_refused() -> None:
    with pytest.raises(KinfolkError, match="not above"):
        best_switch(CHEAP, GOOD, 2.0)
    with pytest.raises(KinfolkError, match="exchange"):
        best_switch(GOOD, Curve(0.1, 0.5, 1.0), 2.2)


@pytest.mark.parametrize(("share", "overhead"), [(0.75, 0.028), (0.5, 0.208), (0.3, 1.056)])
def test_overhead_of_a_smaller_model(share: float, overhead: float) -> None:
    """k_N k_D - 1 of arXiv 2401.00448, as the constants of laws.md, section 7, have it."""
    law = LossLaw(
        name="hoffmann",
        E=1.62,
        A=406.4,
        B=410.7,
        alpha=0.336,
        beta=0.283,
        counting="total",
        standing="published",
        source="",
    )
    best = law.optimum(1e22)
    size = share * best.parameters
    tokens = law.tokens_for(best.loss, size)
    assert 6 * size * tokens / 1e22 - 1 == pytest.approx(overhead, abs=6e-4)
    assert law.effective_compute(size, tokens) == pytest.approx(1 / (1 + overhead), abs=6e-4)
