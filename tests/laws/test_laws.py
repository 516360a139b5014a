"""The laws themselves: published checks to the digits that their sources show, and identities."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_data import chinchilla_240, column, gadre, gadre_runs, rows
from scipy.optimize import minimize_scalar

from kinfolk.errors import KinfolkError
from kinfolk.laws.borrowed import borrow
from kinfolk.laws.compute import UNIFIED, fit_compute_law, fit_saturating
from kinfolk.laws.fitting import fit
from kinfolk.laws.loss import LossLaw, load_law, save_law
from kinfolk.laws.overtraining import fit_error, fit_over_training
from kinfolk.laws.published import LAWS, published_law
from kinfolk.laws.repeated import effective_tokens, predict_repeated, worth_of_repetitions

PRINTED = published_law("besiroglu-printed")


@pytest.mark.parametrize(
    ("name", "compute", "parameters", "tokens", "ratio", "loss"),
    [
        ("besiroglu-printed", 1e22, 9.0452e9, 1.8426e11, 20.37, 2.14111),
        ("besiroglu", 1e22, 9.0576e9, 1.8401e11, 20.32, 2.14050),
        ("besiroglu-printed", 1e24, 9.586e10, 1.739e12, 18.1, 1.95971),
        ("chinchilla-tex", 1e24, 5.192e10, 3.210e12, 61.8, 1.89999),
    ],
)
def test_published_optima(
    name: str, compute: float, parameters: float, tokens: float, ratio: float, loss: float
) -> None:
    best = published_law(name).optimum(compute)
    assert best.parameters == pytest.approx(parameters, rel=6e-5 if compute == 1e22 else 4e-4)
    assert best.tokens == pytest.approx(tokens, rel=6e-5 if compute == 1e22 else 4e-4)
    assert best.ratio == pytest.approx(ratio, abs=0.06)
    assert best.loss == pytest.approx(loss, abs=6e-6)


def test_rounded_exponents_move_the_optimum_by_half() -> None:
    ratios = {name: published_law(name).optimum(5.76e23).ratio for name in LAWS}
    assert ratios["chinchilla-rounded"] == pytest.approx(92.7, abs=0.06)
    assert ratios["chinchilla-tex"] == pytest.approx(58.9, abs=0.06)
    assert ratios["besiroglu"] == pytest.approx(18.3, abs=0.06)


@pytest.mark.parametrize("name", list(LAWS))
def test_optimum_is_the_least_loss_at_its_compute(name: str) -> None:
    law = published_law(name)
    best = law.optimum(1e21)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e21)
    found = minimize_scalar(lambda log_n: law.predict(math.exp(log_n), 1e21 / 6 / math.exp(log_n)), bounds=(15, 27))
    assert best.loss <= found.fun + 1e-12
    assert best.parameters == pytest.approx(math.exp(found.x), rel=1e-3)


@given(
    name=st.sampled_from(list(LAWS)),
    parameters=st.floats(1e6, 1e12),
    ratio=st.floats(0.5, 3000),
)
def test_inverses_and_prices(name: str, parameters: float, ratio: float) -> None:
    law, tokens = published_law(name), parameters * ratio
    loss = law.predict(parameters, tokens)
    assert law.tokens_for(loss, parameters) == pytest.approx(tokens, rel=1e-6)
    worth = law.effective_compute(parameters, tokens)
    assert 0 < worth <= 1 + 1e-9
    assert law.optimum(worth * 6 * parameters * tokens).loss == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(
    ("ratio", "worth"), [(40, 0.96), (80, 0.85), (160, 0.69), (320, 0.52), (640, 0.37), (2000, 0.19)]
)
def test_price_of_over_training(ratio: float, worth: float) -> None:
    size = math.sqrt(1e22 / 6 / ratio)
    assert PRINTED.effective_compute(size, size * ratio) == pytest.approx(worth, abs=0.006)
    if ratio == 640:
        assert PRINTED.predict(size, size * ratio) == pytest.approx(2.203629, abs=6e-7)


@pytest.mark.parametrize(
    ("parameters", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)]
)
def test_repeated_data(parameters: float, tokens: float, loss: float) -> None:
    law = published_law("muennighoff")
    assert predict_repeated(law, parameters, tokens, 25e9) == pytest.approx(loss, abs=1e-12)


def test_worth_of_epochs() -> None:
    worth = [worth_of_repetitions(epochs - 1) for epochs in (2, 4, 8, 16, math.inf)]
    assert worth == pytest.approx([1.968, 3.726, 6.624, 10.58, 16.39], abs=6e-3)
    assert worth[:3] == pytest.approx([1.968, 3.726, 6.624], abs=6e-4)


@given(parameters=st.floats(1e7, 1e9), tokens=st.floats(1e9, 1e13), more=st.floats(1.01, 10))
def test_more_unique_data_never_hurts(parameters: float, tokens: float, more: float) -> None:
    law = published_law("muennighoff")
    scarce, ample = (predict_repeated(law, parameters, tokens, unique) for unique in (tokens / 20, tokens / 20 * more))
    assert ample <= scarce + 1e-12
    assert effective_tokens(tokens, tokens * more) == tokens
    if parameters < law.optimum_parameters_for(tokens):
        assert predict_repeated(law, parameters, tokens, tokens) == pytest.approx(law.predict(parameters, tokens))


@pytest.mark.parametrize(
    ("dataset", "constants", "error_constants"),
    [
        ("c4_original", (1.508, 141, 190, 0.1212), (0.850, 2.08, 0.756)),
        ("rpj", (1.837, 212, 367, 0.1364), (0.857, 2.21, 0.715)),
        ("rw_original", (1.734, 157, 246, 0.1272), (0.865, 2.21, 0.707)),
    ],
)
def test_over_training_law_of_gadre(
    dataset: str, constants: tuple[float, ...], error_constants: tuple[float, ...]
) -> None:
    table = gadre(dataset)

    def at(row: dict[str, str], ratio: float) -> bool:
        return abs(float(row["tok_mult"]) - ratio) < 1

    few = [row for row in table if row["model"].startswith("d=") and at(row, 20)]
    few += [row for row in table if row["model"] == "d=96_l=8_h=4" and at(row, 320)]
    assert len(few) == 5
    law = fit_over_training(*gadre_runs(few))
    found = (law.E, law.a, law.b, law.eta)
    assert found == pytest.approx(constants, rel=5e-3)
    assert law.eta == pytest.approx(constants[3], abs=6e-5)
    with_1b = few + [row for row in table if row["model"] == "open_lm_1b" and at(row, 20)]
    errors = fit_error(column(with_1b, "loss_c4_val"), column(with_1b, "err_avg17"))
    assert (errors.epsilon, errors.k, errors.gamma) == pytest.approx(error_constants, abs=6e-3)
    form = law.loss_law("gadre", "test")
    assert form.predict(1e9, 1e11) == pytest.approx(law.predict(1e9, 1e11), rel=1e-12)
    if dataset == "rpj":
        size, tokens, loss = gadre_runs(table)
        forecast = law.predict(size, tokens)
        for model, ratio, loss_error, task_error in (
            ("open_lm_1b", 640, 0.7103, 3.6365),
            ("open_lm_7b", 20, 0.7320, 0.0464),
        ):
            (row,) = (i for i, each in enumerate(table) if each["model"] == model and at(each, ratio))
            assert 100 * abs(forecast[row] / loss[row] - 1) == pytest.approx(loss_error, abs=6e-5)
            actual = float(table[row]["err_avg17"])
            assert 100 * abs(errors.predict(forecast[row]) / actual - 1) == pytest.approx(task_error, abs=6e-5)
        worth = [form.effective_compute(math.sqrt(1e21 / 6 / m), math.sqrt(1e21 / 6 / m) * m) for m in (80, 320, 640)]
        assert worth == pytest.approx([0.68, 0.40, 0.28], abs=0.006)


def leaderboard() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = [row for row in rows("hkust/bpc_leaderboard.csv") if row["in_fit18"] == "1"]
    assert len(table) == 18
    return 1e9 * column(table, "params_B"), 1e12 * column(table, "train_tokens_T"), column(table, "bpc_avg")


def test_unified_law_from_the_leaderboard() -> None:
    law = fit_compute_law(*leaderboard())
    assert law.slope == pytest.approx(-0.0308, abs=6e-5)
    assert law.intercept == pytest.approx(0.5727, abs=6e-5)
    assert law.rmse == pytest.approx(0.0086, abs=6e-5)
    # The published figures, recalled, lie within the fit's errors.
    assert law.slope_interval is not None and law.intercept_intervals is not None
    assert law.slope_interval[0] < -0.031 < law.slope_interval[1]
    assert law.intercept_intervals["all"][0] < 0.572 < law.intercept_intervals["all"][1]


def test_unified_law_checks() -> None:
    assert UNIFIED.predict(8e9, 15e12) == pytest.approx(0.42525, abs=6e-6)
    assert UNIFIED.predict(70.6e9, 15e12) == pytest.approx(0.35818, abs=6e-6)
    assert UNIFIED.compute_for(0.40) == pytest.approx(1.6342e24, rel=4e-5)
    assert UNIFIED.smallest_parameters(0.40, 15e12) == pytest.approx(1.6342e24 / 6 / 15e12, rel=4e-5)


@pytest.mark.parametrize(
    ("size", "tokens", "forecast"),
    [(7.7, 4, 0.467), (14.2, 4, 0.448), (32.5, 4, 0.423), (72.3, 3, 0.407), (72.7, 7, 0.381)],
)
def test_unified_law_outside_its_fit(size: float, tokens: float, forecast: float) -> None:
    assert UNIFIED.predict(size * 1e9, tokens * 1e12) == pytest.approx(forecast, abs=6e-4)


def test_families_get_an_intercept_each() -> None:
    size = np.geomspace(1e9, 7e10, 12)
    tokens = np.tile([1e12, 4e12], 6)
    families = np.repeat(["one", "two"], 6)
    bits = -0.03 * np.log(size * tokens / 1e21) + np.where(families == "one", 0.5, 0.6)
    law = fit_compute_law(size, tokens, bits, families)
    assert law.slope == pytest.approx(-0.03)
    assert law.intercepts == pytest.approx({"one": 0.5, "two": 0.6})
    assert law.predict(1e9, 1e12, "two") == pytest.approx(0.6)


def test_where_the_compute_law_breaks_down() -> None:
    size, tokens, loss = chinchilla_240()
    ratios = tokens / size
    for inside, compute_error, loss_law_error in (
        ((ratios > 10) & (ratios < 60), 0.0105, 0.0103),
        (ratios > 0, 0.0573, 0.0186),
    ):
        runs = size[inside], tokens[inside], loss[inside]
        assert fit_saturating(6 * runs[0] * runs[1], runs[2]).rmse == pytest.approx(compute_error, abs=6e-5)
        error = math.sqrt(fit(*runs, "squared").objective / inside.sum())
        assert error == pytest.approx(loss_law_error, abs=6e-5)


def test_borrowed_exponents_forecast_larger_models() -> None:
    lender = published_law("besiroglu")
    for dataset in ("c4_original", "rpj", "rw_original"):
        table = gadre(dataset)
        targets = gadre_runs([row for row in table if row["model"].startswith("open_lm")])
        for models, low, high in (
            (("d=512_l=8_h=4", "d=1024_l=24_h=8"), 0.028, 0.037),
            (("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8"), 0.07, 0.08),
        ):
            few = [row for row in table if row["model"] in models and abs(float(row["tok_mult"]) - 20) < 1]
            law = borrow(lender, *gadre_runs(few))
            error = np.mean(np.abs(law.predict(*targets[:2]) / targets[2] - 1))
            assert low <= round(float(error), 3) <= high


def test_borrowing_from_a_single_run_fits_it() -> None:
    lender = published_law("besiroglu")
    for loss in (0.4, 2.0, 5.0):
        law = borrow(lender, np.array([1e8]), np.array([2e9]), np.array([loss]))
        assert law.predict(1e8, 2e9) == pytest.approx(loss)
        assert min(law.E, law.A, law.B) >= 0


def test_a_law_survives_its_file(tmp_path: Path) -> None:
    law = published_law("epoch-huber")
    save_law(tmp_path / "law.json", law)
    assert load_law(tmp_path / "law.json") == law


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"E": 1}', '{"law": {"E": NaN}}', "not json"])
def test_a_file_that_is_no_law_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(KinfolkError):
        load_law(tmp_path / "law.json")


def test_what_a_law_cannot_do_is_refused() -> None:
    with pytest.raises(KinfolkError, match="irreducible"):
        PRINTED.compute_for(1.8)
    with pytest.raises(KinfolkError, match="does not reach"):
        PRINTED.tokens_for(2.0, 1e8)
    flat = LossLaw(**{**PRINTED.model_dump(), "B": 0.0})
    with pytest.raises(KinfolkError, match="no optimum"):
        flat.optimum(1e21)


def test_interval_widens_beyond_its_reach() -> None:
    law = published_law("epoch-huber")
    assert law.fitted is not None
    top = law.fitted.compute[1]
    widths = []
    for factor in (0.01, 1.0, 30.0, 1e3, 1e5):
        size = math.sqrt(top * factor / 120)
        low, high = law.interval(size, 20 * size) or (0.0, 0.0)
        widths.append(math.log(high / low))
    assert widths[0] == pytest.approx(widths[1])
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]
