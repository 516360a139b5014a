"""Tiny random checkpoints with a byte-level tokenizer, on disk, and text for them."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_tokenizer(merges: int = 0) -> PreTrainedTokenizerFast:
    """Ids 1 to 256 are bytes; further ones join the first letters of the alphabet, "ab", "cd", ..."""
    names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [(chr(97 + 2 * place), chr(98 + 2 * place)) for place in range(merges)]
    vocabulary = {name: index for index, name in enumerate([*names, *("".join(pair) for pair in pairs)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def tiny_llama(seed: int, hidden: int = 16, vocab: int = 257, tied: bool = False, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama; the same arguments make the same weights."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


def save(folder: Path, model: LlamaForCausalLM, merges: int = 0) -> str:
    """Write a checkpoint folder; returns its path."""
    model.save_pretrained(folder)
    byte_tokenizer(merges).save_pretrained(folder)
    return str(folder)


def write_texts(folder: Path, count: int = 6, sentences: int = 6) -> list[Path]:
    """Small text files of different lengths."""
    draw = random.Random(3)
    words = ["raven", "mill", "abcd", "river", "façade", "学校", "sees"]
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        lines = [" ".join(draw.choices(words, k=4)) + "." for _ in range(sentences + number)]
        path.write_text("\n".join(lines), "utf-8")
    return paths
