"""Forty things that a newcomer tries, on a terminal of 80 and of 40 columns, with the outcome that
each should have. The default model reads and answers where that is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.models.locate import Located
from repository import ROOT
from terminal import Seen, see

WINE = "Which wine did Harker drink with his robber steak?"

# What is typed, the exit code, and words that have to be on the screen.
THINGS: list[tuple[str, int, tuple[str, ...]]] = [
    # Looking around.
    ("", 2, ("Usage: sekv COMMAND", "Read and ask:", "sekv ingest book.pdf")),
    ("--help", 0, ("Usage: sekv COMMAND", "Keep:", "SEKV_MODEL")),
    ("help", 0, ("Usage: sekv COMMAND",)),
    ("help ask", 0, ("Usage: sekv ask", "[QUESTION...]", "For experiments:")),
    ("ask -h", 0, ("Answer questions", "Model and device:")),
    ("--version", 0, ("sekv 0.",)),
    ("version", 2, ("There is no command 'version'",)),
    ("inspct dracula.sekv", 2, ("Did you mean inspect?",)),
    ("dracula.pdf", 2, ("To ask it: sekv ask dracula.pdf",)),
    ("models", 0, ("smollm2", "Apache-2.0")),
    ("config", 0, ("no settings yet in",)),
    ("completion bash", 0, ("complete -o default -F _sekv_completion sekv",)),
    # Reading a document, wrong and right.
    ("ingest", 2, ("no SOURCE is given; name a file, a folder, or - for stdin",)),
    ("ingest nosuch.pdf", 2, ("nosuch.pdf does not exist; check the name",)),
    ("ingest dracula.pdf --modle x", 2, ("Did you mean --model?",)),
    ("ingest dracula.pdf --model ./nosuch", 2, ("there is no such folder: ./nosuch",)),
    ("ingest dracula.pdf --model nosuch", 2, ("there is no model 'nosuch'", "smollm2")),
    (
        "ingest dracula.pdf --device gpu",
        2,
        ("unknown device 'gpu'; use auto, cpu, cuda or cuda:N",),
    ),
    ("ingest dracula.pdf --method magic", 2, ("unknown method 'magic'; known: sekv",)),
    ("ingest dracula.pdf --append nosuch", 2, ("there is no store at nosuch",)),
    ("ingest empty.txt", 2, ("empty.txt", "empty")),
    ("ingest picture.png", 2, ("picture.png",)),
    ("ingest dracula.pdf --pages 900", 2, ("asks for page 900",)),
    ("ingest dracula.pdf --pages 1-2 --dry-run", 0, ("nothing was written", "about")),
    ("ingest dracula.pdf --pages 5-6", 0, ("dracula.sekv is ready", "tokens/s", "full cache")),
    ("ingest dracula.pdf --pages 5-6", 2, ("dracula.sekv", "--overwrite")),
    # Asking, wrong and right.
    ("ask nosuch.sekv Who?", 2, ("there is no store at nosuch.sekv", "sekv ingest")),
    ("ask dracula.sekv", 2, ("there is no question",)),
    ("ask dracula.sekv|  ", 2, ("the question is empty",)),
    ("ask dracula.sekv Who? --budget ten", 2, ("'ten' is neither a share",)),
    ("ask dracula.sekv Who? -f nosuch.txt", 2, ("nosuch.txt: No such file",)),
    (f"ask dracula.sekv --stats|{WINE}", 0, ("Golden Mediasch", "[1] p", "read again 0 of")),
    (f"ask dracula.sekv --json|{WINE}", 0, ('"answer":', "Golden Mediasch", '"supported": true')),
    ("ask dracula.sekv -|@" + WINE + "\n\x04", 0, ("Golden Mediasch",)),
    (f"chat dracula.sekv --quiet|@{WINE}\r/cite\r/quit\r", 0, ("Golden Mediasch", "[1] p")),
    # Keeping.
    ("list", 0, ("dracula.sekv", "smollm2")),
    ("list nosuch", 2, ("there is no folder nosuch",)),
    ("inspect dracula.sekv", 0, ("dracula.sekv", "of the full cache", "surprisal")),
    ("inspect dracula.sekv --html page.html", 0, ("page.html", "open it in a browser")),
    ("text dracula.sekv --pages 6 --marks", 0, ("=== p. 6, characters", "Golden Mediasch")),
    ("text dracula.sekv --pages 99", 2, ("has no page '99'; its first is '5'",)),
    ("verify dracula.sekv", 0, ("dracula.sekv is sound",)),
    ("rm nosuch", 2, ("nosuch",)),
    ("verify nosuch", 2, ("there is no store at nosuch",)),
    ("serve nosuch", 2, ("there is no store at nosuch",)),
    # Measuring.
    ("bench", 2, ("--questions and --documents",)),
    ("train", 2, ("name a folder of .txt files with --text",)),
]


@pytest.fixture(scope="module")
def folder(smollm2: Located, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a newcomer has: a book, an empty file, a picture."""
    made = tmp_path_factory.mktemp("newcomer")
    shutil.copy(ROOT / "docs/sample/dracula.pdf", made)
    (made / "empty.txt").touch()
    (made / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    return made


def tried(line: str, columns: int, folder: Path) -> Seen:
    """A line as it stands in the list: what follows "|" is one argument, or typed after "|@"."""
    words, bar, rest = line.partition("|")
    arguments, typed = words.split(), ""
    if rest.startswith("@"):
        typed = rest[1:]
    elif bar:
        arguments.append(rest)
    return see(arguments, columns, folder, typed, SEKV_CONFIG=str(folder / "config.toml"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("columns", [80, 40])
def test_what_a_newcomer_tries_ends_as_it_should(
    columns: int, folder: Path, subtests: pytest.Subtests
) -> None:
    """With the exit code, the words, no traceback, and refusals that are one sentence or two."""
    shutil.rmtree(folder / "dracula.sekv", ignore_errors=True)
    for line, code, said in THINGS:
        with subtests.test(line=line):
            seen = tried(line, columns, folder)
            assert seen.code == code, seen.text
            for words in said:
                assert words in seen.words.replace("\n", " "), seen.text
            assert "Traceback" not in seen.text
            assert "defect" not in seen.text
            if code == 2 and line:
                assert seen.words.rpartition("sekv: ")[2].count(". ") <= 2, seen.text
            if "--json" in line:
                json.loads(seen.text.strip().splitlines()[-1])


def test_there_are_forty_things() -> None:
    assert len(THINGS) >= 40
