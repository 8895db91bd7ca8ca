"""`sekv inspect --html`: one self-contained page of a store and, where there is one, of an answer.

Data in, text out: the page is a template with its style, its script and the data as JSON inside.
Nothing on it is loaded from anywhere, which its content security policy also says, and no text of
a document is ever markup: it stands in escaped JSON and is shown as text nodes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from sekv_cli import format, names

if TYPE_CHECKING:
    from engine.types import InspectReport, SpanView

MOST_READS = 36_000
"""Decisions that a page lists one by one, the heaviest of all; about 0.6 MB. Rates count all."""

SCALE = 10_000
"""Shares of attention are whole numbers of this part on the page."""


def render(store: str, report: InspectReport, texts: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        store: its name, for the title.
        texts: of every source, "" where the store keeps none.
    """
    from jinja2 import Environment

    folder = files(__name__)
    style, script = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    environment = Environment(autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
    page: str = template.render(
        title=PurePath(store).name,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=contents(store, report, texts),
    )
    return page


def contents(store: str, report: InspectReport, texts: Sequence[str]) -> dict[str, Any]:
    """What the page shows, as JSON values. Places in a text count UTF-16 units, as scripts do."""
    manifest = report.manifest
    sources, columns = _book(report, texts)
    return {
        "store": PurePath(store).name,
        "facts": _facts(report),
        "sources": sources,
        "spans": columns,
        "layers": manifest["model"]["layers"],
        "heads": manifest["model"]["kv_heads"],
        "asked": _asked(report, texts) if report.question else None,
    }


def _facts(report: InspectReport) -> list[list[str]]:
    manifest, tiers = report.manifest, report.tiers
    stored = sum(size for name, size in tiers.items() if name != "full")
    return [
        ["model", str(manifest["model"]["id"])],
        ["method", str(manifest["method"])],
        ["tokens", format.count_text(manifest["tokens"])],
        ["spans", format.count_text(len(report.spans))],
        ["anchors", format.count_text(sum(span.anchor for span in report.spans))],
        ["store", format.bytes_text(stored)],
        ["always resident", _resident(tiers)],
        ["full cache", format.bytes_text(tiers.get("full", 0))],
    ]


def _resident(tiers: Mapping[str, int]) -> str:
    """What of the store is in memory whatever is asked, beside the full cache."""
    device, full = tiers.get("device", 0), tiers.get("full", 0)
    share = f" ({format.share_text(device, full)} of the full cache)" if full else ""
    return f"{format.bytes_text(device)}{share}"


def _book(
    report: InspectReport, texts: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The sources with their texts and pages, and the spans as columns."""
    by_source: list[list[SpanView]] = [[] for _ in texts]
    source = reached = 0
    entries = report.manifest["sources"]
    for span in report.spans:  # in document order; a file may be a source twice
        while span.source != entries[source]["path"] or span.start < reached:
            source, reached = source + 1, 0
        by_source[source].append(span)
        reached = span.start
    called = names.shortest(str(entry["path"]) for entry in entries)
    sources: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {
        name: [] for name in ("source", "start", "end", "anchor", "surprisal")
    }
    for index, (entry, text, spans) in enumerate(zip(entries, texts, by_source, strict=True)):
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        pages = _pages(entry)
        if not text:
            text, starts, ends, pages = _outline(spans)
        units = _utf16(text)
        columns["source"] += [index] * len(spans)
        columns["start"] += [units(at) for at in starts]
        columns["end"] += [units(at) for at in ends]
        columns["anchor"] += [int(span.anchor) for span in spans]
        columns["surprisal"] += [round(100 * span.surprisal) for span in spans]
        sources.append(
            {
                "name": format.clean(called[entry["path"]]),
                "text": text.encode("utf-8", "replace").decode("utf-8"),
                "pages": [[label, units(at)] for label, at in pages],
            }
        )
    return sources, columns


def _pages(entry: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The pages of a source as the manifest has it: what each is called, and where it begins."""
    unknown = [""] * len(entry["pages"])
    sheets, printed = (entry.get(name) or unknown for name in ("sheets", "printed"))
    return [
        (names.page(str(label), str(sheet), number), int(at))
        for (label, at), sheet, number in zip(entry["pages"], sheets, printed, strict=True)
    ]


def _outline(
    spans: Sequence[SpanView],
) -> tuple[str, list[int], list[int], list[tuple[str, int]]]:
    """What stands for the text of a source that a store keeps no text of: a line for each span."""
    lines: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    pages: list[tuple[str, int]] = []
    at = 0
    for span in spans:
        line = f"[span {span.id}, tokens {span.start_token} to {span.end_token}]\n"
        if span.page and (not pages or pages[-1][0] != names.page(span.page)):
            pages.append((names.page(span.page), at))
        starts.append(at)
        at += len(line)
        ends.append(at)
        lines.append(line)
    return "".join(lines), starts, ends, pages


def _utf16(text: str) -> Callable[[int], int]:
    """From places in a text to places in the same text as UTF-16."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes) or codes.max() <= 0xFFFF:
        return lambda at: at
    wide = np.concatenate([[0], np.cumsum(codes > 0xFFFF)])
    return lambda at: at + int(wide[min(at, len(codes))])


def _asked(report: InspectReport, texts: Sequence[str]) -> dict[str, Any]:
    """The answer: its tokens, who read what at which step, and what moved."""
    model, steps = report.manifest["model"], max(len(report.said), 1)
    layers, heads = model["layers"], model["kv_heads"]
    rates = [[0] * (layers * heads) for _ in range(steps)]
    moved = [[0, 0, 0] for _ in range(steps)]
    zoom = [z for z in report.zoom if z.step < steps]
    for decision in zoom:
        rates[decision.step][decision.layer * heads + decision.kv_head] += 1
    for move in report.moves:
        if move.step < steps:
            row = moved[move.step]
            row[0] += move.fetched_bytes
            row[1] += move.fetched_spans
            row[2] += move.reused_spans
    listed = sorted(zoom, key=lambda z: -z.weight)[:MOST_READS]
    reads: list[list[int]] = [[] for _ in range(steps)]
    for z in listed:
        weight, score = round(SCALE * z.weight), round(SCALE * z.score)
        if weight:
            reads[z.step] += [z.span, z.layer * heads + z.kv_head, weight, score]
    paths = [entry["path"] for entry in report.manifest["sources"]]
    places = []
    for citation in report.citations:
        start, end = citation.start, citation.end
        for source, text in enumerate(texts):  # a path may be there twice, with another text
            if paths[source] == citation.source and text[start:end] == citation.text:
                units = _utf16(text)
                page = names.page(citation.page, citation.sheet, citation.printed)
                places.append([source, units(start), units(end), page])
                break
    return {
        "question": report.question,
        "answer": f"{report.answer} {report.remark}".strip(),
        "said": [piece.encode("utf-8", "replace").decode("utf-8") for piece in report.said],
        "citations": places,
        "rates": rates,
        "moved": moved,
        "reads": reads,
        "scale": SCALE,
        "resident": _held(report),
        "decisions": len(zoom),
    }


RESIDENT = {
    "exact_rows": "exact rows",
    "sketches": "sketches",
    "summaries": "summaries",
    "zoomed_rows": "coded rows of zoomed spans",
    "parameters": "what codes are read with",
    "states": "states of other layers",
}
"""What is in memory for an answer, as the page says it."""


def _held(report: InspectReport) -> list[list[str | float]]:
    """What was in memory for the answer: name, size, part of the whole; only kinds that are."""
    total, full = sum(report.resident.values()), report.tiers.get("full", 0)
    sizes = {words: report.resident.get(kind, 0) for kind, words in RESIDENT.items()}
    rows: list[list[str | float]] = [
        [words, format.bytes_text(size), round(size / total, 4)]
        for words, size in sizes.items()
        if size
    ]
    share = f", {format.share_text(total, full)} of the full cache" if full else ""
    return [*rows, ["together", f"{format.bytes_text(total)}{share}", 0]] if rows else []


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return base64.b64encode(digest).decode("ascii")
