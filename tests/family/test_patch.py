import pytest
from documents import document
from hypothesis import given
from hypothesis import strategies as st

from kinfolk.errors import KinfolkError
from kinfolk.family.load import validate_family
from kinfolk.family.patch import Patch, relative_cost, step_share_of, token_share_of

SHARES = st.floats(0.001, 0.999)
SIZES = st.integers(1, 64)


@given(SIZES, SHARES)
def test_the_two_vocabularies_are_one(size: int, share: float) -> None:
    assert token_share_of(size, step_share_of(size, share)) == pytest.approx(share, rel=1e-9)
    assert step_share_of(size, token_share_of(size, share)) == pytest.approx(share, rel=1e-9)
    by_tokens, by_steps = Patch(size=size, share=share), Patch(size=size, step_share=step_share_of(size, share))
    assert by_steps.token_share == pytest.approx(by_tokens.token_share, rel=1e-9)
    assert by_steps.position_share == pytest.approx(by_tokens.position_share, rel=1e-9)
    assert by_tokens.cost == pytest.approx(share / size + 1 - share, rel=1e-12)


def test_published_settings() -> None:
    """K 4, lambda 2/3 is s 4, r 1/3 at half the cost; s 6, r 0.3 is lambda 0.72; a fixed compute reads 2 and 2.5 x."""
    assert step_share_of(4, 2 / 3) == pytest.approx(1 / 3)
    assert relative_cost(4, 2 / 3) == pytest.approx(0.5)
    assert token_share_of(6, 0.3) == pytest.approx(0.72)
    assert 1 / relative_cost(6, 0.72) == pytest.approx(2.5)
    for share, cost in ((1 / 2, 0.625), (2 / 3, 0.5), (4 / 5, 0.4)):  # arXiv 2407.12665
        assert relative_cost(4, share) == pytest.approx(cost)
    default = Patch()
    assert (default.size, default.token_share, default.position_share) == pytest.approx((4, 2 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("patch", "changes", "field", "problem", "fix"),
    [
        ({"share": 0.5, "step_share": 0.3}, {}, "patch.step_share", "both given", "share 0.5 is a step_share of 0.2"),
        ({"share": 1.0}, {}, "patch.share", "too large", "less than 1"),
        ({"size": 0}, {}, "patch.size", "too small", "at least 1"),
        ({"sise": 4}, {}, "patch.sise", "unknown", "size"),
        ({"members": "al"}, {}, "patch.members", "not known", "all"),
        ({"members": ["huge"]}, {}, "patch.members", "no member 'huge'", "name members"),
        ({"step_share": 0.85}, {}, "recipe.schedule.decay_share", "before the decay", "0.15"),
        ({"step_share": 0.05}, {}, "recipe.schedule.warmup_share", "longer than the patch part", "0.05"),
        ({"size": 8, "optimizer": "reset"}, {}, "recipe.tokens_per_step", "16 patches of 8", "128"),
        ({}, {"strategy": "trunk", "recipe": {"tokens_per_step": 64}}, "decay_share", "5% of its tokens", "0.3"),
        (
            {},
            {"strategy": "trunk", "recipe": {"tokens_per_step": 64, "schedule": {"decay_share": 0}}},
            "recipe.schedule.decay_share",
            "there is none",
            "0.2",
        ),
    ],
)
def test_faults(patch: dict, changes: dict, field: str, problem: str, fix: str) -> None:
    with pytest.raises(KinfolkError) as caught:
        validate_family(document(patch=patch, **changes), "family.yaml")
    assert field in caught.value.where and "[" not in caught.value.where
    assert problem in caught.value.problem and fix in caught.value.fix


def test_which_members_begin_with_patches() -> None:
    assert Patch().opens("any", from_scratch=True) and not Patch().opens("any", from_scratch=False)
    assert Patch(members="all").opens("any", from_scratch=False)
    assert Patch(members=["one"]).opens("one", from_scratch=False)
    assert not Patch(members=["one"]).opens("other", from_scratch=True)


def test_averages_need_even_steps() -> None:
    recipe = {"tokens_per_step": 64, "checkpoints": {"keep": 3}}
    with pytest.raises(KinfolkError, match="even steps"):
        validate_family(document(recipe=recipe), "family.yaml")
