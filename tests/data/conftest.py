import pytest
from tiny_corpora import story, write_json_lines

from kinfolk.family.spec import Family


@pytest.fixture
def family(tmp_path):
    """Builds a family on corpus.jsonl (sixty stories, a fifth held out); keywords replace parts of the file."""
    write_json_lines(tmp_path / "corpus.jsonl", [story(n) for n in range(60)])

    def build(**parts: object) -> Family:
        return Family.model_validate(
            {
                "name": "tiny",
                "model": {"context_length": 16},
                "tokenizer": {"vocab_size": 300},
                "data": {"train": [{"path": "corpus.jsonl"}], "held_out": {"share": 0.2}},
                "members": [{"name": "a", "parameters": 1000}],
                **parts,
            }
        )

    return build
