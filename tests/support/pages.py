"""A small report to draw pages of: two sources, an answer of three tokens. Not a test itself."""

from __future__ import annotations

from typing import Any

from engine.types import Citation, InspectReport, Move, SpanView, ZoomView

LAYERS, HEADS = 3, 2


def report(texts: list[str], *, asked: bool = True, size: int = 12) -> InspectReport:
    """Spans of `size` characters; the answer read span 1 most, then the last one."""
    spans: list[SpanView] = []
    for source, text in enumerate(texts):
        for start in range(0, max(len(text), 1), size):
            spans.append(
                SpanView(
                    id=len(spans),
                    start_token=len(spans) * 4,
                    end_token=len(spans) * 4 + 4,
                    source=f"folder/{source}.txt",
                    start=start,
                    end=min(len(text), start + size),
                    page=str(1 + start // 100),
                    anchor=len(spans) % 7 == 3,
                    surprisal=1.0 + len(spans) % 5,
                    rank_k=8,
                    rank_v=8,
                    bytes=100,
                )
            )
    manifest: dict[str, Any] = {
        "model": {"id": "reader", "layers": LAYERS, "kv_heads": HEADS},
        "method": "sekv",
        "tokens": 4 * len(spans),
        "sources": [
            {
                "path": f"folder/{source}.txt",
                "pages": [[str(1 + at // 100), at] for at in range(0, max(len(text), 1), 100)],
            }
            for source, text in enumerate(texts)
        ],
    }
    tiers = {"device": 100, "host": 300, "document": 50, "full": 4000}
    if not asked:
        return InspectReport(manifest, tuple(spans), (), tiers)
    last = len(spans) - 1
    zoom = tuple(
        ZoomView(span, layer, head, step, 0.2, weight)
        for step in range(3)
        for layer in range(LAYERS)
        for head in range(HEADS)
        for span, weight in ((1, 0.5 - 0.1 * step), (last, 0.1 + 0.2 * step))
    )
    moves = tuple(Move(layer, 0, 1000, 2, 0) for layer in range(LAYERS))
    passage = texts[0][size : 2 * size]
    cited = (Citation("folder/0.txt", "1", size, size + len(passage), passage, 0.9),)
    return InspectReport(
        manifest, tuple(spans), zoom, tiers, moves, "Who?", "Ana", (" A", "na", "\n"), cited
    )
