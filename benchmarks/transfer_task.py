"""What benchmarks/transfer.py post-trains for: templated instructions that can be checked, and a set written by people.

Templated instructions ask for a fixed form of answer, which no base has ever seen (**format**), and for the right words
or numbers in it (**content**). They are drawn with a fixed seed; which words are used is the same on both sides, which
combinations is not. The other set is 1,100 instructions of ../shared/data/seed_tasks, of which loss alone is told:
models of this size do not answer them.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from progressive import CLASSICS

WRITTEN = CLASSICS.parent / "seed_tasks" / "rasbt_instruction-data.json"
LONGEST_WRITTEN = 140
"""Characters of an instruction with its answer."""

WORDS = (
    *("time", "day", "hand", "man", "head", "way", "old", "house"),
    *("night", "water", "door", "father", "room", "good", "little", "great"),
)
"""Few and common ones, so that models of this size can learn to repeat them."""

Row = dict[str, str]


def _joined(draw: random.Random) -> tuple[str, str]:
    first, second = draw.sample(WORDS, 2)
    return f"Join the words {first} and {second}.", f"<{first}+{second}>"


def _twice(draw: random.Random) -> tuple[str, str]:
    word = draw.choice(WORDS)
    asked = draw.choice(("Say the word {} twice.", "Write {} two times.", "Please say {} twice.", "Repeat {} once."))
    return asked.format(word), f"Twice: {word} {word}!"


def _first(draw: random.Random) -> tuple[str, str]:
    words = draw.sample(WORDS, 3)
    return f"Which word comes first: {words[0]}, {words[1]}, {words[2]}?", f"First = {words[0]};"


def _last(draw: random.Random) -> tuple[str, str]:
    words = draw.sample(WORDS, 3)
    return f"Which word comes last: {words[0]}, {words[1]}, {words[2]}?", f"Last = {words[2]};"


def _counted(draw: random.Random) -> tuple[str, str]:
    words = [draw.choice(WORDS) for _ in range(draw.randint(1, 6))]
    return f"How many words are these: {' '.join(words)}?", f"Count: [{len(words)}]"


def _sum(draw: random.Random) -> tuple[str, str]:
    first, second = draw.randint(1, 9), draw.randint(1, 9)
    return f"Add {first} and {second}.", f"{first} + {second} = {first + second}."


_WORD = "[a-z]+"
TEMPLATES: dict[str, tuple[Callable[[random.Random], tuple[str, str]], str]] = {
    "join": (_joined, rf"<{_WORD}\+{_WORD}>"),
    "twice": (_twice, rf"Twice: {_WORD} {_WORD}!"),
    "first": (_first, rf"First = {_WORD};"),
    "last": (_last, rf"Last = {_WORD};"),
    "count": (_counted, r"Count: \[\d+\]"),
    "sum": (_sum, r"\d+ \+ \d+ = \d+\."),
}
"""How an instruction and its answer are drawn, and what the whole of any answer of the right format is like."""


@dataclass(frozen=True)
class Split:
    """How many rows of each set are for what."""

    train: int
    development: int
    """For alpha and early stopping."""
    test: int


TEMPLATED = Split(train=1800, development=96, test=180)
REAL = Split(train=300, development=40, test=80)


def is_of_format(name: str, answer: str) -> bool:
    """Whether the whole answer has the form that the template asks for, whatever its words."""
    return re.fullmatch(TEMPLATES[name][1], answer) is not None


def templated_rows(split: Split = TEMPLATED, seed: int = 0) -> dict[str, list[Row]]:
    """Rows by part; as many of each template, none twice within or across parts where there are enough of them.

    A template with too few unlike instructions repeats those of its own part only.
    """
    parts: dict[str, list[Row]] = {name: [] for name in ("train", "development", "test")}
    for name, (draw_row, _) in TEMPLATES.items():
        draw = random.Random(f"{seed} {name}")
        found: dict[str, str] = {}
        for _ in range(40 * (split.train + split.development + split.test)):
            prompt, response = draw_row(draw)
            found.setdefault(prompt, response)
        rows = [{"template": name, "prompt": prompt, "response": response} for prompt, response in found.items()]
        tests, developments = (
            min(wanted // len(TEMPLATES), len(rows) // 5) for wanted in (split.test, split.development)
        )
        parts["test"] += rows[:tests]
        parts["development"] += rows[tests : tests + developments]
        rest = rows[tests + developments :]
        parts["train"] += [rest[index % len(rest)] for index in range(split.train // len(TEMPLATES))]
    for name, rows in parts.items():
        random.Random(f"{seed} {name}").shuffle(rows)
    return parts


def real_rows(split: Split = REAL, seed: int = 0) -> dict[str, list[Row]]:
    """Short rows of the set that people wrote; the test part is the first in an order drawn once."""
    rows = [
        {"template": "real", "prompt": f"{row['instruction']}\n\n{row['input']}".strip(), "response": row["output"]}
        for row in json.loads(WRITTEN.read_text("utf-8"))
    ]
    rows = [row for row in rows if row["response"] and len(row["prompt"] + row["response"]) <= LONGEST_WRITTEN]
    random.Random(seed).shuffle(rows)
    test, development = split.test, split.test + split.development
    return {
        "test": rows[:test],
        "development": rows[test:development],
        "train": rows[development : development + split.train],
    }


def write_task(folder: Path) -> None:
    """Write train.jsonl and development.jsonl (both sets), and each set's parts by themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"templated": templated_rows(), "real": real_rows()}
    for part in ("train", "development", "test"):
        for name, parts in sets.items():
            write_rows(folder / f"{name}-{part}.jsonl", parts[part])
        if part != "test":
            write_rows(folder / f"{part}.jsonl", [row for parts in sets.values() for row in parts[part]])


def write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
