"""What value logits say of base tokens that end within a value token, against sums over texts."""

import math

import pytest
import torch
from vocabularies import TALES, pieces, tokenizer

from kinfolk.errors import KinfolkError
from kinfolk.transfer.healing import healing


@pytest.mark.parametrize("last", [b"t", b" ", b"the", b"\n"])
def test_the_change_is_the_sum_over_the_texts_of_two_value_tokens(last: bytes) -> None:
    """Every pair of value tokens is spelt, and counts where its text begins with that of the last token and of u.

    No value token begins with "he", so that "h", the longest it begins with, speaks for it.
    """
    base, value = pieces("small"), pieces("large")
    heal = healing(base, value, TALES)
    number = value.id_of[last]
    before, after = 3 * torch.randn(2, len(value.bytes_of), generator=torch.Generator().manual_seed(0)).double()
    share = heal.log_frequency.double()
    after = after - (share + after).logsumexp(0)
    found = heal.change(before.float(), number, after.float())
    for owner in (base.id_of[piece] for piece in (b"h", b"he", b" ", b"a", b"s")):
        begun = last + (base.bytes_of[owner] or b"")
        second = [index for index, piece in enumerate(value.bytes_of) if piece and (last + piece).startswith(begun)]
        assert second or base.bytes_of[owner] == b"he"
        sums = {}
        for name, one, two in (("told", before, after), ("untold", 0 * before, 0 * after)):
            whole = [
                math.exp(share[number] + one[number] + share[index] + two[index])
                for index in second or [value.id_of[b"h"]]
            ]
            longer = [
                math.exp(share[index] + one[index])
                for index, piece in enumerate(value.bytes_of)
                if piece and len(piece) > len(last) and piece.startswith(begun)
            ]
            sums[name] = sum(whole) + sum(longer)
        assert found[owner].item() == pytest.approx(math.log(sums["told"] / sums["untold"]), abs=1e-4)


def test_no_change_changes_nothing_and_constants_do_not_count() -> None:
    base, value = pieces("small"), pieces("large")
    heal = healing(base, value, TALES)
    last, width = value.id_of[b"t"], len(value.bytes_of)
    assert heal.change(torch.zeros(width), last, torch.zeros(width)).abs().max() < 1e-5
    before, after = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    first = heal.change(before, last, after)
    assert torch.allclose(heal.change(before, last, after + 7), first, atol=1e-4)
    shifted = (heal.change(before + 7, last, after) - first)[heal.map.weight > 0]
    assert torch.allclose(shifted, torch.full_like(shifted, 7.0), atol=1e-3)


def test_the_end_of_a_text_and_its_beginning() -> None:
    base, value = pieces("small"), pieces("large")
    heal = healing(base, value, TALES)
    end, other_end = tokenizer("small").eos_token_id, tokenizer("large").eos_token_id
    after = torch.zeros(len(value.bytes_of))
    after[other_end] = 9.0
    change = heal.change(None, int(other_end), after)
    assert int(change.argmax()) == end and heal.map.weight[end] == 1
    with pytest.raises(KinfolkError, match="no text"):
        healing(base, value, [])
