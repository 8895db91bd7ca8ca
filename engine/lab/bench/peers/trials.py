"""Trials: other ways to hold a document, as the laboratory would if a store had them.

None of them knows a question. Each keeps to a budget in bytes, everything counted that a device
would hold; what is decoded for a product is not counted, as it is not for our own codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.attention.layer import LayerMemory
from engine.attention.resident import TOKEN_BYTES, row_scores
from engine.attention.shared import Shared
from engine.attention.softmax import merge_resolutions
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.terms import PLAIN, Terms
from engine.errors import ReaderError
from engine.lab.bench.fidelity.distortion import EXACT, Coded, coded_within
from engine.lab.bench.fidelity.subjects import Subject
from engine.lab.bench.peers import attention_matching
from engine.lab.bench.peers.held import (
    Held,
    HeldLayer,
    PeerError,
    allowed_bytes,
    put,
    put_layers,
)
from engine.lab.bench.peers.reread import Reread, reread

if TYPE_CHECKING:
    from pathlib import Path

    from engine.answer.session import Session

BIAS_BYTES = 2
"""Of a bias in 16 bits."""

COARSE = 0.6
"""Share of the bytes that all tokens have in few bits, where some are kept finer."""

FINE = 0.2
"""Of 16-bit rows, what the finer code of a token takes: about that of the default method."""


@dataclass(frozen=True)
class Trial:
    """One trial. keep: puts what it keeps of a document into a session, within so many bytes."""

    name: str
    keep: Callable[[Session, _Window, float], None]
    source: str
    whole: bool = False

    def missing(self) -> str:
        return ""

    def hold(self, session: Session, budget: str, place: Path) -> int:
        window = _Window.of(session)
        room = allowed_bytes(session, budget) - window.prefix_bytes
        if room <= 0:
            raise PeerError(f"the prompt alone takes more than {budget}")
        with torch.inference_mode():
            self.keep(session, window, room)
        return 0


@dataclass(frozen=True)
class _Window:
    """A document of one window. prefix, rows: per layer k, v [Hkv, n, D] before it and of it."""

    prefix: list[tuple[Tensor, Tensor]]
    rows: list[tuple[Tensor, Tensor]]
    seen: Reread

    @classmethod
    def of(cls, session: Session) -> _Window:
        """From the full cache that a session has."""
        layers, seen = session.memory.layers, reread(session)
        first = layers[0].pinned_token < 0
        return cls(
            [(layer.pinned_k[:, first], layer.pinned_v[:, first]) for layer in layers],
            [(layer.pinned_k[:, ~first], layer.pinned_v[:, ~first]) for layer in layers],
            seen,
        )

    @property
    def prefix_bytes(self) -> int:
        """In 16 bits."""
        return 2 * sum(k.numel() + v.numel() for k, v in self.prefix)

    @property
    def row_bytes(self) -> int:
        """Of the key and value of one token in one KV head, in 16 bits."""
        return 4 * self.rows[0][0].shape[-1]

    @property
    def all_bytes(self) -> int:
        """Of all rows, in 16 bits."""
        return 2 * sum(k.numel() + v.numel() for k, v in self.rows)


# ---------------------------------------------------------------------------- exact rows


def _ranked(session: Session, window: _Window, room: float) -> None:
    """Rows of the tokens that the repetition looks at most, over all layers and heads alike."""
    kept = best(window.seen.most, int(room / window.row_bytes))
    put(session, [_ragged(window, layer, keep) for layer, keep in enumerate(kept)])


def _matched(session: Session, window: _Window, room: float) -> None:
    """As many rows of every head, each with a bias, and values such that attention comes out."""
    kept = best(window.seen.most, int(room / (window.row_bytes + BIAS_BYTES)))
    held = []
    for layer, keep in enumerate(kept):
        keep = most_looked_at(window.seen.typical[layer], keep.sum(-1))
        k, v = window.rows[layer]
        bias, values = attention_matching.match(window.seen.queries[layer], k, v, keep)
        held.append(_ragged(window, layer, keep, bias, values))
    put(session, held)


def best(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """bool [Hkv, N] per layer: the `count` tokens of highest score, over all layers and heads."""
    flat = torch.stack(list(scores)).flatten()
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(min(count, len(flat))).indices] = True
    return list(chosen.view(len(scores), *scores[0].shape))


def most_looked_at(scores: Tensor, counts: Tensor) -> Tensor:
    """bool [Hkv, N]: of each head [Hkv, N] the tokens of highest score, so many [Hkv]."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    first: Tensor = rank < counts[:, None]
    return first


