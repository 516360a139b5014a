import hashlib
import json
from pathlib import Path

import pytest

from kinfolk import files


def test_texts_replace_each_other_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    files.write_text(path, "old ü")
    files.write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text("utf-8")) == {"a": [1, None]}
    before = path.read_bytes()
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("inf")})
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "half a surrogate \ud800")
    assert path.read_bytes() == before
    assert files.sha256(path) == hashlib.sha256(before).hexdigest()


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "target.unfinished").mkdir()
    (tmp_path / "target.unfinished" / "stale").touch()
    with files.new_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "one").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.rglob("*")] == ["sub", "one"]
    with pytest.raises(KeyboardInterrupt), files.new_directory(target) as folder:
        (folder / "two").touch()
        raise KeyboardInterrupt
    assert [path.name for path in target.rglob("*")] == ["sub", "one"]
    with files.new_directory(target) as folder:
        (folder / "three").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "three"]
