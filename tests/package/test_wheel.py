"""The wheel, as somebody installs it who has nothing of this folder: what is in it, and that it works from there."""

import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from micro import family
from packaging.requirements import Requirement

import kinfolk

ROOT = Path(kinfolk.__file__).parents[2]
EXTRAS = {"hub", "serve", "tasks", "gguf", "quantise", "dev"}

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="kinfolk is not run from its sources")


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a command prints, away from the sources and from everything of the environment that leads to them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with what is installed here: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        folder,
    )
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment that has the wheel, and else the packages that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # A line of a .pth file is put on the path without the .pth files that are there: the editable kinfolk is not seen.
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel], folder)
    return folder / "bin"


def test_all_that_lies_in_the_package_is_in_the_wheel_and_nothing_else(wheel: Path) -> None:
    """Presets, templates, scripts and styles of the report, chat template, tasks, the text that proves a growth."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packed == {path.relative_to(source).as_posix() for path in files}
    for needed in ("growth/verification.txt", "family/presets/tiny.yaml", "transfer/default_template.jinja"):
        assert f"kinfolk/{needed}" in packed


def test_the_command_of_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    where = run([installed / "python", "-c", "import kinfolk; print(kinfolk.__file__)"], tmp_path)
    assert where.startswith(str(installed.parent))
    assert "Usage" in run([installed / "kinfolk", "--help"], tmp_path)
    assert run([installed / "python", "-m", "kinfolk", "--version"], tmp_path) == f"kinfolk {kinfolk.__version__}\n"
    plan = json.loads(run([installed / "kinfolk", "plan", "tiny", "--json"], tmp_path))
    assert [stage["member"] for stage in plan["stages"]][-1] is not None
    assert json.loads(run([installed / "kinfolk", "plan", "paper-1b-8b", "--cluster", "h200", "--json"], tmp_path))


def test_a_build_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """The cards and the report are made of templates, scripts and styles that come out of the wheel."""
    family(tmp_path)
    run([installed / "kinfolk", "build", "family.yaml", "--run", "run"], tmp_path)
    assert "<script>" in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert (tmp_path / "run" / "members" / "large" / "README.md").is_file()


def test_extras_can_be_asked_for_and_hold_what_is_installed_here(wheel: Path) -> None:
    """That all of them resolve together is seen by a dry run of pip, which needs the registry: .ci/clean."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = importlib.metadata.PathDistribution(zipfile.Path(archive, name.partition("/")[0] + "/")).metadata
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Requires-Python"] == ">=3.11"
    for text in metadata.get_all("Requires-Dist"):
        requirement = Requirement(text)
        asked = [extra for extra in EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": extra})]
        assert requirement.marker is None or asked, text
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            assert asked == ["quantise"], text  # the one extra that the tests do without
            continue
        assert requirement.specifier.contains(version, prereleases=True), text
