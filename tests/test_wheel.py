"""What is published: the wheel holds the two packages with their data and nothing else, and runs.

`pytest tests/test_wheel.py -m slow`: pip fetches setuptools for the build.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from repository import ROOT

pytestmark = pytest.mark.slow


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(filter(None, listed.stdout.split("\0")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of what is committed or staged, in a folder of its own: nothing is left in the tree."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    place = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        copy = place / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(place), str(place / "tree")], check=True)
    (made,) = place.glob("*.whl")
    return made


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    """Every tracked file of both packages, and the licence; no tests and nothing large."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"sekv-{version('sekv')}.dist-info"
        assert {name for name in names if not name.startswith(about)} == tracked(
            "engine", "sekv_cli"
        )
        assert f"{about}/licenses/LICENSE" in names
        assert max(entry.file_size for entry in archive.infolist()) < 1_000_000
    assert wheel.name == f"sekv-{version('sekv')}-py3-none-any.whl"


def test_the_wheel_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees the packages installed here but not the tree."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def said(*line: str | Path) -> str:
        return subprocess.run(
            line, cwd=tmp_path, check=True, capture_output=True, text=True, env={"HOME": str(site)}
        ).stdout

    assert said(python.with_name("sekv"), "--version").startswith(f"sekv {version('sekv')}\n")
    where = "import engine.api, sekv_cli.page as p; print(engine.api.__file__, p.__file__)"
    assert said(python, "-c", where).count(str(site)) == 2
    page = "from importlib.resources import files; print(files('sekv_cli.page') / 'page.js')"
    assert Path(said(python, "-c", page).strip()).is_file()
