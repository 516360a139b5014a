"""Rules for rate and batch, and sizes for serving, against published figures."""

import numpy as np
import pytest
from public_data import column, rows

from kinfolk.errors import KinfolkError
from kinfolk.laws.published import published_law
from kinfolk.laws.rates import deepseek, olmo_ladder, rate_rules, spread, step_law
from kinfolk.laws.serving import cheapest_to_serve


def test_step_law() -> None:
    rule = step_law(1.0737e9, 5.69e10)
    assert rule.peak == pytest.approx(1.3051e-3, rel=4e-5)
    assert rule.tokens_per_step == pytest.approx(802_781, rel=1e-6)


def test_step_law_is_the_mean_of_its_bootstrap() -> None:
    table = rows("steplaw/1004_fitted_lr_bs_scaling_model_parameters.csv")
    assert np.exp(column(table, "lr_intercept").mean()) == pytest.approx(1.797, rel=0.05)
    assert column(table, "lr_coefN").mean() == pytest.approx(-0.713, abs=6e-4)
    assert column(table, "lr_coefD").mean() == pytest.approx(0.307, abs=6e-4)
    assert column(table, "bs_coefD").mean() == pytest.approx(0.571, abs=6e-4)


def test_deepseek() -> None:
    rule = deepseek(1e9, 1e21 / 6e9)
    assert rule.peak == pytest.approx(7.394e-4, rel=1e-4)
    assert rule.tokens_per_step == pytest.approx(2.160e6, rel=3e-4)


def test_olmo_ladder_at_its_anchor() -> None:
    rule = olmo_ladder(108e6, 2e9)
    assert (rule.peak, rule.tokens_per_step) == pytest.approx((0.0047, 327_680))


@pytest.mark.parametrize(("rule", "mean", "worst"), [(step_law, 0.096, 0.31), (deepseek, 0.76, None)])
def test_rules_on_the_public_grid(rule: object, mean: float, worst: float | None) -> None:
    cells: dict[tuple[float, float], list[tuple[float, float, float]]] = {}
    for row in rows("steplaw/dense_lr_bs_loss.csv"):
        point = float(row["lr"]), float(row["bs"]) * 2048, float(row["smooth loss"])
        cells.setdefault((float(row["N"]), float(row["D"])), []).append(point)
    assert len(cells) == 17
    above = []
    for (size, tokens), points in cells.items():
        said = rule(size, tokens)  # type: ignore[operator]
        wanted = np.log([said.peak, said.tokens_per_step])
        nearest = min(points, key=lambda point, wanted=wanted: float(np.linalg.norm(np.log(point[:2]) - wanted)))
        above.append(100 * (nearest[2] / min(point[2] for point in points) - 1))
    assert np.mean(above) == pytest.approx(mean, abs=0.006)
    if worst:
        assert max(above) == pytest.approx(worst, abs=0.006)


def test_rules_are_far_apart() -> None:
    rates, batches = spread(rate_rules(1e9, 2e10))
    assert rates > 1.5 and batches > 1.2


@pytest.mark.parametrize(
    ("name", "parameters", "saving"),
    [("chinchilla-tex", 7.12e9, 0.163), ("besiroglu-printed", 6.10e9, 0.290), ("chinchilla-rounded", 8.02e9, 0.101)],
)
def test_serving_a_13b_two_trillion_tokens(name: str, parameters: float, saving: float) -> None:
    law = published_law(name)
    compute = 6 * 13e9**2  # refined below: the compute at which 13B is optimal
    for _ in range(60):
        compute *= (13e9 / law.optimum(compute).parameters) ** 1.5
    found = cheapest_to_serve(law, law.optimum(compute).loss, 2e12)
    assert found.parameters == pytest.approx(parameters, rel=2e-3)
    assert found.saving == pytest.approx(saving, abs=6e-4)
    if name == "chinchilla-tex":
        assert found.tokens == pytest.approx(1.295e12, rel=2e-3)


def test_serving_a_loss_below_the_floor_is_refused() -> None:
    with pytest.raises(KinfolkError):
        cheapest_to_serve(published_law("besiroglu"), 1.5, 1e12)
