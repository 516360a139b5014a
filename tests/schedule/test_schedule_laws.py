"""The mathematics of the laws: published numbers, identities, derivatives, and laws found again in their own data."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kinfolk.schedule import annealing, convergence, convex, functional, multipower
from kinfolk.schedule.blocks import block_sums, edges_until
from kinfolk.schedule.changes import Changes, changes
from kinfolk.schedule.features import CURVATURES, NAMES, Units, features
from kinfolk.schedule.holdout import folds
from kinfolk.schedule.kinds import KINDS
from kinfolk.schedule.points import aligned, curve_points
from kinfolk.schedule.run import Run
from kinfolk.schedule.shapes import Array, NamedSchedule, rates
from kinfolk.schedule.targets import Target, target

UNITS = Units()
COOLDOWN = NamedSchedule(
    steps=15_000, peak=2e-3, shape="linear", warmup_steps=300, warmup_from=0.01, decay_fraction=0.4
)
COSINE = NamedSchedule(steps=25_000, peak=1e-3, shape="cosine", warmup_steps=300, warmup_from=0.01, decay_fraction=1.0)
EVERY_STEP = slice(None)

# The sixteen features


@pytest.mark.parametrize(
    ("schedule", "blocks", "exact", "rest"),
    [
        (
            COOLDOWN,
            (0.23953, 0.75553, 0.88229, 0.50775, 0.22791, 0.09136),
            (0.23957, 0.75564, 0.88234, 0.50748, 0.22739, 0.09096),
            (0.53093, 0.28189, 0.07946, 0.90360, 0.81650, 0.66667, 1.23114, 4, 0.57735, 0.60653),
        ),
        (
            COSINE,
            (0.16200, 0.47363, 0.44559, 0.20429, 0.07326, 0.02204),
            (0.16203, 0.47370, 0.44557, 0.20419, 0.07314, 0.02190),
            (0.60340, 0.36410, 0.13257, 0.79527, 0.63246, 0.4, 1, 1, 0.63246, 0.36788),
        ),
    ],
)
def test_features_of_the_specification(
    schedule: NamedSchedule, blocks: tuple[float, ...], exact: tuple[float, ...], rest: tuple[float, ...]
) -> None:
    found = features(schedule, schedule.steps, UNITS)
    assert found[[0, 1, 2, 3, 4, 5, 12, 13, 14, 15]] == pytest.approx(rest, abs=1e-5)
    assert found[6:12] == pytest.approx(blocks, abs=1e-4)
    steps = np.arange(schedule.steps + 1, dtype=np.float64)
    assert features(schedule, schedule.steps, UNITS, edges=steps)[6:12] == pytest.approx(exact, abs=1e-5)


def test_the_noise_of_a_constant_rate_is_known() -> None:
    schedule = NamedSchedule(steps=4_000, peak=2e-3)
    h = np.array(CURVATURES)
    assert features(schedule, 4_000, UNITS)[6:12] == pytest.approx(2**0.33 * (1 - np.exp(-h * 4)), rel=1e-9)
    # Cutting a block in two changes nothing.
    edges = edges_until(schedule, 4_000)
    halves = np.unique(np.concatenate([edges, (edges[1:] + edges[:-1]) // 2]))
    assert features(schedule, 4_000, UNITS, edges=halves) == pytest.approx(features(schedule, 4_000, UNITS))


def test_named_and_listed_schedules_have_the_same_blocks_and_features() -> None:
    for schedule in (COOLDOWN, COSINE):
        edges = edges_until(schedule, schedule.steps)
        assert edges[0] == 0 and edges[-1] == schedule.steps and len(edges) < 110
        assert block_sums(schedule, edges) == pytest.approx(block_sums(rates(schedule), edges), rel=2e-4)
        listed = features(rates(schedule), schedule.steps, UNITS)
        assert features(schedule, schedule.steps, UNITS) == pytest.approx(listed, rel=1e-3)


def truth() -> tuple[dict[str, float], list[Target]]:
    """Runs that lie on a law of the sixteen features."""
    numbers = dict.fromkeys(NAMES, 0.0) | {"constant": 0.9, "unit rate": 1e-3, "unit steps": 1e3}
    numbers |= {"convergence S^-0.4": 0.2, "noise 8": 0.05, "peak^2": 0.002}
    runs = []
    for peak in (5e-4, 1e-3, 2e-3):
        for fraction in (0.1, 0.3, 0.6):
            for steps in (8_000, 16_000):
                schedule = NamedSchedule(
                    steps=steps, peak=peak, shape="linear", warmup_steps=300, decay_fraction=fraction
                )
                loss = convergence.predict(numbers, schedule, np.array([steps]))
                runs.append(target(schedule, steps, loss))
    return numbers, runs


def test_the_sixteen_feature_law_is_found_again() -> None:
    numbers, runs = truth()
    found = convergence.fit(runs)
    assert all(found[name] >= 0 for name in NAMES) and found["constant"] >= 0
    unseen = NamedSchedule(steps=12_000, peak=1.5e-3, shape="1-sqrt", warmup_steps=300, decay_fraction=0.4)
    at = np.array([12_000])
    assert convergence.predict(found, unseen, at) == pytest.approx(convergence.predict(numbers, unseen, at), rel=2e-3)


def test_one_wrong_run_hardly_moves_the_law() -> None:
    _, runs = truth()
    spoilt = [*runs[:-1], target(runs[-1].schedule, runs[-1].steps, runs[-1].loss * 1.1)]
    found = convergence.fit(spoilt)
    missed = [float(convergence.predict(found, run.schedule, run.steps)[0] / run.loss[0] - 1) for run in runs]
    assert max(map(abs, missed)) < 2e-3  # 0.026 by plain least squares


# Points of curves, and leaving out


def family_runs() -> list[Run]:
    _, targets = truth()
    return [
        Run(f"run {index}", each.schedule, float(each.loss[0]), np.arange(200, 8_000, 200), np.full(39, 2.0))
        for index, each in enumerate(targets)
    ]


def test_curves_are_raised_to_the_final_losses() -> None:
    runs, offset = aligned([replace(run, loss=2.25) for run in family_runs() if run.steps == 8_000])
    assert offset == pytest.approx(0.25)
    assert all(run.curve_loss == pytest.approx(2.25) for run in runs)
    steps, loss = curve_points(runs[0], UNITS)
    assert steps.tolist() == [5_000] and loss == pytest.approx([2.25])


def test_what_is_left_out_is_not_fitted() -> None:
    parts = folds(family_runs(), UNITS)
    assert [part.what for part in parts] == ["family"] * 3 + ["peak"] * 3 + ["horizon"]
    for part in parts:
        assert len(part.fitted) + len(part.hidden) == 18
        assert not {id(run.schedule) for run in part.fitted} & {id(target.schedule) for target in part.hidden}
    assert all(run.steps == 8_000 for run in parts[-1].fitted)


# Laws of curves


def brute_tissue(eta: Array, steps: int, lam: float) -> float:
    """Sum over i of sum over k <= i of (eta_{k-1} - eta_k) lam^(i-k), written out."""
    before = np.concatenate([[0.0], eta[: steps - 1]])
    momentum = total = 0.0
    for change in before - eta[:steps]:
        momentum = lam * momentum + change
        total += momentum
    return total


def test_the_annealing_sum_is_the_double_sum_of_the_paper() -> None:
    schedule = NamedSchedule(steps=400, peak=1e-3, shape="cosine", warmup_steps=40, decay_fraction=1.0, end_ratio=0.1)
    numbers = {"L0": 2.0, "A": 0.5, "a": 0.4, "C": 3.0, "memory": 100.0}
    eta = rates(schedule)
    for steps in (60, 200, 400):
        wanted = 2.0 + 0.5 * eta[:steps].sum() ** -0.4 - 3.0 * brute_tissue(eta, steps, 0.99)
        found = annealing.predict(numbers, schedule, np.array([steps]))
        assert found == pytest.approx([wanted], rel=1e-6)


def test_the_multipower_sum_is_that_of_the_paper() -> None:
    schedule = NamedSchedule(steps=300, peak=3e-4, shape="linear", warmup_steps=30, decay_fraction=0.5, end_ratio=0.2)
    numbers = multipower.PUBLISHED["multipower-25m"]
    eta, steps = rates(schedule), 280
    before = np.concatenate([[0.0], eta])
    total = numbers["L0"] + numbers["A"] * eta[:steps].sum() ** -numbers["a"]
    for k in range(1, steps):
        x = eta[k] ** -numbers["g"] * eta[k:steps].sum()
        total += numbers["B"] * (eta[k] - before[k]) * (1 - (1 + numbers["C"] * x) ** -numbers["b"])
    assert multipower.predict(numbers, schedule, np.array([steps])) == pytest.approx([total], rel=1e-9)


def test_the_convex_bound_of_a_constant_rate_is_known() -> None:
    # With eta constant: D^2 / (2 T eta) + eta G^2 / 2 (1 + H_{T-1}), H the harmonic numbers.
    steps, eta = 50, 1e-3
    schedule = NamedSchedule(steps=steps, peak=eta)
    harmonic = sum(1 / k for k in range(1, steps))
    for numbers, wanted in (
        ({"C": 0.0, "M D^2": 1.0, "M G^2": 0.0}, 1 / (2 * steps * eta)),
        ({"C": 0.0, "M D^2": 0.0, "M G^2": 1.0}, eta / 2 * (1 + harmonic)),
    ):
        assert convex.predict(numbers, schedule, np.array([steps])) == pytest.approx([wanted], rel=1e-9)


@pytest.mark.parametrize(
    ("evaluate", "theta"),
    [
        (annealing._free, np.log([2.5, 0.5, 0.4, 1.0, 300.0])),
        (multipower._evaluate, np.log([2.5, 0.5, 0.4, 300.0, 2.0, 0.6, 0.6])),
        (functional._evaluate, np.log([2.5, 0.5, 0.4, 5.0, 60.0, 300.0, 0.6])),
    ],
)
def test_derivatives_are_those_of_the_law(
    evaluate: Callable[[Array, Changes], tuple[Array, Array]], theta: Array
) -> None:
    schedule = NamedSchedule(steps=3_000, peak=3e-4, shape="cosine", warmup_steps=100, decay_fraction=1.0)
    pairs = changes([(schedule, np.array([500, 1500, 2900]))])
    _, slopes = evaluate(theta, pairs)
    for index in range(len(theta)):
        step = np.zeros(len(theta))
        step[index] = 1e-5
        difference = (evaluate(theta + step, pairs)[0] - evaluate(theta - step, pairs)[0]) / 2e-5
        assert slopes[:, index] == pytest.approx(difference, rel=1e-4, abs=1e-8)


CURVE_SHAPES = (
    NamedSchedule(steps=8_000, peak=5e-4, shape="cosine", warmup_steps=200, decay_fraction=1.0, end_ratio=0.1),
    NamedSchedule(steps=8_000, peak=5e-4, warmup_steps=200),
    NamedSchedule(steps=8_000, peak=5e-4, shape="two-stage", warmup_steps=200, decay_fraction=0.5, end_ratio=0.3),
)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("annealing", {"L0": 2.6, "A": 0.5, "a": 0.5, "C": 0.4, "memory": 1000.0}),
        ("annealing-free", {"L0": 2.6, "A": 0.5, "a": 0.5, "C": 0.8, "memory": 500.0}),
        ("multipower", {"L0": 2.6, "A": 0.5, "a": 0.5, "B": 300.0, "C": 2.1, "b": 0.59, "g": 0.65}),
        ("functional", {"L0": 2.6, "c1": 0.5, "s": 0.5, "c2": 5.0, "c3": 60.0, "c4": 300.0, "g": 0.6}),
        ("convex", {"C": 2.6, "M D^2": 0.5, "M G^2": 80.0}),
    ],
)
def test_a_law_is_found_again_from_its_own_curves(kind: str, numbers: dict[str, float]) -> None:
    law, steps = KINDS[kind], np.arange(400, 8_001, 200)
    targets = [target(schedule, steps, law.predict(numbers, schedule, steps)) for schedule in CURVE_SHAPES]
    found = law.fit(targets, UNITS, None)
    unseen = NamedSchedule(steps=12_000, peak=5e-4, shape="linear", warmup_steps=200, decay_fraction=0.3, end_ratio=0.1)
    at = np.array([6_000, 12_000])
    assert law.predict(found, unseen, at) == pytest.approx(law.predict(numbers, unseen, at), rel=1e-3)
