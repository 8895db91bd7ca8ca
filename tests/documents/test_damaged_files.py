"""Documents that something has damaged: text or one line, in bounded time and memory.

The damage is drawn from a seed, so that what fails once fails again. The long run takes real
documents where there are any (SEKV_TEST_DATA, as in `test_real_files`).
"""

from __future__ import annotations

import random
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import engine.documents.pdf as pdf
from damages import damaged
from engine.documents import load
from engine.errors import DocumentError
from repository import COLLECTION as DATA
from tiny_documents import (
    CHAPTERS,
    NAV,
    NAV_ITEM,
    PROSE,
    STYLES,
    cell,
    make_docx,
    make_epub,
    make_pdf,
    para,
    row,
)

LARGEST = 2 * 2**20
"""Bytes of the largest real document that is damaged: what is larger is only slower."""

LIMIT = 300
"""Seconds after which one document counts as hanging, on a machine that does other things too."""

MORE_MEMORY = 2**30
"""Bytes that reading may add to this process, and that a process for PDFs may take."""


# ---------------------------------------------------------------------------- reading


@contextmanager
def no_hang(what: str) -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def most_memory(who: int) -> int:
    """Bytes that a process, or the largest of its children, had resident at most."""
    return 1024 * resource.getrusage(who).ru_maxrss


def outcome(path: Path) -> str:
    """Read a document: "text", or "refused" in one line that begins with its name."""
    try:
        (source,) = load([str(path)]).sources
    except DocumentError as error:
        assert str(error).startswith(f"{path} ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return "refused"
    starts = [page.start for page in source.pages]
    assert starts == sorted(starts)
    assert not starts or (starts[0] == 0 and starts[-1] <= len(source.text))
    assert source.text.encode("utf-8", "surrogatepass")
    return "text"


def check(good: bytes, path: Path, seeds: range) -> Counter[str]:
    """Damage a document once per seed and read it: what came of it."""
    own = most_memory(resource.RUSAGE_SELF)
    found: Counter[str] = Counter()
    for seed in seeds:
        path.write_bytes(damaged(random.Random(seed), good))
        with no_hang(f"{path.name}, seed {seed}"):
            found[outcome(path)] += 1
    assert most_memory(resource.RUSAGE_SELF) - own < MORE_MEMORY
    return found


def tiny(kind: str) -> bytes:
    """A document of a kind that has something of everything."""
    if kind == "pdf":
        return make_pdf([PROSE, PROSE[:2], [], PROSE[1:]])
    if kind == "epub":
        return make_epub(CHAPTERS, {"OPS/nav.xhtml": NAV}, NAV_ITEM)
    table = f"<w:tbl>{row(cell('Ship'), cell('Port', 'of call')) * 3}</w:tbl>"
    return make_docx(para("One", "U1") + para("text") * 4 + table, styles=STYLES)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that takes for ever costs seconds and not the half minute it may cost a user."""
    monkeypatch.setattr(pdf, "PAGE_SECONDS", 5)
    monkeypatch.setattr(pdf, "MEMORY_BYTES", MORE_MEMORY)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("kind", "count"), [("pdf", 10), ("epub", 25), ("docx", 25)])
def test_a_damaged_document_is_text_or_one_line(kind: str, count: int, tmp_path: Path) -> None:
    found = check(tiny(kind), tmp_path / f"a.{kind}", range(count))
    assert found.total() == count
    assert len(found) == 2, "the damage is too little or too much to tell anything"


def test_the_same_seed_is_the_same_damage() -> None:
    for kind in ("pdf", "epub", "docx"):
        good = tiny(kind)
        made = [damaged(random.Random(seed), good) for seed in range(20)]
        assert made == [damaged(random.Random(seed), good) for seed in range(20)]
        assert len({*made, good}) > 15


def real(kind: str) -> list[bytes]:
    files: list[Any] = sorted(DATA.rglob(f"*.{kind}")) if DATA.is_dir() else []
    found = [path.read_bytes() for path in files if 0 < path.stat().st_size <= LARGEST]
    return [raw for raw in found if len(raw) > 100] or [tiny(kind)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("kind", "count"), [("pdf", 200), ("epub", 150), ("docx", 150)])
def test_five_hundred_damaged_documents_are_text_or_one_line(
    kind: str, count: int, tmp_path: Path
) -> None:
    """The long run, over every real document in turn; `-s` shows what came of them."""
    found: Counter[str] = Counter()
    documents = real(kind)
    for index, good in enumerate(documents):
        found += check(good, tmp_path / f"a.{kind}", range(index, count, len(documents)))
    assert found.total() == count
    assert most_memory(resource.RUSAGE_CHILDREN) < MORE_MEMORY
    print(kind, len(documents), "documents:", dict(found))
