"""`sekv text`: exactly the text that citations are slices of, whole or by pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.models.reader import Reader
from engine.store.reader import Store
from repository import ROOT
from sekv_cli.main import run
from tiny_books import read

PAGES = "1-3"


@pytest.fixture(scope="module")
def book(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pages of a real PDF and a text, in one store."""
    from engine.api import IngestOptions, ingest

    folder = tmp_path_factory.mktemp("text")
    (folder / "notes.md").write_text("# One\n\nä first\n\n# Two, and more\n\nlast — line\n")
    sources = [ROOT / "docs/sample/dracula.pdf", folder / "notes.md"]
    options = IngestOptions(model=str(model), pages=PAGES)
    ingest(sources, folder / "two.sekv", options, reader=reader)
    return folder / "two.sekv"


def stored(store: Path, source: int) -> str:
    with Store.open(store) as opened:
        return opened.text(source)


def out(line: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> bytes:
    assert run(["text", *line]) == 0
    return capfdbinary.readouterr().out


def test_the_text_is_written_to_the_byte(
    book: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Nothing is wrapped, padded or ended; a source is named by number, path or file name."""
    for source, names in ((0, ("1", "dracula.pdf")), (1, ("2", "notes.md"))):
        for name in names:
            said = out([str(book), "--source", name], capfdbinary)
            assert said == stored(book, source).encode()


def test_a_store_of_one_source_needs_no_name(
    model: Path, reader: Reader, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    store = read(tmp_path, model, reader=reader)
    assert out([str(store)], capfdbinary) == stored(store, 0).encode()


def test_pages_are_the_slices_between_their_starts(
    book: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """One after the other they are the whole; a heading with a comma in it is a name too."""
    whole = stored(book, 0)
    one = [out([str(book), "--source", "1", "--pages", page], capfdbinary) for page in "123"]
    assert b"".join(one) == whole.encode()
    assert out([str(book), "--source", "1", "--pages", "3, 1"], capfdbinary) == one[0] + one[2]
    assert out([str(book), "--source", "1", "--pages", "2-#3"], capfdbinary) == one[1] + one[2]
    section = out([str(book), "--source", "2", "--pages", "Two, and more"], capfdbinary)
    assert section.decode() == stored(book, 1)[stored(book, 1).index("# Two") :]


def test_marks_and_json_say_which_characters(
    book: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    whole = stored(book, 0)
    marked = out([str(book), "--source", "1", "--pages", "2", "--marks"], capfdbinary).decode()
    first, rest = marked.split("\n", 1)
    record = json.loads(out([str(book), "--source", "1", "--pages", "2", "--json"], capfdbinary))
    page = record["pages"][0]
    assert record["chars"] == len(whole)
    assert page["text"] == whole[page["start"] : page["end"]]
    assert first == f"=== p. 2, characters {page['start']}:{page['end']} ==="
    assert rest.rstrip("\n") == page["text"].rstrip("\n")


def test_what_is_not_there_is_one_line(
    book: Path, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for line, said in (
        ([], "has 2 sources, each with a text of its own; name one with --source"),
        (["--source", "3"], "there is no source 3; name one by its number: 1 is "),
        (["--source", "no.pdf"], "there is no source no.pdf"),
        (["--source", "1", "--pages", "9"], "has no page '9'; its first is '1', its last '3'"),
        (["--source", "1", "--pages", "3-1"], "has no page '3-1'"),
        (["--source", "1", "--pages", ""], ""),
    ):
        with subtests.test(line=line):
            assert run(["text", str(book), *line]) == (2 if said else 0)
            captured = capsys.readouterr()
            assert said in captured.err
            assert captured.err.count("\n") == bool(said)
