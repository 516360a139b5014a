import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 100, (1 << 20) - 1, 1 << 20, (1 << 21) + 7]), max_size=5))
def test_hashes_of_several_files_are_those_of_each(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("hashed")
    paths = [folder / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes((path.name * (size + 1))[:size].encode())
    assert files.sha256_each(paths) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_hashing_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SECONDS_OF_SILENCE", 0.001)
    sizes = [40_000_000, 30_000_000, 0]
    paths = [tmp_path / str(size) for size in sizes]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    told: list[tuple[int, int]] = []
    files.sha256_each(paths, lambda done, total: told.append((done, total)))
    done = [each for each, _ in told]
    assert len(done) > 3 and done == sorted(done) and done[-1] <= sum(sizes)
    assert {total for _, total in told} == {sum(sizes)}

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.sha256_each(paths, stop)
    with pytest.raises(FileNotFoundError):
        files.sha256_each([*paths, tmp_path / "missing"])
