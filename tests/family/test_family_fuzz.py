"""Whatever is in a family file or after --set, only a KinfolkError comes out."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import document
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.load import load_family, validate_family
from kinfolk.plan.document import plan_document
from kinfolk.plan.strategies import plan_family

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 16, 64, 2**31, 2**63, 10**30, 10**400, -1, 0.5, 1e-320, 1e308]),
    st.integers(),
    st.floats(),
)
WORDS = st.sampled_from(
    ["name", "small", "path", "load", "builtin", "huggingface", "vocab_size", "BuiltinSource", "1e9", "", "..", "a/b"]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), WORDS)
KEYS = st.one_of(WORDS, st.text(max_size=5), st.integers(), st.none(), st.booleans())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a document."""
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places(inner)
    return found


@st.composite
def mutated_documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document with up to three places replaced, removed, added to or swapped, or only other numbers."""
    whole = copy.deepcopy(document())
    if draw(st.booleans()):
        numbers = [place for place in places(whole) if isinstance(place[0][place[1]], int | float)]
        container, key = numbers[draw(st.integers(0, len(numbers) - 1))]
        container[key] = draw(st.one_of(st.integers(0, 200), st.floats(0, 1), NUMBERS))
        return whole
    for _ in range(draw(st.integers(1, 3))):
        known = places(whole)
        if not known:
            break
        container, key = known[draw(st.integers(0, len(known) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "swap"]))
        if action == "replace":
            container[key] = draw(VALUES)
        elif action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(KEYS)] = draw(VALUES)
        elif action == "add":
            container.append(draw(VALUES))
        else:
            other, other_key = known[draw(st.integers(0, len(known) - 1))]
            container[key] = copy.deepcopy(other[other_key])
    return whole


def check(error: KinfolkError) -> None:
    assert error.where
    assert error.fix
    assert len(str(error).splitlines()) == 2
    assert len(str(error)) < 1000


@settings(max_examples=500, deadline=None)
@given(mutated_documents())
def test_mutated_documents(changed: dict[str, Any]) -> None:
    try:
        family = validate_family(changed, "family.yaml")
        plan = plan_document(family, plan_family(family, "family.yaml"))
    except KinfolkError as error:
        check(error)
        return
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "family.yaml"


TEXTS = st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
VALID = yaml.safe_dump(document(), sort_keys=False)


@st.composite
def mutated_texts(draw: st.DrawFn) -> bytes:
    """The text of a valid file with pieces cut out, doubled or replaced."""
    text = VALID.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        special = st.sampled_from(
            [b"&a ", b"*a", b"<<: ", b"!!", b"? ", b": ", b"- ", b"{", b"]", b"|", b"\t", b"\xff"]
        )
        text = text[:start] + draw(st.one_of(special, st.binary(max_size=4), st.just(text[start:end] * 2))) + text[end:]
    return text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(mutated_texts(), st.binary(max_size=60), TEXTS))
def test_mutated_texts(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        load_family(str(file))
    except KinfolkError as error:
        check(error)


STEPS = st.sampled_from(
    ["members", "0", "1", "9", "-1", "shape", "recipe", "seed", "name", "data", "train", "path", "x", ""]
)
OVERRIDES = st.one_of(
    st.builds(lambda steps, value: ".".join(steps) + "=" + value, st.lists(STEPS, max_size=5), st.text(max_size=8)),
    st.builds(lambda steps, value: ".".join(steps) + f"={value}", st.lists(STEPS, max_size=5), st.integers()),
    st.text(max_size=20),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_any_overrides(overrides: list[str]) -> None:
    try:
        load_family("tiny", overrides)
    except KinfolkError as error:
        check(error)
