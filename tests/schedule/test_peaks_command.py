"""`kinfolk schedule peaks`: every rule, rate transfer and laws side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_schedule_command import document, refused, schedule
from test_schedule_laws import truth

from kinfolk.cli.plan_tables import recipe_line
from kinfolk.family.load import load_family
from kinfolk.family.rate_transfer import parameter_factors
from kinfolk.laws.rates import deepseek, olmo_ladder, rate_rules, step_law
from kinfolk.plan.document import plan_document
from kinfolk.plan.peaks import NamedLaw, peaks_document
from kinfolk.plan.strategies import plan_family
from kinfolk.schedule.best_peak import PEAKS, best_peak, why_silent
from kinfolk.schedule.law import Calibration, FittedRange, KindName, ScheduleLaw, save_law
from kinfolk.schedule.shapes import NamedSchedule
from kinfolk.schedule.stability import Stability

TRUE, _ = truth()
BATCH = 65_536


def law(size: float | None = 2e8, peaks: tuple[float, float] = (1e-4, 8e-3), kind: KindName = "sixteen") -> ScheduleLaw:
    return ScheduleLaw(
        kind=kind,
        numbers=TRUE,
        source="a known law",
        fitted=FittedRange(
            runs=20,
            peak_lr=peaks,
            steps=(5_000, 16_000),
            warmup_steps=(300, 300),
            decay_fraction=(0.1, 0.6),
            end_ratio=(0.0, 0.0),
            shapes=("linear",),
            size=size,
            tokens_per_step=BATCH,
        ),
        calibration=Calibration(half_width=0.004, difference=0.0005, basis="left-out runs", errors=40),
        noise=0.001,
        noise_basis="assumed",
        stability=Stability(largest_stable=peaks[1], smallest_diverged=None, diverged=0, regression=None),
    )


def family(folder: Path, **recipe: Any) -> Path:
    """Members of 200M, 800M and 1.6B parameters on 1.05B, 2.1B and 4.2B tokens."""
    sizes = {"small": (2e8, 16_000), "medium": (8e8, 32_000), "large": (1.6e9, 64_000)}
    members = [{"name": name, "parameters": n, "tokens": steps * BATCH} for name, (n, steps) in sizes.items()]
    content = {
        "name": "ladder",
        "members": members,
        "counted_parameters": "non_embedding",
        "recipe": {"tokens_per_step": BATCH, "peak_learning_rate": 2e-3, **recipe},
    }
    (folder / "family.yaml").write_text(yaml.safe_dump(content))
    return folder / "family.yaml"


def warned(found: dict[str, Any], *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in found["warnings"])


def test_rules_side_by_side(tmp_path: Path) -> None:
    found = document("peaks", family(tmp_path, peak_rule="step_law"))
    assert [member["name"] for member in found["members"]] == ["small", "medium", "large"]
    first = found["members"][0]
    for member in found["members"]:
        n, d = member["parameters"]["non_embedding"], member["tokens"]
        assert member["steps"] == d / BATCH
        absolute = {"step_law": step_law(n, d), "deepseek": deepseek(n, d), "olmo_ladder": olmo_ladder(n, d)}
        for name, rule in absolute.items():
            said = member["rules"][name]
            assert said["absolute"] == rule.peak and said["tokens_per_step"] == rule.tokens_per_step
            assert said["anchored"] == pytest.approx(2e-3 * rule.peak / first["rules"][name]["absolute"])
        assert member["rules"]["exponent"] == {"absolute": None, "anchored": 2e-3, "outside": []}
        assert member["peak_learning_rate"] == member["rules"]["step_law"]["anchored"] and member["basis"] == "step_law"
        peaks = [rule.peak for rule in rate_rules(n, d)]
        assert member["apart"]["absolute"] == pytest.approx(max(peaks) / min(peaks))
        anchored = [rule["anchored"] for rule in member["rules"].values()]
        assert member["apart"]["anchored"] == pytest.approx(max(anchored) / min(anchored))
    assert first["apart"]["anchored"] == 1
    shown = schedule("peaks", family(tmp_path, peak_rule="step_law"))
    assert "the recipe uses step_law" in shown and "olmo_ladder" in shown and "anchored" in shown


def test_the_plan_uses_the_same_peaks_and_says_by_what(tmp_path: Path) -> None:
    loaded = load_family(str(family(tmp_path, peak_rule="olmo_ladder"))).family
    plan = plan_document(loaded, plan_family(loaded))
    assert [stage["rate"]["peak"] for stage in plan["stages"]] == [
        member["peak_learning_rate"] for member in peaks_document(loaded)["members"]
    ]
    assert "peaks by olmo_ladder" in recipe_line(plan["recipe"], BATCH)
    usual = load_family(str(family(tmp_path))).family
    assert "peaks" not in recipe_line(plan_document(usual, plan_family(usual))["recipe"], BATCH)


def test_ranges_and_distances_are_warned_of(tmp_path: Path) -> None:
    found = document("peaks", family(tmp_path))
    outside = {
        name: [bool(member["rules"][name]["outside"]) for member in found["members"]]
        for name in ("step_law", "deepseek", "olmo_ladder")
    }
    # 200M parameters and 1B tokens are below the public runs of the step law, 1.6B above; 6 N D is 1.3e18 to 4.0e19.
    assert outside == {"step_law": [True] * 3, "deepseek": [False, False, True], "olmo_ladder": [True] * 3}
    assert warned(found, "olmo_ladder was not fitted for small, medium, large", "2406.19146", "1.6e+09 parameters")
    assert warned(found, "deepseek was not fitted for large", "2401.02954")
    near = document("peaks", "paper-1b-8b")
    assert not any(member["apart"]["absolute"] > 3 for member in near["members"]) and not warned(near, "times apart")
    tokens = [f"members.{index}.tokens=1e13" for index in range(3)]
    far = document("peaks", family(tmp_path), *(word for each in tokens for word in ("--set", each)))
    worst = max(member["apart"]["absolute"] for member in far["members"])
    assert worst > 3 and warned(far, "outright", f"{worst:.3g} times apart")
    assert not step_law(5e8, 1e10).outside and step_law(5e8, 1e12).outside == ("1e+12 tokens, fitted 4e+09 to 1e+11",)


def test_odd_peaks_are_warned_of(tmp_path: Path) -> None:
    def peaks(*settings: str) -> dict[str, Any]:
        return document("peaks", family(tmp_path), *(word for each in settings for word in ("--set", each)))

    usual = peaks()
    assert not any(warned(usual, word) for word in ("rises", "Muon", "far from", "own batches"))
    own = peaks("members.1.peak_learning_rate=0.5")
    assert own["members"][1]["basis"] == "its own"
    assert warned(own, "rises from small to medium") and warned(own, "medium's peak of 0.5 is far")
    assert warned(peaks("recipe.optimizer.matrices=muon"), "Muon")
    assert warned(peaks("recipe.tokens_per_step=256"), "own batches", "256")
    # Two tokens a parameter at the start and two thousand at the end: the step law lets the peak rise.
    assert warned(peaks("recipe.peak_rule=step_law", "members.2.tokens=1e13"), "rises from medium to large")


def test_rate_transfer_is_summed_up(tmp_path: Path) -> None:
    found = document("peaks", "tiny")
    loaded = load_family("tiny").family
    for member, said in zip(loaded.members, found["members"], strict=True):
        assert member.shape is not None and loaded.members[0].shape is not None
        factors = parameter_factors(member.shape, loaded.members[0].shape, "mup", "llama")
        rates = [factors[f"{name}_proj"].rate for name in ("q", "k", "v", "o", "gate", "up", "down")]
        assert said["rate_transfer"]["hidden_matrices"] == {
            "smallest": pytest.approx(0.011 * min(rates)),
            "largest": pytest.approx(0.011 * max(rates)),
        }
        assert said["rate_transfer"]["embedding"] == 0.011 and not said["rate_transfer"]["in_use"]
    used = ("--set", "recipe.peak_exponent=0", "--set", "recipe.rate_transfer.rule=completep")
    assert document("peaks", "tiny", *used)["members"][0]["rate_transfer"]["rule"] == "completep"
    assert "completep (in use)" in schedule("peaks", "tiny", *used)
    assert document("peaks", family(tmp_path))["members"][0]["rate_transfer"] is None


# what laws say


def test_the_best_peak_is_the_lowest_forecast_and_its_ties() -> None:
    run = NamedSchedule(steps=16_000, peak=1.0, shape="linear", warmup_steps=300, decay_fraction=0.4)
    known = law()
    found = best_peak(known, run)
    peaks = np.geomspace(1e-4, 8e-3, PEAKS)
    losses = np.array(
        [
            float(
                known.predict(
                    NamedSchedule(steps=16_000, peak=float(peak), shape="linear", warmup_steps=300, decay_fraction=0.4)
                )[0]
            )
            for peak in peaks
        ]
    )
    assert found.loss == losses.min() and found.peak == pytest.approx(peaks[losses.argmin()], rel=1e-3)
    alike = peaks[losses <= losses.min() + max(0.0024, 0.0005 * losses.min())]
    assert (found.low, found.high) == pytest.approx((alike[0], alike[-1]), rel=1e-3)
    assert found.low < found.peak < found.high and not found.at_edge
    assert best_peak(law(peaks=(1e-4, 5e-4)), run).at_edge


def test_a_law_speaks_of_its_size_and_a_rule_carries_its_peak_on(tmp_path: Path) -> None:
    save_law(tmp_path / "law.json", law())
    path = family(tmp_path, peak_rule="olmo_ladder", schedule={"warmup_share": 0.02, "decay_share": 0.4})
    found = document("peaks", path, "--law", tmp_path / "law.json")
    small, medium, large = (member["laws"][0] for member in found["members"])
    assert (small["basis"], medium["basis"], large["basis"]) == ("fitted size", *["scaled by olmo_ladder"] * 2)
    for said in (medium, large):
        ratio = {id(medium): 4, id(large): 8}[id(said)] ** (-1 / 3)
        assert [said[key] / small[key] for key in ("peak", "low", "high")] == pytest.approx([ratio] * 3)
    wanted = NamedSchedule(
        steps=16_000, peak=1, shape="linear", warmup_steps=319, warmup_from=1 / 320, decay_fraction=0.4
    )
    assert small["peak"] == best_peak(law(), wanted).peak
    assert found["laws"][0]["member"] == "small" and not warned(found, "law.json")
    shown = schedule("peaks", path, "--law", tmp_path / "law.json")
    assert "fitted size" in shown and "scaled by olmo_ladder" in shown and "forecast loss" in shown


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": 3e8}, "3e+08 parameters is no member"),
        ({"size": None}, "does not know the size"),
        ({"peaks": (1e-3, 1e-3)}, "all have the peak 0.001"),
        ({"kind": "annealing"}, "no term for the peak"),
    ],
)
def test_laws_that_cannot_say_are_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    loaded = load_family(str(family(tmp_path))).family
    found = peaks_document(loaded, [NamedLaw("mine", law(**changed)), NamedLaw("good", law())])
    assert (
        found["laws"][0]["silent"] and words in found["laws"][0]["silent"] and warned(found, "mine says nothing", words)
    )
    assert all(member["laws"][0] is None and member["laws"][1] is not None for member in found["members"])
    assert (why_silent(law(**changed)) is None) == ("size" in changed)


def test_what_a_law_is_asked_beyond_its_runs_is_warned_of(tmp_path: Path) -> None:
    path = family(tmp_path, tokens_per_step=2 * BATCH)
    found = peaks_document(load_family(str(path)).family, [NamedLaw("law", law(size=1.6e9, peaks=(1e-4, 5e-4)))])
    assert warned(found, "32,000 steps are outside the fitted 5,000 to 16,000")
    assert warned(found, "steps of 65,536 tokens, and the recipe's have 131,072")
    assert warned(found, "at the edge of the fitted 0.0001 to 0.0005")
    assert found["laws"][0]["member"] == "large"
    silent = load_family(str(path), ["recipe.peak_exponent=0.5"]).family
    carried = peaks_document(silent, [NamedLaw("law", law(size=1.6e9))])["members"][0]["laws"][0]
    assert carried["basis"] == "scaled by exponent"
    own = peaks_document(silent, [NamedLaw("law", law(size=1.6e9))])["members"][2]["laws"][0]
    assert carried["peak"] == pytest.approx(own["peak"] * 8**0.5)


def test_files_that_are_no_law_or_family_are_refused(tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text("{}")
    assert refused("peaks", family(tmp_path), "--law", tmp_path / "law.json").fix
    assert refused("peaks", tmp_path / "none.yaml").fix
