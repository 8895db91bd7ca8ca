"""Documents that something has damaged: text or one line, in bounded time and memory.

The damage is drawn from a seed, so that what fails once fails again. The long run takes real
documents where there are any (SEKV_TEST_DATA, as in `test_real_files`).
"""

from __future__ import annotations

import io
import random
import re
import resource
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import engine.documents.pdf as pdf
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
    zipped,
)

LARGEST = 2 * 2**20
"""Bytes of the largest real document that is damaged: what is larger is only slower."""

LIMIT = 300
"""Seconds after which one document counts as hanging, on a machine that does other things too."""

MORE_MEMORY = 2**30
"""Bytes that reading may add to this process, and that a process for PDFs may take."""

NUMBERS = (b"0", b"-1", b"1", b"65536", b"2147483648", b"99999999999999999999", b"1e309")

Damage = Callable[[random.Random, bytes], bytes]


# ---------------------------------------------------------------------------- damage


def flipped(chance: random.Random, raw: bytes) -> bytes:
    out = bytearray(raw)
    for _ in range(chance.choice((1, 4, 30, 300))):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def cut(chance: random.Random, raw: bytes) -> bytes:
    return raw[: chance.randrange(1, len(raw))]


def missing(chance: random.Random, raw: bytes) -> bytes:
    start, end = stretch(chance, raw)
    return raw[:start] + raw[end:]


def blanked(chance: random.Random, raw: bytes) -> bytes:
    start, end = stretch(chance, raw)
    return raw[:start] + bytes(end - start) + raw[end:]


def repeated(chance: random.Random, raw: bytes) -> bytes:
    start, end = stretch(chance, raw)
    times = chance.choice((2, 3, min(1000, 1 + 2**20 // (end - start))))
    return raw[:start] + raw[start:end] * times + raw[end:]


def moved(chance: random.Random, raw: bytes) -> bytes:
    start, end = stretch(chance, raw)
    rest = raw[:start] + raw[end:]
    place = chance.randrange(len(rest) + 1)
    return rest[:place] + raw[start:end] + rest[place:]


def miscounted(chance: random.Random, raw: bytes) -> bytes:
    """Some numbers that are written out are others: lengths, counts, references."""
    places = [match.span() for match in re.finditer(rb"\d+", raw)]
    if not places:
        return flipped(chance, raw)
    out = raw
    for start, end in sorted(chance.sample(places, min(len(places), 5)), reverse=True):
        out = out[:start] + chance.choice(NUMBERS) + out[end:]
    return out


def misbracketed(chance: random.Random, raw: bytes) -> bytes:
    """Some brackets are missing, or others, or very many."""
    signs = [match.span() for match in re.finditer(rb"<<|>>|[\[\]<>()/]", raw)]
    if not signs:
        return flipped(chance, raw)
    out = raw
    for start, end in sorted(chance.sample(signs, min(len(signs), 3)), reverse=True):
        other = chance.choice((b"", b"<", b">>", b"[", b"/", raw[start:end] * 5000))
        out = out[:start] + other + out[end:]
    return out


def stretch(chance: random.Random, raw: bytes) -> tuple[int, int]:
    """Some bytes in a row, at least one."""
    start = chance.randrange(len(raw))
    return start, min(len(raw), start + chance.choice((1, 8, 100, 4096)))


DAMAGES: tuple[Damage, ...] = (
    flipped, cut, missing, blanked, repeated, moved, miscounted, misbracketed,
)  # fmt: skip


def damaged(chance: random.Random, raw: bytes) -> bytes:
    """A document with one thing wrong. Of an archive it may be a member: checksums of archives
    are right more often than what somebody wrote into them."""
    if not raw.startswith(b"PK") or chance.random() < 0.3:
        return chance.choice(DAMAGES)(chance, raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    texts = [name for name in members if name.endswith((".xml", ".xhtml", ".opf", ".ncx"))]
    name = chance.choice(texts)
    what = chance.random()
    if what < 0.1:
        del members[name]
    elif what < 0.2:
        members[name] = members[chance.choice(texts)]
    else:
        members[name] = chance.choice(DAMAGES)(chance, members[name] or b"?")
    return zipped(members)


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
