"""Plain text and Markdown: bytes to characters, headings to sections.

The text of a file is its characters with line ends turned into "\\n"; nothing
else is changed, so offsets into a UTF-8 file with Unix line ends are offsets
into the text. Markdown stays as written; a parser only finds its headings.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from itertools import pairwise

from engine.documents.types import Extract, Page
from engine.errors import DocumentError

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# Encodings that text files are met in; rarer ones only win by mistake.
_CANDIDATES = [
    "cp1250",
    "cp1251",
    "cp1252",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "cp1257",
    "cp1258",
    "iso8859_2",
    "iso8859_5",
    "iso8859_7",
    "iso8859_8",
    "iso8859_9",
    "koi8_r",
    "koi8_u",
    "cp866",
    "cp850",
    "mac_roman",
    "cp874",
    "cp932",
    "euc_jp",
    "iso2022_jp",
    "gb18030",
    "big5",
    "euc_kr",
]
_DETECT_BYTES = 2**18
_IDEOGRAPH = re.compile("[\u3000-\ud7ff]")
_PLAIN_TAIL = re.compile(rb"[\t\n\r -~]{4,}\Z")
_SEVERAL_BYTES = frozenset({"cp932", "euc_jp", "iso2022_jp", "gb18030", "big5", "euc_kr"})
_CJK = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"})
_WIDE_SAMPLE = 4_000
# A character of UTF-8 beyond ASCII; what such look like in an encoding of single bytes: a sign
# of the upper half that is no letter right after one that is.
_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_UNNATURAL = re.compile("[^\\W\\d_\\x00-\\x7f](?:[^\\w\\s\\x00-\\x7f]|[²³¹ºªµƒˆ])")
# Signs that stand between letters in no Western language, but do when the
# text is of another code page (Polish, Czech, Turkish, Baltic).
_FOREIGN = re.compile("(?<=[^\\W\\d_])[¡¢£¤¥¦§¨©¬®¯°±²³´µ¶¸¹¼½¾¿×÷ðýþ](?=[a-zà-ÿ])")
_WORD = re.compile("[^\\W\\d_]{2,}")
_ACCENTED = re.compile("[À-ÿ]")
_ALL_ACCENTS = re.compile("[À-ÿ]+")


def unix_lines(text: str) -> str:
    """Every line end as "\\n"; a byte order mark left at the front is dropped."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def decode(raw: bytes, declared: str = "") -> tuple[str, tuple[str, ...]]:
    """Characters of `raw`, with a remark when the encoding had to be guessed.

    A byte order mark decides, then UTF-8 if the bytes are valid, then what the
    file declares about itself, then detection by content.

    Args:
        declared: an encoding that the file names (HTML, XML); "" if it names none.
    Raises:
        DocumentError: the bytes are no text. The message is a predicate
            without a subject ("is binary, not text"); the caller names the file.
    """
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            name = encoding.upper()
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError:
                if encoding == "utf-8-sig":
                    break
                raise DocumentError(f"begins as {name} but is damaged; save it again") from None
            if encoding == "utf-16" and _goes_on_in_bytes(raw, text):
                raise DocumentError(f"begins as {name} and goes on in single bytes; save it again")
            return unix_lines(text), ()
    if b"\0" in raw or len(_CONTROLS.findall(raw)) > max(1, len(raw) // 200):
        return _wide(raw), ()
    try:
        return unix_lines(raw.decode("utf-8")), ()
    except UnicodeDecodeError:
        pass
    if declared:
        try:
            text = raw.decode(_web_name(declared))
            # Escapes that some encodings have can name half a character.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            return unix_lines(text), ()
        except (LookupError, UnicodeError):  # an unknown or a wrong declaration: detect
            pass
    if mixed := _mixed(raw):
        return mixed
    repaired = raw.decode("utf-8", errors="replace")
    broken = repaired.count("\ufffd")
    whole = len(_SEQUENCE.findall(raw))
    if broken * 20 < sum(sign > "\x7f" for sign in repaired) or broken * 3 <= whole:
        return unix_lines(repaired), (f"{broken} invalid bytes in UTF-8 text were replaced",)
    try:
        encoding = _detect(raw)
    except DocumentError:
        if len(raw) % 2:
            raise
        return _wide(raw), ()
    text = raw.decode(encoding, errors="replace")
    return unix_lines(text), (f"encoding guessed: {encoding}",)


def _goes_on_in_bytes(raw: bytes, text: str) -> bool:
    """Whether plain bytes were added to UTF-16, where two of them look like one ideograph."""
    tail = _PLAIN_TAIL.search(raw)
    return tail is not None and not _IDEOGRAPH.search(text, 0, tail.start() // 2 - 1)


def _web_name(declared: str) -> str:
    """As browsers do: what calls itself Latin-1 or ASCII is read as Windows-1252."""
    name = codecs.lookup(declared).name
    return "cp1252" if name in {"iso8859-1", "ascii"} else name


def _wide(raw: bytes) -> str:
    """UTF-16 without a mark, known by what it says: read so, its characters are common ones of
    one family of scripts, which two bytes of anything else never are for long."""
    best, chosen = 0.95, ""
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        sample = text[:_WIDE_SAMPLE]
        share = sum(map(_common, sample)) / max(1, len(sample))
        if share > best and _one_script(sample):
            best, chosen = share, text
    if chosen:
        return unix_lines(chosen)
    raise DocumentError("is binary, not text; if it is UTF-16, save it as UTF-8")


def _common(sign: str) -> bool:
    """A character of an alphabet, of common ideographs or kana, or what stands between them."""
    code = ord(sign)
    if code < 0x250:
        return sign.isprintable() or sign.isspace()
    ranges = ((0x370, 0x1200), (0x2010, 0x2027), (0x3000, 0x3100), (0x4E00, 0xA000),
              (0xAC00, 0xD7A4), (0xFF00, 0xFFF0))  # fmt: skip
    return sign.isprintable() and any(first <= code < end for first, end in ranges)


def _one_script(sample: str) -> bool:
    """Whether the letters of a text are of one family of scripts, some Latin ones aside."""
    names = (unicodedata.name(sign, "?").split(" ")[0].split("-")[0] for sign in sample
             if sign.isalpha())  # fmt: skip
    families = Counter("CJK" if name in _CJK else name for name in names)
    letters = families.total()
    if len(families) > 1:
        families.pop("LATIN", None)
    first = families.most_common(1)[0][1] if families else 0
    return letters > 3 and first * 20 >= families.total() * 19 and first * 4 >= letters


def _mixed(raw: bytes) -> tuple[str, tuple[str, ...]] | None:
    """Lines of which some are UTF-8 and others in one older encoding, as where files were joined.

    None where this is not so: where no line is UTF-8 beyond ASCII, or what looks like UTF-8 is
    natural in the other encoding.
    """
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    # Of a line that is not valid UTF-8 but has a character of it, a byte is damaged.
    older = [
        at for at, line in enumerate(lines) if not _is_utf8(line) and not _SEQUENCE.search(line)
    ]
    beyond = [at for at, line in enumerate(lines) if not line.isascii()]
    other = sorted(set(beyond) - set(older))
    if not older or not other:
        return None
    try:
        encoding = _detect(b"\n".join(lines[at] for at in older))
    except DocumentError:
        return None
    if encoding in _SEVERAL_BYTES:
        return None
    misread = b"\n".join(lines[at] for at in other).decode(encoding, errors="replace")
    if len(_UNNATURAL.findall(misread)) * 2 < len(other):
        return None
    chosen = set(older)
    text = "\n".join(
        line.decode(encoding if at in chosen else "utf-8", errors="replace")
        for at, line in enumerate(lines)
    )
    many = "1 line is" if len(older) == 1 else f"{len(older)} lines are"
    notes = [f"{many} not UTF-8 as the others; encoding guessed: {encoding}"]
    broken = text.count("\ufffd")
    if broken:
        notes.append(f"{broken} invalid bytes in UTF-8 text were replaced")
    return unix_lines(text), tuple(notes)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _detect(raw: bytes) -> str:
    """The most likely encoding of bytes that are not UTF-8.

    Short Western texts carry too few accents for a statistical detector, so
    Windows-1252 is taken whenever it reads naturally; the detector decides the rest.
    """
    from charset_normalizer import from_bytes

    sample = _sample(raw)
    western = sample.decode("cp1252", errors="replace")
    words = [word for word in _WORD.findall(western) if _ACCENTED.search(word)]
    # No Western word is accents alone; in another alphabet nearly each is.
    other = sum(_ALL_ACCENTS.fullmatch(word) is not None for word in words)
    odd = len(_FOREIGN.findall(western)) + western.count("\ufffd")
    if odd * 20 <= sum(c > "\x7f" for c in western) and other * 5 <= len(words):
        return "cp1252"
    best = from_bytes(sample, cp_isolation=_CANDIDATES, enable_fallback=False).best()
    if best is None:
        raise DocumentError("is neither text nor any format that sekv reads")
    return best.encoding


def _sample(raw: bytes) -> bytes:
    """Lines that hold more than ASCII, up to a limit. No supported multi-byte encoding has
    a line end or a space inside a character, so those are safe places to cut."""
    lines: list[bytes] = []
    room = _DETECT_BYTES
    for line in raw.split(b"\n"):
        if room <= 0:
            break
        if not line.isascii():
            cut = (
                line if len(line) <= room else line[: line.rfind(b" ", 0, room) + 1] or line[:room]
            )
            lines.append(cut)
            room -= len(cut)
    return b"\n".join(lines)


def load_text(raw: bytes) -> Extract:
    """A text file: its characters; form feeds, where it has any, begin pages.

    That is how `pdftotext` writes pages: each ends with a form feed, the last one too.
    """
    text, notes = decode(raw)
    if "\f" not in text:
        return Extract(text, (), notes)
    starts = [0, *(match.end() for match in re.finditer("\f", text))]
    if not text[starts[-1] :].strip():
        starts.pop()
    return Extract(text, tuple(Page(str(at), start) for at, start in enumerate(starts, 1)), notes)


def load_markdown(raw: bytes) -> Extract:
    """Markdown as written; sections are its headings of the first three levels."""
    from markdown_it import MarkdownIt

    text, notes = decode(raw)
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    body = _after_front_matter(text)
    offset = text.count("\n", 0, body)
    # Inline parsing is most of the time and only the headings' own is needed.
    blocks = MarkdownIt("commonmark").disable("inline").parse(text[body:])
    inline = MarkdownIt("commonmark")
    pages: list[Page] = []
    for opening, content in pairwise(blocks):
        if opening.type != "heading_open" or opening.level or opening.tag > "h3":
            continue
        spans = inline.parseInline(content.content[:1_000])[0].children or []
        label = " ".join("".join(span.content for span in spans).split())
        if label and opening.map:
            pages.append(Page(label[:200], starts[opening.map[0] + offset]))
    if pages and pages[0].start:
        pages.insert(0, Page("", 0))
    return Extract(text, tuple(pages), notes)


def _after_front_matter(text: str) -> int:
    """Where the text after a YAML header starts; its closing line would read as a heading."""
    if not text.startswith("---\n"):
        return 0
    end = text.find("\n---\n", 3)
    return end + 5 if 0 < end < 2**16 else 0
