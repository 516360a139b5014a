"""Maps between vocabularies: bytes of tokens, the gather against the dense matrix, the gauge, alignment, coverage."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vocabularies import NAMES, OTHER, TALES, pieces, tokenizer

from kinfolk.errors import KinfolkError
from kinfolk.transfer.alignment import _best, aligned_map, alignment_costs, edit_distance_map, warp
from kinfolk.transfer.coverage import Coverage, check_coverage, measure_coverage
from kinfolk.transfer.pieces import pieces_of
from kinfolk.transfer.translation import load_translation, translation
from kinfolk.transfer.vocabulary import VocabularyMap, exact_map, first_piece_map, gauge

COUPLES = [
    ("small", "large"),
    ("large", "small"),
    ("large", "gpt2"),
    ("gpt2", "stories260K"),
    ("stories260K", "gpt2"),
]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_spell_the_text(name: str) -> None:
    these = pieces(name)
    for text in (*TALES, *OTHER):
        spelt = b"".join(these.bytes_of[index] or b"" for index in these.encode(text))
        assert these.text_of(spelt) == (text, False)
    end = tokenizer(name).eos_token_id
    assert these.bytes_of[end] is None and end in these.special.values()


def test_a_split_character_is_pending() -> None:
    these = pieces("small")
    content = "a🦆".encode()
    assert [these.text_of(content[:cut]) for cut in (1, 2, 4, 5)] == [
        ("a", False),
        ("a", True),
        ("a", True),
        ("a🦆", False),
    ]
    assert these.text_of(b"a\xffb") == ("a\ufffdb", False)


def test_tokenizers_that_change_text_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(KinfolkError, match="decoder is missing"):
        pieces_of(PreTrainedTokenizerFast(tokenizer_object=words))
    lower = Tokenizer.from_str(tokenizer("small").backend_tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(KinfolkError, match="does not give back"):
        pieces_of(PreTrainedTokenizerFast(tokenizer_object=lower))


@pytest.mark.parametrize(("own", "other"), COUPLES)
def test_exact_and_first_piece_maps(own: str, other: str) -> None:
    base, value = pieces(own), pieces(other)
    exact, first = exact_map(base, value), first_piece_map(base, value)
    chosen = zip(base.bytes_of, exact.weight.tolist(), exact.index.tolist(), first.index.tolist(), strict=True)
    for piece, weight, index, first_index in chosen:
        if piece and weight:
            assert value.bytes_of[index] == piece and index == first_index
        elif piece:
            assert piece not in value.id_of
        begins = value.bytes_of[first_index]
        if piece and begins:
            assert piece.startswith(begins)
            assert not any(piece[:longer] in value.id_of for longer in range(len(begins) + 1, len(piece) + 1))
    end, other_end = tokenizer(own).eos_token_id, tokenizer(other).eos_token_id
    assert int(exact.index[end]) == other_end and exact.weight[end] == 1


def dense(known: VocabularyMap, columns: int) -> torch.Tensor:
    matrix = torch.zeros(len(known.index), columns, dtype=torch.float64)
    matrix[torch.arange(len(known.index)), known.index] = known.weight.double()
    return matrix


def a_map(seed: int, weights: str = "mixed") -> VocabularyMap:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(23, generator=draw)
    weight = torch.where(weight < 0.4, 0.0, weight if weights == "mixed" else 1.0)
    return VocabularyMap("test", torch.randint(0, 17, (23,), generator=draw), weight)


@pytest.mark.parametrize("alpha", [1.0, 0.3, -0.7, 2.5])
def test_the_gather_is_the_dense_product_up_to_the_gauge(alpha: float) -> None:
    torch.manual_seed(0)
    known, base, change = a_map(1), torch.randn(2, 5, 23), 3 * torch.randn(2, 5, 17)
    mapped = known.mapped
    level = gauge(base[..., mapped], change[..., known.index[mapped]], known.weight[mapped], alpha)
    found = known.combined(base, change, alpha).double()
    wanted = base.double() + alpha * (change.double() - level.double()) @ dense(known, 17).T
    assert torch.allclose(found, wanted, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.25, 3.0, -1.0]),
    st.sampled_from(["mixed", "one"]),
    st.floats(-50, 50),
)
def test_the_gauge_leaves_unmapped_tokens_their_probability(
    seed: int, alpha: float, weights: str, offset: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    known, base = a_map(seed, weights), torch.randn(3, 23, generator=draw)
    change = 4 * torch.randn(3, 17, generator=draw) + offset
    mapped = known.mapped
    level = gauge(base[..., mapped].double(), change[..., known.index[mapped]].double(), known.weight[mapped], alpha)
    moved = base.double()
    moved[..., mapped] += alpha * known.weight[mapped].double() * (change[..., known.index[mapped]].double() - level)
    before, after = (logits.softmax(-1)[..., known.weight == 0].sum(-1) for logits in (base.double(), moved))
    assert torch.allclose(before, after, rtol=0, atol=1e-9)
    assert torch.allclose(known.combined(base, change, alpha).double(), moved, atol=1e-3)


def test_no_change_is_exactly_the_base() -> None:
    base = torch.randn(4, 23)
    assert torch.equal(a_map(2).combined(base, torch.zeros(4, 17), 1.0), base)


def test_without_the_gauge_an_offset_would_move_the_unmapped_mass() -> None:
    """What makes the test above mean something: the same change with c = 0 takes nearly everything from them."""
    base, known = torch.zeros(23), a_map(3, "one")
    moved = base + 5 * known.weight
    share = (known.weight == 0).float().mean()
    assert float(moved.softmax(-1)[known.weight == 0].sum()) < 0.1 < float(share)


def test_alignment_path_and_costs_by_brute_force() -> None:
    own, other = ["th", "e", "cat", "s"], ["the", "cats"]
    costs = alignment_costs(own, other)
    assert costs == pytest.approx(np.array([[0.1, 3], [0.2, 4], [3, 0.1], [3, 0.3]]))
    draw = np.random.default_rng(0)
    for _ in range(20):
        costs = draw.random((4, 5))
        path = warp(costs)
        steps = {(late[0] - early[0], late[1] - early[1]) for early, late in pairwise(path)}
        assert path[0] == (0, 0) and path[-1] == (3, 4) and steps <= {(1, 1), (1, 0), (0, 1)}
        assert sum(costs[cell] for cell in path) == pytest.approx(min(_all_paths(costs)))


def _all_paths(costs: np.ndarray, cell: tuple[int, int] = (0, 0)) -> list[float]:
    row, column = cell
    if cell == (costs.shape[0] - 1, costs.shape[1] - 1):
        return [float(costs[cell])]
    ways = [(row + down, column + right) for down, right in ((1, 0), (0, 1), (1, 1))]
    return [
        float(costs[cell]) + rest
        for way in ways
        if way[0] < costs.shape[0] and way[1] < costs.shape[1]
        for rest in _all_paths(costs, way)
    ]


def test_weights_of_aligned_counts() -> None:
    """By hand. Rows less their means: 5, 1 -> 2, -2 and 3, 1 -> 1, -1. Columns: 2, 1 -> 1, 0 and -2, -1 -> 0, 1."""
    counts = Counter({(0, 10): 5, (0, 11): 1, (1, 10): 3, (1, 11): 1})
    assert _best(counts) == {0: (10, 1.0), 1: (11, 1.0)}
    assert _best(Counter({(0, 10): 5, (1, 10): 5})) == {0: (10, 1.0), 1: (10, 1.0)}


def test_a_vocabulary_aligned_with_itself_is_the_identity() -> None:
    these = pieces("small")
    known = aligned_map(these, these, TALES)
    seen = {index for text in TALES for index in these.encode(text)}
    assert len(seen) > 20
    assert all(int(known.index[index]) == index and known.weight[index] == 1 for index in seen)
    assert set(known.mapped.tolist()) == seen | {tokenizer("small").eos_token_id}


def test_nearest_spelling_only_where_there_is_no_same_bytes() -> None:
    base, value = pieces("small"), pieces("large")
    exact, near = exact_map(base, value), edit_distance_map(base, value)
    kept = exact.weight > 0
    assert torch.equal(near.index[kept], exact.index[kept]) and torch.equal(near.weight[kept], exact.weight[kept])
    place = base.id_of[b" raven"]
    assert exact.weight[place] == 0 and 0 < near.weight[place] < 1
    nearest = value.bytes_of[int(near.index[place])]
    assert nearest and float(near.weight[place]) == pytest.approx(
        1 - _edits(b" raven", nearest) / max(6, len(nearest)), abs=1e-6
    )


def _edits(one: bytes, other: bytes) -> int:
    if not one or not other:
        return len(one) + len(other)
    changed = one[0] != other[0]
    return min(_edits(one[1:], other[1:]) + changed, _edits(one[1:], other) + 1, _edits(one, other[1:]) + 1)


def test_coverage_is_counted_and_too_little_is_refused() -> None:
    base, value = pieces("large"), pieces("small")
    text = "def raven the"
    ids = base.encode(text)
    known = exact_map(base, value)
    found = measure_coverage(known, base, value, [text])
    share = sum(base.bytes_of[index] in value.id_of for index in ids) / len(ids)
    assert found.tokens == len(ids) and found.mapped == found.same_bytes == found.mean_weight == share < 1
    with pytest.raises(KinfolkError, match="have a value token"):
        check_coverage(found, minimum=0.99)
    check_coverage(found, minimum=0.99, force=True)
    check_coverage(Coverage(10, 0.95, 0.5, 0.5, 0.0))
    with pytest.raises(KinfolkError):
        translation(tokenizer("large"), tokenizer("small"), [OTHER[0]], minimum=1.0)
    with pytest.raises(KinfolkError, match="no text"):
        translation(tokenizer("large"), tokenizer("small"), [])
    with pytest.raises(KinfolkError, match="is no map"):
        translation(tokenizer("large"), tokenizer("small"), TALES, kind="guess")


@pytest.mark.parametrize("kind", ["exact", "first-piece", "edit-distance", "aligned", "healed"])
def test_a_saved_translation_is_the_same(kind: str, tmp_path: Path) -> None:
    made, coverage = translation(tokenizer("small"), tokenizer("large"), TALES, kind, aligned_on=TALES, force=True)
    assert coverage.to_dict()["tokens"] > 50
    made.save(tmp_path)
    loaded = load_translation(tmp_path)
    assert torch.equal(loaded.map.index, made.map.index) and torch.equal(loaded.map.weight, made.map.weight)
    assert loaded.map.kind == made.map.kind and loaded.retokenizer.begin == made.retokenizer.begin
    ids = pieces("small").encode(TALES[0])
    assert loaded.retokenizer.value_ids(ids) == made.retokenizer.value_ids(ids)
    (tmp_path / "vocabulary_map.json").write_text("{")
    with pytest.raises(KinfolkError, match="cannot be loaded"):
        load_translation(tmp_path)
