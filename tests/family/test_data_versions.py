"""Versions of the data in the family file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document

from kinfolk.errors import KinfolkError
from kinfolk.family.load import dump_family, load_family, validate_family, with_absolute_paths

X: dict[str, Any] = {"train": [{"path": "x"}]}


def test_versions_are_named_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    fields = yaml.safe_dump({name: value for name, value in document().items() if name != "data"})
    first = "{name: 2026, train: [{path: x}]}"
    path.write_text(f"{fields}data: {{versions: [{first}, {{name: 2027-01-31, train: [{{path: /y}}], tokens: 5e6}}]}}")
    loaded = load_family(str(path))
    first, second = loaded.family.data.versions
    assert (first.name, second.name) == ("2026", "2027-01-31")
    assert loaded.family.version_tokens(first) == loaded.family.tokens(loaded.family.members[-1])
    assert loaded.family.version_tokens(second) == 5e6
    absolute = with_absolute_paths(loaded)
    assert [source.path for each in absolute.data.versions for source in each.train] == [str(tmp_path / "x"), "/y"]
    path.write_text(dump_family(absolute))
    assert load_family(str(path)).family == absolute


@pytest.mark.parametrize(
    ("versions", "field", "problem", "fix"),
    [
        ([X], "data.versions[0].name", "is missing", "add name"),
        ([{"name": "a"}], "data.versions[0].train", "is missing", "add train"),
        ([{**X, "name": "first"}], "data.versions[0].name", "data.train", "another name"),
        ([{**X, "name": "a/b"}], "data.versions[0].name", "a/b", ""),
        ([{**X, "name": True}], "data.versions[0].name", "true means nothing", ""),
        ([{**X, "name": "a.unfinished"}], "data.versions[0].name", "left-overs", "another name"),
        ([{**X, "name": "a"}, {**X, "name": "A"}], "data.versions[1].name", "but for capitals", "every version"),
        ([{**X, "name": "a", "tokens": 0}], "data.versions[0].tokens", "too small", "at least 1"),
        ([{"name": "a", "train": [{"paht": "x"}]}], "data.versions[0].train[0].paht", "unknown", "path?"),
    ],
)
def test_faults(versions: list[Any], field: str, problem: str, fix: str) -> None:
    with pytest.raises(KinfolkError) as caught:
        validate_family(document(data={"versions": versions}), "family.yaml")
    assert caught.value.where == f"family.yaml: {field}"
    assert problem in caught.value.problem and fix in (caught.value.fix or "")


def test_a_trunk_that_does_not_grow_may_decay_for_longer() -> None:
    """LR path switching decays over 0.6 of a version; where members grow, half is the most."""
    recipe = {"tokens_per_step": 64, "schedule": {"warmup_share": 0.05, "decay_share": 0.6}}
    changes = {"strategy": "trunk", "recipe": recipe}
    members = document()["members"]
    validate_family(document(**changes, members=members[:1]), "family.yaml")
    with pytest.raises(KinfolkError, match="40% of its tokens"):
        validate_family(document(**changes), "family.yaml")
    recipe["schedule"]["decay_share"] = 0.65  # type: ignore[index]
    with pytest.raises(KinfolkError, match="35% of its tokens"):
        validate_family(document(**changes, members=members[:1]), "family.yaml")
