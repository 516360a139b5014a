"""Made-up questions in the form of the real sets, and task files of lm-eval, for tests of tasks."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

import kinfolk

LOCAL = Path(kinfolk.__file__).parent / "evaluate" / "local_tasks"
WORDS = ["raven", "mill", "lantern", "river", "cobbler", "façade", "学校", "sees", "mends", "follows"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def sentence(draw: random.Random, words: int = 4) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def choice_rows(count: int, choices: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "query": f"Question: what {sentence(draw)}?",
            "choices": [f"{first} {sentence(draw, 1)}" for first in draw.sample(WORDS, choices)],
            "gold": draw.randrange(choices),
        }
        for _ in range(count)
    ]


def write_questions(folder: Path, count: int = 5) -> Path:
    """The nine sets, `count` questions of each, and two of each paradigm of BLiMP."""
    draw = random.Random(1)
    lambada = [{"context": sentence(draw, 6), "continuation": draw.choice(WORDS)} for _ in range(count)]
    write_lines(folder / "eval" / "lambada_openai.jsonl", lambada)
    for seed, (name, choices) in enumerate({"arc_easy": 4, "piqa": 2, "copa": 2, "openbook_qa": 4}.items()):
        write_lines(folder / "eval" / f"{name}.jsonl", choice_rows(count, choices, seed))
    boolq = [{**row, "choices": ["no", "yes"]} for row in choice_rows(count, 2, 9)]
    write_lines(folder / "eval" / "boolq.jsonl", boolq)
    winogrande = [
        {"context_options": [sentence(draw), sentence(draw)], "continuation": sentence(draw), "gold": draw.randrange(2)}
        for _ in range(count)
    ]
    write_lines(folder / "eval" / "winogrande.jsonl", winogrande)
    gsm8k = [{"question": sentence(draw), "answer": f"It is.\n#### {number}"} for number in range(2)]
    write_lines(folder / "gsm8k" / "test_first300.jsonl", gsm8k)
    blimp = [
        {"sentence_good": sentence(draw), "sentence_bad": sentence(draw), "UID": uid}
        for uid in paradigms()
        for _ in "ab"
    ]
    write_lines(folder / "blimp" / "blimp_a.jsonl", blimp)
    return folder


def paradigms() -> list[str]:
    """The parts of local_blimp."""
    content = (LOCAL / "blimp.yaml").read_text("utf-8").replace("!function ", "")
    return [part["task"] for part in yaml.safe_load(content)["task"]]


def write_task(path: Path, **changes: Any) -> Path:
    """A task file on two JSON lines files beside it: three questions, and eight with answers to put in front."""
    for name, count, seed in (("asked", 3, 20), ("shown", 8, 21)):
        write_lines(path.with_name(f"{path.stem}-{name}.jsonl"), choice_rows(count, 3, seed))
    files = {
        split: str(path.with_name(f"{path.stem}-{name}.jsonl"))
        for split, name in (("test", "asked"), ("train", "shown"))
    }
    task = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.5},
        **changes,
    }
    path.write_text(yaml.safe_dump({key: value for key, value in task.items() if value is not None}), "utf-8")
    return path
