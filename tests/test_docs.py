"""The pages keep their promises: every link between them leads somewhere."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from engine.models.locate import Located
from repository import ROOT

LENIENT = {"resilient_parsing": True}
"""For a group of commands: without one behind it, it would show its help and end."""

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_links_lead_somewhere() -> None:
    """A page or picture that is named in the repository is in the repository."""
    lost = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert lost == []


def commands_shown(page: Path) -> list[list[str]]:
    """The words of every `sekv` in a page's examples, without what a shell does around it."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.M | re.DOTALL)
    lines = [*"".join(blocks).splitlines(), *re.findall(r"^    (\S.*)$", text, re.M)]
    found = []
    for line in lines:
        if typed := re.search(r"(?:^|[|$] )(?:[A-Z_]+=\S+ )?(sekv .*)", line):
            words = shlex.shlex(typed[1], posix=True, punctuation_chars="|>&;")
            words.whitespace_split = True
            found.append(list(takewhile(lambda word: word not in ("|", ">", ">>"), words)))
    return found


def test_every_command_that_a_page_shows_is_understood(subtests: pytest.Subtests) -> None:
    """Commands, options and their values; what they name need not be there."""
    from sekv_cli.main import app

    seen = set()
    for page in PAGES:
        for words in commands_shown(page):
            with subtests.test(page=page.name, line=shlex.join(words)):
                command: Any = typer.main.get_command(app)
                rest, context = words[1:], None
                while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
                    context = command.make_context(command.name, [], context, **LENIENT)
                    name, command, rest = command.resolve_command(context, rest)
                    seen.add(name)
                command.make_context(command.name, rest, context)
    assert {"ingest", "ask", "chat", "serve", "inspect", "models", "bench", "train"} <= seen


def test_the_page_of_methods_is_the_table() -> None:
    """Written by `make docs`."""
    from sekv_cli.recipes import page

    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == page()


def test_the_schemas_are_the_types() -> None:
    """Written by `make docs`."""
    from sekv_cli.schemas import page, schemas

    found = {path.stem: path.read_text() for path in (ROOT / "docs/schemas").glob("*.json")}
    assert found == {name: page(name, schema) for name, schema in schemas().items()}


def test_the_changes_of_this_version_are_dated() -> None:
    """What comes next stands on top, then the version that pyproject.toml names, with its day."""
    found = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert found[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", found[1])


def test_the_demo_asks_three_questions() -> None:
    """README and Makefile say so."""
    lines = (ROOT / "docs" / "sample" / "questions.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) == 3


@pytest.mark.slow
def test_the_demo_is_answered_right(
    smollm2: Located, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the sample as it ships, with the page where it stands."""
    from sekv_cli.main import run

    sample, store = ROOT / "docs" / "sample", str(tmp_path / "dracula.sekv")
    assert run(["ingest", str(sample / "dracula.pdf"), "--pages", "1-31", "-o", store]) == 0
    capsys.readouterr()
    line = ["ask", store, "-f", str(sample / "questions.txt"), "--no-server", "--json"]
    assert run(line) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, (right, page) in zip(
        printed, (("Hotel Royale", "2"), ("Golden Mediasch", "6"), ("wall", "28")), strict=True
    ):
        assert right in one["answer"]
        assert page in one["citations"][0]["page"].split("-")
