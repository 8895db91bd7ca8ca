"""What `sekv inspect` prints: a store and its map, what a question zoomed into, spans in the text.

Everything comes from the engine's report; here is only how it looks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from engine.types import FULL, HYBRID
from sekv_cli import names, strips
from sekv_cli.answers import print_citations, print_question, windows_text
from sekv_cli.format import (
    bytes_text,
    clean,
    count_text,
    extent,
    facts,
    grid,
    is_unicode,
    read_so_far,
    reading,
    share_text,
    some,
)

if TYPE_CHECKING:
    from rich.console import Console

    from engine.types import InspectReport, Move, SpanView, ZoomView

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


def _read(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How much is read, of a store that is partly read."""
    windows, unread = manifest["windows"], manifest.get("unread", ())
    tokens = [window["end"] - window["start"] for window in windows]
    read = sum(tokens) - sum(tokens[index] for index in unread)
    left = len(windows) - len(unread)
    return [("read", read_so_far(read, left, len(windows)))] if unread else []


def print_summary(out: Console, store: str, report: InspectReport) -> None:
    """What the store holds, the bytes of each tier against the full cache, and which sources are
    no longer what was read."""
    manifest = report.manifest
    model = manifest["model"]
    windows = manifest["windows"]
    sources = manifest["sources"]
    out.print(clean(store), style="bold")
    out.print(
        facts(
            [
                *(
                    (
                        "source" if not index else "",
                        f"{source['path']} "
                        f"({extent(source['path'], len(source['pages']), source['chars'])})",
                    )
                    for index, source in enumerate(sources)
                ),
                ("model", f"{model['id']} ({_shape(model)})"),
                ("method", manifest["method"]),
                (
                    "tokens",
                    reading(manifest["tokens"], len(windows), manifest["window_tokens"]),
                ),
                *_read(manifest),
                (
                    "spans",
                    f"{count_text(sum(window['spans'] for window in windows))} and "
                    f"{some(sum(window['anchors'] for window in windows), 'anchor')}",
                ),
                *(
                    [
                        (
                            "codes",
                            f"stored keys and values are off by {_moved(report.spans)}",
                        )
                    ]
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
    out.print(grid(("bytes", "", "of the full cache"), rows))


def _notes(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What was noticed when the sources were read, and what was left out of their text."""
    called = names.shortest(source["path"] for source in sources)
    lines = [
        f"{called[source['path']]}: {note}" if len(sources) > 1 else note
        for source in sources
        for note in source.get("notes", ())
    ]
    return [("noted" if not index else "", line) for index, line in enumerate(lines)]


def _moved(spans: Sequence[SpanView]) -> str:
    """What the codes of spans lost on average over heads: of the usual span, and the most."""
    errors = sorted(span.error for span in spans)
    usual, most = (share_text(error, 1) for error in (errors[len(errors) // 2], errors[-1]))
    return f"{usual} of how far they spread, in the worst span by {most}"


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
    unicode = is_unicode(out)
    surprisal = strips.spread(
        [(span.start_token, span.end_token, span.surprisal) for span in spans], cells
    )
    density = strips.counts([span.start_token for span in spans], cells)
    out.print()
    out.print(
        f"map, {count_text(cells[0][1] - cells[0][0])} tokens to a cell",
        style="dim",
        no_wrap=True,
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
    out.print(clean(f"{report.answer} {report.remark}".strip()))
    sources = [str(source["path"]) for source in report.manifest["sources"]]
    print_citations(out, report.citations, sources)
    if read := windows_text(report.retrieval):
        out.print(f"windows read: {read}", style="dim")


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
    out.print(grid(header if narrow else [*header, "text"], rows, left=() if narrow else (6,)))
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
        rows.append(
            (
                str(step),
                said,
                count_text(new),
                count_text(old),
                bytes_text(size),
            )
        )
    out.print()
    out.print(
        f"{some(len(rows), 'step')}: {count_text(fetched)} fetched and {count_text(reused)} reused "
        f"({share_text(reused, fetched + reused)}), {bytes_text(moved)} moved, counted per span, "
        "layer and KV head; step 0 is the question, with every window it looked into"
    )
    out.print(grid(("step", "says", "fetched", "reused", "moved"), rows[:SHOWN_STEPS], (1,)))
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
    unicode = is_unicode(out)
    kinds = model.get("layer_kinds", [FULL] * model["layers"])
    for layer, kind in enumerate(kinds):
        if kind not in (FULL, HYBRID):
            continue
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
