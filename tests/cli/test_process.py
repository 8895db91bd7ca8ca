"""The command line as a process: what it imports, how it starts, what its page says."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from engine.models.reader import Reader
from repository import ROOT
from sekv_cli.main import app
from sekv_cli.reference import reference
from tiny_books import read

HEAVY = {"torch", "transformers", "numpy", "pypdf", "pypdfium2", "tokenizers", "safetensors"}
HEAVY |= {"huggingface_hub", "lxml", "gguf"}


LIGHT = [
    "--help",
    "help ask",
    "inspct b.sekv",
    "list --help",
    "ask",
    "--version",
    "ask nosuch.sekv Q",
    "ask nosuch.sekv Q --json",
    "ask pyproject.toml Q",
    "ask docs Q --model nosuch",
    "chat nosuch",
    "inspect nosuch -q Q",
    "serve nosuch",
    "verify nosuch",
    "list nosuch",
    "models pull ./nosuch",
    "models pull nosuch",
    "models rm nosuch",
    "ingest nosuch.pdf",
    "ingest README.md --append nosuch",
    "ingest README.md --model ./nosuch",
    "ingest README.md --model nosuch.gguf",
    "ingest README.md --model nosuch",
    "ingest README.md --model some/model --offline",
    "ingest README.md --method nosuch",
    "ingest README.md --router nosuch",
    "ingest README.md --heads nosuch",
    "ingest README.md README.md",
    "ask nosuch Q --seed 18446744073709551616",
    "train",
    "train --text nosuch",
    "train --text docs",
    "train heads --text nosuch",
    "bench",
    "bench --suite nosuch",
    "bench --questions nosuch --documents docs",
    "bench --questions docs/questions/sample.jsonl --documents nosuch",
    "bench --suite niah --text nosuch",
    "bench --suite efficiency --text docs",
    "bench --suite longbench --data nosuch",
    "bench --questions docs/questions/sample.jsonl --documents docs --method nosuch",
    "bench --questions docs/questions/sample.jsonl --documents docs --model nosuch",
    "config set nosuch 1",
]


def test_nothing_heavy_is_imported_to_say_no() -> None:
    """Help, the version, a typing mistake and a name that is not there cost what typer costs.
    Modules, not milliseconds: a busy machine must not fail this."""
    program = (
        "import sys\n"
        "from sekv_cli.main import run\n"
        f"for line in {LIGHT!r}:\n"
        "    run(line.split())\n"
        "    loaded = {name.split('.')[0] for name in sys.modules}\n"
        f"    print('heavy:', sorted({HEAVY!r} & loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    printed = [row for row in done.stdout.splitlines() if row.startswith("heavy:")]
    assert dict(zip(LIGHT, printed, strict=True)) == dict.fromkeys(LIGHT, "heavy: []")


def test_a_store_in_the_way_and_a_bad_document_are_refused_before_torch_is_imported(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    """Of the same sources, of others, of one that changed; and what is no document."""
    read(tmp_path, model, reader=reader)
    source, store = tmp_path / "log.txt", tmp_path / "log.sekv"
    (tmp_path / "other.txt").write_text("Something else is written here.")
    (tmp_path / "empty.txt").touch()
    changed = shutil.copytree(store, tmp_path / "changed.sekv")
    lines = {
        f"ingest {source} -o {store}": "as it is: ask it, or pass --overwrite",
        f"ingest {tmp_path}/other.txt -o {store}": "exists: choose another name with -o",
        f"ingest {tmp_path}/other.txt -o {store} --update": "is a store of other sources",
        f"ingest {tmp_path}/empty.txt": "is empty",
        f"ingest {tmp_path}/empty.txt --dry-run": "is empty",
        f"ask {tmp_path}/empty.txt Who?": "is empty",
    }
    program = (
        "import sys\n"
        "from sekv_cli.main import run\n"
        f"for line in {list(lines)!r}:\n"
        f"    assert run([*line.split(), '--model', {str(model)!r}]) == 2\n"
        f"open({str(source)!r}, 'a').write('It goes on.')\n"
        f"assert run(['ingest', {str(source)!r}, '-o', {str(changed)!r}]) == 2\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
    said = done.stderr.splitlines()
    for line, words in zip(said, [*lines.values(), "pass --update to read it anew"], strict=True):
        assert words in line


def test_the_help_imports_next_to_nothing_beside_typer() -> None:
    """No command, no settings, and of the engine its errors alone."""
    program = (
        "import sys\n"
        "from sekv_cli.main import run\n"
        "run(['--help'])\n"
        "own = [name for name in sys.modules if name.partition('.')[0] in ('sekv_cli', 'engine')]\n"
        "print('own:', *sorted(own))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    own = "engine engine.errors sekv_cli sekv_cli.commands sekv_cli.endings sekv_cli.main"
    assert done.stdout.splitlines()[-1] == f"own: {own} sekv_cli.streams"


@pytest.mark.parametrize("line", ["ask book.sekv Q --json", "--version", "ingest book.pdf"])
def test_windows_is_refused_before_anything_that_it_lacks(line: str) -> None:
    """One line, with the way out, in a process that has neither `fcntl` nor `resource`."""
    program = (
        "import sys, rich, typer\n"
        "sys.modules |= dict.fromkeys(('fcntl', 'resource', 'grp', 'pwd', 'termios'))\n"
        "import sekv_cli.main as command\n"
        "sys.platform = 'win32'\n"
        f"sys.argv = ['sekv', *{line.split()!r}]\n"
        "command.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    if "--json" in line:
        found = json.loads(said)["error"]
        assert found["code"] == "platform"
        said = f"sekv: {found['message']}"
    assert said.startswith("sekv: Windows is not supported: ")
    assert "WSL" in said


def test_the_module_runs_like_the_script() -> None:
    """`python -m sekv_cli` is the same program, for where scripts are not on the path."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sekv_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, packages, machine = done.stdout.splitlines()
    assert first == f"sekv {version('sekv')}"
    assert f"torch {version('torch')}" in packages
    assert platform.python_version() in packages
    assert platform.machine() in machine
    assert done.stderr == ""


def test_a_narrow_ascii_terminal_is_served() -> None:
    """A C locale gets question marks, not a crash."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sekv_cli", "ask", "b.sekv", "Q", "--budget", "½"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PATH": "", "COLUMNS": "40"},
    )
    assert done.returncode == 2
    assert "neither a share" in done.stderr


def test_the_page_says_what_the_commands_say() -> None:
    """docs/cli.md is written from the commands; `make docs` writes it anew."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == reference()


def test_every_command_shows_an_example() -> None:
    """A newcomer copies before he reads."""
    import typer

    def commands(group: object, path: str) -> list[tuple[str, str]]:
        found = []
        for name in group.list_commands(None):  # type: ignore[attr-defined]
            command = group.get_command(None, name)  # type: ignore[attr-defined]
            if hasattr(command, "list_commands"):
                found += commands(command, f"{path} {name}")
            else:
                found.append((f"{path} {name}", command.help))
        return found

    for path, text in commands(typer.main.get_command(app), "sekv"):
        assert "Example:" in text, path
        assert path in text.partition("Example:")[2], path
