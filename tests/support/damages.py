"""What may be wrong with a document, drawn from a seed. Not a test itself."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable

from tiny_documents import zipped

NUMBERS = (b"0", b"-1", b"1", b"65536", b"2147483648", b"99999999999999999999", b"1e309")

Damage = Callable[[random.Random, bytes], bytes]


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
