"""Values of a family file changed in place, and the schedule that is left to the build."""

from pathlib import Path

import pytest
import yaml
from documents import document
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.edit import Place, Value, absolute_paths, with_values
from kinfolk.family.load import load_family, preset_names

CHOSEN: dict[Place, Value] = {
    ("recipe", "peak_learning_rate"): 1e-05,
    ("recipe", "schedule", "warmup_share"): 0.05,
    ("recipe", "schedule", "decay_share"): 0.4,
    ("recipe", "schedule", "decay_shape"): "1-sqrt",
    ("recipe", "schedule", "end_ratio"): 0.0,
}

SAID = {"peak_learning_rate": 1e-05}
SCHEDULE = {"warmup_share": 0.05, "decay_share": 0.4, "decay_shape": "1-sqrt", "end_ratio": 0.0}

TEXT = """\
# A family.
name: x      # its name

members:
    - {name: a,
       parameters: 1e9}   # bare
recipe:
    # found by hand
    peak_learning_rate:   3e-3   # at first

    schedule:
        decay_share: 0.2   # late
        # seldom
        rewarmup_share: 0.1
    seed: 3
'strategy': "trunk"
"""


def test_only_the_values_change() -> None:
    changed = with_values(TEXT, CHOSEN, "x")
    expected = TEXT.replace("  3e-3   # at", "  1.0e-05   # at").replace("decay_share: 0.2 ", "decay_share: 0.4 ")
    for line in ("warmup_share: 0.05", "decay_shape: 1-sqrt", "end_ratio: 0.0"):
        expected = expected.replace("    seed: 3", f"        {line}\n    seed: 3")
    assert changed == expected
    assert with_values(changed, CHOSEN, "x") == changed


@pytest.mark.parametrize(
    "text",
    [
        "name: x\n",
        "name: x",
        "name: x\nrecipe:\n",
        "name: x\nrecipe: # none yet\n",
        "name: x\nrecipe: {}\n",
        "name: x\nrecipe: {seed: 1} # here\nstrategy: trunk\n",
        "name: x\nrecipe: {schedule: auto, seed: 1}\n",
        "name: x\nrecipe:\n  schedule: auto   # by kinfolk\n  seed: 1\n",
        "name: x\nrecipe:\n  schedule:\n    decay_share: 0.1\n# the end\n",
        "name: x\nrecipe:\n  schedule: {decay_share: 0.1,\n    end_ratio: 0.2,}\n  seed: 1\n",
        'name: x\nrecipe: {"seed": 1, "schedule": {"decay_shape": "cosine"}}\n',
        '{"name": "x", "recipe": {"seed": 1}}\n',
        "name: x\nrecipe:\r\n  seed: 1\r\n",
        "recipe:\n  seed: 1\nmembers:\n  - name: a\n\n\n# last words\n",
        "a: &later {seed: 1}\nname: x\nrecipe:\n  <<: *later\n  seed: 2\n",
    ],
)
def test_fields_are_added_in_every_layout(text: str) -> None:
    before = yaml.safe_load(text)
    after = yaml.safe_load(with_values(text, CHOSEN, "x"))
    recipe = before.get("recipe") or {}
    schedule = recipe.get("schedule") if isinstance(recipe.get("schedule"), dict) else {}
    assert after == before | {"recipe": recipe | SAID | {"schedule": schedule | SCHEDULE}}
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert all(comment in with_values(text, CHOSEN, "x") for comment in comments)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-7, 0.5), st.floats(0, 1), st.sampled_from(preset_names()))
def test_every_rate_is_read_back_as_it_was(peak: float, share: float, preset: str) -> None:
    text = (Path(__file__).parents[2] / f"src/kinfolk/family/presets/{preset}.yaml").read_text()
    changed = with_values(
        text, {("recipe", "peak_learning_rate"): peak, ("recipe", "schedule", "end_ratio"): share}, "x"
    )
    recipe = yaml.safe_load(changed)["recipe"]
    assert recipe["peak_learning_rate"] == peak and recipe["schedule"]["end_ratio"] == share
    untouched = [line for line in text.splitlines() if "peak_learning_rate" not in line and "schedule:" not in line]
    assert set(untouched) <= set(changed.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "a: &p 0.1\nrecipe: {peak_learning_rate: *p}\n",
        "recipe: &r {peak_learning_rate: 0.1}\nb: *r\n",
        "recipe: [1]\n",
        "recipe: {peak_learning_rate: &p 0.1, b: *p}\n",
    ],
)
def test_what_cannot_be_changed_alone_is_refused(text: str) -> None:
    with pytest.raises(KinfolkError, match=r"recipe\.peak_learning_rate.* cannot be set"):
        with_values(text, CHOSEN, "x")


def test_paths_are_made_absolute_for_another_folder(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    text = (
        "data:\n  train: [{path: 'a, b'}, {builtin: x}]\n  held_out:\n    sources:\n      - path: c.txt # c\n"
        "  versions:\n    - {name: v, train: [{path: /d}]}\ntokenizer: {load: own}\n"
    )
    found = yaml.safe_load(with_values(text, absolute_paths(text, tmp_path), "x"))
    assert found["data"]["train"][0]["path"] == str(tmp_path / "a, b")
    assert found["data"]["held_out"]["sources"][0]["path"] == str(tmp_path / "c.txt")
    assert found["data"]["versions"][0]["train"][0]["path"] == "/d"
    assert found["tokenizer"]["load"] == str(tmp_path / "own")


def loaded(tmp_path: Path, schedule: object, **parts: object):  # type: ignore[no-untyped-def]
    made = document(**parts)
    made["recipe"]["schedule"] = schedule
    (tmp_path / "family.yaml").write_text(yaml.safe_dump(made))
    return load_family(str(tmp_path / "family.yaml"))


@pytest.mark.parametrize(
    ("parts", "share"),
    [
        ({}, 0.95),
        ({"strategy": "trunk"}, 0.5),
        ({"patch": {"size": 2}}, 0.5),
        ({"patch": {"size": 2, "share": 0.9}}, 0.1),
        ({"growth": {"start": "undecayed"}}, 0.5),
    ],
)
def test_an_auto_family_has_the_usual_schedule_that_it_allows(
    tmp_path: Path, parts: dict[str, object], share: float
) -> None:
    found = loaded(tmp_path, "auto", **parts)
    assert found.auto_schedule and found.family.recipe.schedule.decay_share == share
    assert not loaded(tmp_path, {"decay_share": 0.1}, **parts).auto_schedule


def test_auto_is_set_like_any_field_and_other_words_are_refused(tmp_path: Path) -> None:
    loaded(tmp_path, {"decay_share": 0.1})
    assert load_family(str(tmp_path / "family.yaml"), ["recipe.schedule=auto"]).auto_schedule
    with pytest.raises(KinfolkError, match=r"recipe\.schedule"):
        loaded(tmp_path, "automatic")
    with pytest.raises(KinfolkError, match="seed"):
        load_family(str(tmp_path / "family.yaml"), ["recipe.schedule=auto", "recipe.seed=x"])
