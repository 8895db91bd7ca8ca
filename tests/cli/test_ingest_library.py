"""`sekv ingest` of folders and lists: when it makes a library, and what it says of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.types import LibraryOptions
from fake_engine import FakeEngine
from json_schemas import valid
from sekv_cli.main import run


@pytest.fixture
def folder(tmp_path: Path, fake: FakeEngine) -> Path:
    """A folder with a document, in the current folder."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.txt").touch()
    return tmp_path


def given(fake: FakeEngine) -> tuple[list[str], Path, LibraryOptions]:
    """What the engine was asked: sources, the library, its options."""
    ((name, (sources, library, _, many)),) = fake.calls
    assert name == "ingest_library"
    return sources, library, many


CASES: dict[str, tuple[str, list[str], str]] = {
    "a folder": ("papers -o library", ["papers"], "library"),
    "a folder and a file": ("papers a.txt -o library", ["papers", "a.txt"], "library"),
    "a name that ends in a slash": ("a.txt b.pdf -o library/", ["a.txt", "b.pdf"], "library"),
    "a folder of stores": ("a.txt -o .", ["a.txt"], "."),
    "a list": ("--list names.txt -o library", ["a.txt", "b.pdf"], "library"),
}


def test_what_becomes_a_library(folder: Path, fake: FakeEngine, subtests: pytest.Subtests) -> None:
    (folder / "names.txt").write_text("a.txt\n\n# not this\nb.pdf\n")
    for case, (line, sources, library) in CASES.items():
        with subtests.test(case):
            fake.calls.clear()
            assert run(["ingest", *line.split()]) == 1  # one of its documents fails
            assert given(fake) == (sources, Path(library), LibraryOptions())


def test_every_option_is_handed_to_the_engine(folder: Path, fake: FakeEngine) -> None:
    line = "papers -o lib --jobs 3 --include *.pdf --include x/* --exclude old --prune --dry-run"
    run(["ingest", *line.split()])
    wanted = LibraryOptions(("*.pdf", "x/*"), ("old",), 3, prune=True, dry_run=True)
    assert given(fake)[2] == wanted


def test_a_list_comes_through_stdin(
    folder: Path, fake: FakeEngine, stdin: Callable[[str], None]
) -> None:
    stdin("b.pdf\na.txt\n")
    run(["ingest", "--list", "-", "-o", "lib"])
    assert given(fake)[0] == ["b.pdf", "a.txt"]


def test_people_read_what_became_of_the_documents(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ingest", "papers", "-o", "lib"]) == 1
    said = capsys.readouterr()
    for words in (
        "lib",
        "1 document",
        "2,000 read now, in 12.5 s",
        "9.0 kB written now",
        "c.pdf is empty",
        "--prune",
    ):
        assert words in said.out
    assert said.out.count("c.pdf") == 1
    assert "left out" in said.err


def test_scripts_read_every_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", "papers", "-o", "lib", "--json"]) == 1
    record = valid("ingest-library", capsys.readouterr().out)
    assert [each["state"] for each in record["documents"]] == ["read", "replaced", "failed", "gone"]
    assert record["left_out"] == ["a.jpg"]


REFUSED = {
    "papers": "name it with -o",
    "--list names.txt": "name it with -o",
    "a.txt --jobs 2": "are for a library",
    "a.txt --prune": "are for a library",
    "papers -o lib --append b.sekv": "--append",
    "papers --append b.sekv": "name it with -o",
    "--list nothing.txt -o lib": "nothing.txt",
    "nothing -o lib/": "does not exist",
    "": "no SOURCE",
}


def test_what_cannot_be_is_one_line(
    folder: Path,
    fake: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    subtests: pytest.Subtests,
) -> None:
    (folder / "names.txt").write_text("a.txt\n")
    for line, words in REFUSED.items():
        with subtests.test(line):
            assert run(["ingest", *line.split()]) == 2
            said = capsys.readouterr().err
            assert words in said
            assert said.count("\n") == 1
    assert fake.calls == []