def _ragged(
    window: _Window,
    layer: int,
    keep: Tensor,
    bias: Tensor | None = None,
    values: Tensor | None = None,
) -> Held:
    """Rows of the tokens kept [Hkv, N], each head's own. bias [Hkv, N] and values [Hkv, N, D]: in
    place of none and of the tokens' own."""
    (first_k, first_v), (k, v) = window.prefix[layer], window.rows[layer]
    v = v if values is None else values
    flat = [(k[h, mine].half(), v[h, mine].half()) for h, mine in enumerate(keep)]
    counts = keep.sum(-1)
    longest, before = int(counts.max()), first_k.shape[1]
    hidden = torch.arange(longest) >= counts[:, None]
    hidden = torch.nn.functional.pad(hidden, (before, 0))
    added = None
    if bias is not None:
        added = torch.zeros(hidden.shape)
        for head, mine in enumerate(keep):
            added[head, before : before + int(counts[head])] = bias[head, mine].half().float()
    nbytes = 2 * (first_k.numel() + first_v.numel()) + sum(a.nbytes + b.nbytes for a, b in flat)
    nbytes += 0 if bias is None else BIAS_BYTES * int(counts.sum())

    def rows() -> tuple[Tensor, Tensor]:
        joined = []
        for first, part in ((first_k, 0), (first_v, 1)):
            padded = [
                torch.nn.functional.pad(pair[part], (0, 0, 0, longest - len(pair[part])))
                for pair in flat
            ]
            joined.append(torch.cat([first.half(), torch.stack(padded)], 1))
        return joined[0], joined[1]

    return Held(nbytes, rows, hidden, added, keep)


# ---------------------------------------------------------------------------- codes


def _subject(session: Session, window: _Window, *, turned: bool) -> Subject:
    """The document as the laboratory's codecs take it."""
    rotation = None
    if not turned:
        reader = session.reader
        try:
            rotation = reader.rotation(len(reader.prompt.prefix), len(session.ids))
        except ReaderError as error:
            raise PeerError(str(error)) from error
    return Subject(
        rows=[(k.float(), v.float()) for k, v in window.rows],
        prefix=window.prefix,
        surprisal=window.seen.surprisal,
        pieces=[session.reader.tokenizer.decode([token]) for token in session.ids.tolist()],
        learnt=window.seen.learnt,
        asked=[],
        rotation=rotation,
    )


def _coded(session: Session, window: _Window, share: float, *, turned: bool = True) -> Coded:
    """All tokens in so much of the bytes of their 16-bit rows.

    Raises:
        PeerError: bases and steps alone take more.
    """
    exact = EXACT * window.row_bytes * len(window.rows) * len(window.rows[0][0])
    coded = coded_within(
        _subject(session, window, turned=turned),
        (share * window.all_bytes - exact) / (window.all_bytes - exact),
        turned=turned,
    )
    if coded is None:
        raise PeerError(f"bases and steps alone take more than {100 * share:.1f} %")
    return coded


def _coded_bytes(window: _Window, coded: Coded) -> int:
    """Of all layers, the first rows that stay exact among them."""
    exact = EXACT * window.row_bytes * len(window.rows) * len(window.rows[0][0])
    return round(coded.share * (window.all_bytes - exact)) + exact


