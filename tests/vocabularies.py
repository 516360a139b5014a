"""Tokenizers of unlike vocabularies: two of kinfolk's own, GPT-2's, and that of stories260K."""

import functools
import sys
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kinfolk.data.tokenizer import train_tokenizer
from kinfolk.transfer.pieces import Pieces, pieces_of

sys.path.append(str(Path(__file__).parent / "evaluate"))
import stories260k

GPT2 = stories260k.DATA / "tokenizers" / "gpt2"
TALES = [
    "The old raven sat on the mill and watched the river. Nobody saw the raven, and the raven saw nobody.",
    "A cobbler mended the lantern by the river; the lantern was bright, the mending was slow.",
    "Naïve façade: 学校 🦆 and the raven again.\n\nThe river forgets the mill.",
]
OTHER = ["def raven(mill):\n    return mill + 1\n", "the theory of the rivers is there in these thin things", TALES[1]]
NAMES = ("small", "large", "gpt2", "stories260K")


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """One of `NAMES`; skips the test where its data is absent."""
    if name == "small":
        return train_tokenizer(iter(TALES), 290)
    if name == "large":
        return train_tokenizer(iter(OTHER), 330)
    if name == "gpt2":
        if not GPT2.is_dir():
            pytest.skip(f"no GPT-2 vocabulary at {GPT2}")
        backend = ByteLevelBPETokenizer(str(GPT2 / "encoder.json"), str(GPT2 / "vocab.bpe"))._tokenizer
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    if not stories260k.VOCABULARY.is_file():
        pytest.skip(f"no stories260K at {stories260k.VOCABULARY}")
    return stories260k.load_tokenizer()


@functools.cache
def pieces(name: str) -> Pieces:
    """The bytes of the tokens of one of them."""
    return pieces_of(tokenizer(name))
