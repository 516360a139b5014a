"""How much of a text each map between two vocabularies speaks for.

    python benchmarks/vocabulary_maps.py

Two byte-level BPEs of 512 and 1,024 entries trained on TinyStories, GPT-2's, and that of stories260K; coverage on 40
stories that none of them, and no alignment, has seen (GPT-2 apart). Prints the table of docs/transfer.md. Reads
../shared/data (tokenizers, stories260K, tinystories_sample) and says so where it is absent. A few minutes.
"""

import sys
from itertools import permutations
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "evaluate"))
from stories260k import DATA, TEXT, load_tokenizer, stories
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kinfolk.data.tokenizer import train_tokenizer
from kinfolk.transfer.translation import translation


def tokenizers(texts: list[str]) -> dict[str, PreTrainedTokenizerBase]:
    folder = DATA / "tokenizers" / "gpt2"
    gpt2 = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))._tokenizer
    end = "<|endoftext|>"
    return {
        "512": train_tokenizer(iter(texts[:120]), 512),
        "1,024": train_tokenizer(iter(texts[120:200]), 1024),
        "GPT-2": PreTrainedTokenizerFast(tokenizer_object=gpt2, bos_token=end, eos_token=end),
        "stories260K": load_tokenizer(),
    }


def main() -> None:
    if not TEXT.is_file():
        sys.exit(f"no data at {DATA}")
    texts = stories()
    found = tokenizers(texts)
    print("| base -> value | map | mapped | same bytes | mean weight | split anew |\n|---|---|---|---|---|---|")
    for base, value in permutations(found, 2):
        for kind in ("exact", "first-piece", "aligned"):
            _, coverage = translation(found[base], found[value], texts[200:240], kind, texts[:60], force=True)
            shares = (coverage.mapped, coverage.same_bytes, coverage.mean_weight, coverage.retokenized)
            print(f"| {base} -> {value} | {kind} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