def _all_coded(session: Session, window: _Window, room: float, *, turned: bool = True) -> None:
    """All tokens alike, in as many bits as there are."""
    coded = _coded(session, window, room / window.all_bytes, turned=turned)
    each = _coded_bytes(window, coded) // len(window.rows)
    held = []
    for (first_k, first_v), (k, v) in zip(window.prefix, coded.rows, strict=True):
        rows = torch.cat([first_k.float(), k], 1), torch.cat([first_v.float(), v], 1)
        first = 2 * (first_k.numel() + first_v.numel())
        seen = torch.ones(k.shape[:2], dtype=torch.bool)
        held.append(Held(first + each, lambda rows=rows: rows, seen=seen))  # type: ignore[misc]
    put(session, held)


def _coarse_and_fine(session: Session, window: _Window, room: float) -> None:
    """All tokens in few bits, and for every query the finer code of those that it looks at most."""
    coarse = _coded(session, window, COARSE * room / window.all_bytes)
    fine = _coded(session, window, max(FINE, coarse.share + 0.02))
    used = _coded_bytes(window, coarse)
    heads = len(window.rows) * len(window.rows[0][0])
    finer = (_coded_bytes(window, fine) - used) / (heads * window.rows[0][0].shape[1])
    tokens = int((room - used) / heads / (finer + TOKEN_BYTES))
    each = int(window.prefix_bytes + used + tokens * heads * (finer + TOKEN_BYTES))
    each //= len(window.rows)

    def make(index: int, layer: LayerMemory, shared: Shared) -> HeldLayer:
        parts = window.prefix[index], coarse.rows[index], fine.rows[index]
        return CoarseAndFine(layer, shared, each, parts, tokens)

    put_layers(session, make)


class CoarseAndFine(HeldLayer):
    """A layer that holds every token in few bits and fetches the finer code of some per query.

    The finer code is thought of as what is added to the coarse one, so that a token costs the
    difference; its rows are decoded here beforehand.
    """

    def __init__(
        self,
        layer: LayerMemory,
        shared: Shared,
        nbytes: int,
        parts: Sequence[tuple[Tensor, Tensor]],
        tokens: int,
    ):
        """parts: k, v [Hkv, n, D] of the prefix, and coarse and fine of the document.  tokens: of
        each KV head that are fine at a time."""
        self._prefix, self._coarse, self._fine = parts
        rows = self._coarse[0].shape[:2]
        held = Held(nbytes, lambda: self._coarse, seen=torch.ones(rows, dtype=torch.bool))
        super().__init__(layer, shared, held)
        self._tokens = min(tokens, rows[1])

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        terms.check_plain("the comparison with peers")
        rows = q.shape[1]
        q = group_queries(q, self.heads)
        live = row_scores(q, live_k)
        if seen is not None:
            live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        first, coarse = row_scores(q, self._prefix[0]), row_scores(q, self._coarse[0])
        share = torch.cat([first, live, coarse], -1).softmax(-1)[..., -coarse.shape[-1] :]
        fine = share.amax(1).topk(self._tokens, -1).indices
        k, v = (
            a.scatter(1, place, b.gather(1, place))
            for a, b in zip(self._coarse, self._fine, strict=True)
            for place in (fine[..., None].expand(-1, -1, a.shape[-1]),)
        )
        parts = [first, row_scores(q, k), live]
        out, _ = merge_resolutions(parts, [self._prefix[1], v, live_v])
        return out.reshape(-1, rows, self.size)


def _before_rope(session: Session, window: _Window, room: float) -> None:
    _all_coded(session, window, room, turned=False)


TRIALS = (
    Trial(
        "trial:kvzip",
        _ranked,
        "16-bit rows of the tokens that the document looks at most when it is read again, budgets "
        "by layer and head, after KVzip (arXiv 2505.23416); frees bytes",
    ),
    Trial(
        "trial:matching",
        _matched,
        "a bias and refitted values for every kept key, after Attention Matching (arXiv "
        "2602.16284); the queries are the document's own, read again",
    ),
    Trial("trial:codes", _all_coded, "all tokens in the default method's code, of as many bits"),
    Trial("trial:codes-before-rope", _before_rope, "the same, keys as they are before RoPE"),
    Trial(
        "trial:coarse-fine",
        _coarse_and_fine,
        "all tokens in few bits, and for each step finer codes of those it looks at most",
    ),
)
