"""Small documents of several formats, made byte by byte, for tests. Not a test itself."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROSE = [
    "The harbour lay quiet in the morning.",
    "Nobody had seen the ship come in.",
    "Only the lamps along the quay were lit.",
    "A letter waited at the custom house.",
]


def make_pdf(pages: Sequence[Sequence[str]]) -> bytes:
    """A PDF whose pages hold these lines of text; a page without lines has no text."""
    return painted([said(72, 760, *lines) if lines else "" for lines in pages])


def said(x: float, y: float, *lines: str, angle: int = 0, font: str = "F1") -> str:
    """Lines of text from a point on, 14 points apart, set at an angle counted against the clock.

    Text of the font F2 is any characters of the basic plane, each 6.6 points wide.
    """
    matrix = {0: "1 0 0 1", 90: "0 1 -1 0", 180: "-1 0 0 -1", 270: "0 -1 1 0"}[angle]
    strings = [
        f"<{line.encode('utf-16-be').hex()}>" if font == "F2" else f"({line})" for line in lines
    ]
    shown = " T* ".join(f"{string} Tj" for string in strings)
    return f"BT /{font} 11 Tf 14 TL {matrix} {x} {y} Tm {shown} ET\n"


WIDE_FONT = (
    "<< /Type /Font /Subtype /Type0 /BaseFont /Wide /Encoding /Identity-H /ToUnicode {1} 0 R"
    " /DescendantFonts [<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Wide /DW 600"
    " /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /FontDescriptor"
    " << /Type /FontDescriptor /FontName /Wide /Flags 4 /FontBBox [0 -200 1000 800] /Ascent 800"
    " /Descent -200 /CapHeight 700 /StemV 80 /ItalicAngle 0 >> >>] >>"
)


def to_unicode() -> bytes:
    """A character table in which each code is its own character."""
    ranges = [f"<{high:02x}00> <{high:02x}ff> <{high:02x}00>" for high in range(256)]
    blocks = [ranges[at : at + 64] for at in range(0, 256, 64)]
    listed = "\n".join(
        f"{len(block)} beginbfrange\n" + "\n".join(block) + "\nendbfrange" for block in blocks
    )
    return streamed(
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /W def"
        f" /CMapType 2 def 1 begincodespacerange <0000> <ffff> endcodespacerange\n{listed}\n"
        "endcmap end end"
    )


def streamed(content: str | bytes) -> bytes:
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(raw), raw)


def painted(
    pages: Sequence[str],
    *,
    entries: Mapping[int, str] | None = None,
    catalog: str = "",
    objects: Sequence[str] = (),
    wide: bool = False,
) -> bytes:
    """A PDF with these page contents.

    Args:
        entries: more entries of a page's dictionary, by its index.
        objects: more objects, the first of them number 4 + 2 * pages.
        wide: whether there is a font F2, after the other objects.
    """
    count = len(pages)
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(count))
    table = 4 + 2 * count + len(objects)
    fonts = f"/F1 3 0 R /F2 {table + 1} 0 R" if wide else "/F1 3 0 R"
    parts = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        f"<< /Type /Pages /Count {count} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, content in enumerate(pages):
        parts.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * at} 0 R"
            f" /Resources << /Font << {fonts} >> >> {(entries or {}).get(at, '')} >>".encode()
        )
        parts.append(streamed(content))
    parts += [item.encode("latin-1") for item in objects]
    if wide:
        parts += [to_unicode(), WIDE_FONT.replace("{1}", str(table)).encode()]
    body, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    listed = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(parts) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, listed) + trailer


def encrypted(raw: bytes, password: str, owner: str | None = None) -> bytes:
    """The PDF under a password to open it ("" for none), and one of its owner."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(raw)))
    writer.encrypt(password, owner, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def zipped(members: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return buffer.getvalue()


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OPS/book.opf"/></rootfiles></container>'
)
XHTML = "application/xhtml+xml"


def make_epub(
    chapters: Mapping[str, str],
    toc: Mapping[str, str | bytes],
    manifest: str,
    spine: str = "",
    metadata: str = "",
) -> bytes:
    items = "".join(
        f'<item id="c{at}" href="{name.replace(" ", "%20")}" media-type="{XHTML}"/>'
        for at, name in enumerate(chapters)
    )
    refs = "".join(f'<itemref idref="c{at}"/>' for at in range(len(chapters)))
    opf = (
        f'<package xmlns="http://www.idpf.org/2007/opf">{metadata}'
        f"<manifest>{items}{manifest}</manifest>"
        f"<spine {spine}>{refs}</spine></package>"
    )
    members = {f"OPS/{name}": content for name, content in chapters.items()}
    return zipped({"META-INF/container.xml": CONTAINER, "OPS/book.opf": opf, **members, **toc})


CHAPTERS = {
    "b.xhtml": "<html><head><title>no</title></head><body><p>Dedication.</p></body></html>",
    "a one.xhtml": '<html><body><h1>I</h1><p>Ship&nbsp;ahoy.</p><h2 id="s2">I.2</h2><p>Fog.</p>'
    "</body></html>",
    "z.xhtml": "<html><body><h1>II</h1><p>Quay.</p></body></html>",
}
NAV = (
    '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>'
    '<nav epub:type="landmarks"><ol><li><a href="z.xhtml">no</a></li></ol></nav>'
    '<nav epub:type="toc"><ol><li><a href="a%20one.xhtml">Chapter <b>One</b></a><ol><li>'
    '<a href="a%20one.xhtml#s2">Fog</a></li></ol></li><li><a href="z.xhtml">Chapter Two</a></li>'
    '<li><a href="gone.xhtml">Gone</a></li></ol></nav></body></html>'
)
NCX = (
    '<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://www.daisy.org/ncx-2005-1.dtd">'
    '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>First'
    '</text></navLabel><content src="a%20one.xhtml"/><navPoint><navLabel><text>Fog</text>'
    '</navLabel><content src="a%20one.xhtml#s2"/></navPoint></navPoint></navMap></ncx>'
)
NAV_ITEM = f'<item id="nav" href="nav.xhtml" properties="nav" media-type="{XHTML}"/>'
NCX_ITEM = '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'


W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def make_docx(body: str, **members: str) -> bytes:
    document = f'<w:document xmlns:w="{W}" xmlns:mc="urn:mc"><w:body>{body}</w:body></w:document>'
    others = {f"word/{name}.xml": content for name, content in members.items()}
    return zipped({"word/document.xml": document, **others})


def para(text: str, style: str = "") -> str:
    head = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{head}<w:r><w:t>{text}</w:t></w:r></w:p>"


def cell(*paragraphs: str) -> str:
    return f"<w:tc>{''.join(map(para, paragraphs))}</w:tc>"


def row(*cells: str) -> str:
    return f"<w:tr>{''.join(cells)}</w:tr>"


STYLES = (
    f'<w:styles xmlns:w="{W}"><w:style w:styleId="U1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Own"><w:name w:val="Mine"/><w:basedOn w:val="U1"/></w:style>'
    '<w:style w:styleId="Loop"><w:name w:val="L"/><w:basedOn w:val="Loop"/></w:style>'
    '<w:style w:styleId="U5"><w:name w:val="heading 5"/></w:style></w:styles>'
)
