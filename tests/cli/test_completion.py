"""What the shell offers on TAB, by the protocol that it uses itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def ask_shell(shell: str, line: str, folder: Path) -> list[str]:
    """What `sekv` answers a shell on this line so far, without the descriptions of zsh and fish."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_SEKV_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from sekv_cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )
    if shell == "zsh":
        inside = done.stdout.partition("((")[2].partition("))")[0]
        return [row.split(":")[0].strip('"') for row in inside.splitlines()]
    return [row.split("\t")[0] for row in done.stdout.splitlines() if row]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("book.sekv", "lib/law.sekv"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "book.pdf").touch()
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_stores_and_models_are_offered(shell: str, folder: Path) -> None:
    """A folder that is no store is offered as the way to those in it."""
    assert ask_shell(shell, "sekv ask --bud", folder) == ["--budget"]
    assert ask_shell(shell, "sekv ask ", folder) == ["book.sekv", "lib/"]
    if shell == "bash":  # the others differ in what they put around a word
        assert ask_shell(shell, "sekv in", folder) == ["ingest", "inspect"]
        assert ask_shell(shell, "sekv ask lib/l", folder) == ["lib/law.sekv"]
        assert ask_shell(shell, "sekv ingest book.pdf --model s", folder) == ["smollm2"]
        assert ask_shell(shell, "sekv ask nowhere/", folder) == []


def test_bash_itself_completes_with_the_script(folder: Path) -> None:
    """The script that `sekv completion bash` prints, in a real shell."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = folder / "sekv"
    program.write_text(
        f"#!{sys.executable} -P\nfrom sekv_cli.main import main\nmain()\n", encoding="utf-8"
    )
    program.chmod(0o755)
    script = (
        f'eval "$({program} completion bash)"; COMP_WORDS=({program} verify boo); COMP_CWORD=2; '
        f'_sekv_completion {program}; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stdout == "book.sekv\n"
