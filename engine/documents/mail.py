"""E-mail, mailboxes and web pages saved as MIME (.eml, .mbox, .mht): of each message the head
that people read, then the text.

The standard library takes the message apart. Of alternatives the plain text is
read, or the HTML where there is no other; attachments are named and not read.
"""

from __future__ import annotations

import codecs
import email
import re
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from typing import TYPE_CHECKING

from engine.documents.html import load_html
from engine.documents.text import decode
from engine.documents.types import Extract
from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN = ("From", "To", "Cc", "Date", "Subject")
_FIELD = re.compile(rb"[!-9;-~]+:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*\r?\n")
# Between the messages of a mailbox: "From ana@kiel.example Mon Jan  1 09:00:00 2024".
_SEPARATOR = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From \S+ [^\r\n]*\d\d:\d\d[^\r\n]*\r?\n")
_TYPICAL = re.compile(
    rb"(?:received|return-path|delivered-to|message-id|mime-version|x-[a-z-]+|from|date|subject):",
    re.IGNORECASE,
)
MAX_PARTS = 1_000
MAX_DEPTH = 50


def looks_like_mail(raw: bytes) -> bool:
    """Whether bytes begin with the head of a message: a blank line after fields of which three
    are such as only a message has."""
    at, typical = 0, set()
    head = _messages(raw)[0][: 2**16]
    while match := _FIELD.match(head, at):
        if kind := _TYPICAL.match(match.group()):
            typical.add(kind.group().lower())
        at = match.end()
    return len(typical) >= 3 and head[at : at + 2].startswith((b"\n", b"\r\n"))


def load_mail(raw: bytes) -> Extract:
    """Each message: who wrote it to whom and when, then its text.

    Raises:
        DocumentError: one has no text that can be read; a predicate without a subject.
    """
    extracts = [_read(message) for message in _messages(raw)]
    notes = dict.fromkeys(note for extract in extracts for note in extract.notes)
    return Extract("\n".join(extract.text for extract in extracts), (), tuple(notes))


def _messages(raw: bytes) -> list[bytes]:
    """The messages of a mailbox, or the one that this is; without a byte order mark."""
    first, *others = _SEPARATOR.split(raw.removeprefix(codecs.BOM_UTF8))
    return [first, *others] if first.strip() or not others else others


def _read(raw: bytes) -> Extract:
    try:
        message = email.message_from_bytes(raw)
        parts = list(_texts(message, 0))
        attached = [name for part in message.walk() if (name := _attached(part))]
    except (MessageError, ValueError, LookupError, RecursionError, TypeError) as error:
        raise DocumentError(f"is a damaged e-mail: {error}") from error
    head = [f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))]
    blocks, notes = ["\n".join(head)] if head else [], []
    for part in parts[:MAX_PARTS]:
        try:
            extract = _text(part)
        except DocumentError as error:
            notes.append(f"a part of type {part.get_content_type()} cannot be read: it {error}")
            continue
        notes += [note for note in extract.notes if note not in notes]
        if extract.text.strip():
            blocks.append(extract.text.strip("\n"))
    if len(blocks) <= bool(head) and not attached:
        raise DocumentError("is an e-mail without a text part that can be read")
    if attached:
        names = ", ".join(attached[:5]) + (" ..." if len(attached) > 5 else "")
        things = "1 attachment is" if len(attached) == 1 else f"{len(attached)} attachments are"
        notes.append(f"{things} not read: {names}")
    return Extract("\n\n".join(blocks) + "\n", (), tuple(notes))


def _texts(message: Message, depth: int) -> Iterator[Message]:
    """The parts to read, in order."""
    if depth > MAX_DEPTH:
        return
    if not message.is_multipart():
        if message.get_content_maintype() == "text" and not _attached(message):
            yield message
        return
    children = [part for part in message.get_payload() if isinstance(part, Message)]
    if message.get_content_subtype() == "alternative":
        ways = [list(_texts(part, depth + 1)) for part in children]
        plain = [way for way in ways if way and way[0].get_content_subtype() == "plain"]
        children = (plain or [way for way in ways if way] or [[]])[-1]
        yield from children
        return
    for part in children:
        yield from _texts(part, depth + 1)


def _attached(part: Message) -> str:
    """The name of a part that is not to be read with the message; "" for one that is."""
    if part.is_multipart():
        return ""
    name = part.get_filename() or ""
    if part.get_content_disposition() == "attachment" or part.get_content_maintype() != "text":
        return " ".join(_decoded(name).split()) or part.get_content_type()
    return ""


def _text(part: Message) -> Extract:
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    charset = str(part.get_content_charset() or "")
    if part.get_content_subtype() == "html":
        return load_html(raw, charset)
    text, notes = decode(raw, charset)
    return Extract(text, (), notes)


def _header(message: Message, name: str) -> str:
    return " ".join(_decoded(str(message.get(name, ""))).split())


def _decoded(value: str) -> str:
    """A header as people read it; what cannot be decoded stays as it is written."""
    try:
        parts = decode_header(value)
        return "".join(
            part if isinstance(part, str) else part.decode(charset or "utf-8", errors="replace")
            for part, charset in parts
        )
    except (MessageError, LookupError, ValueError):
        return value
