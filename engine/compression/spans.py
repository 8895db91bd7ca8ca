"""Where a window is cut into spans, and which of its tokens stay exact on the device.

Segmentation sees only the document (surprisal and text of its tokens), never a question.
What replaces a span is the business of `summaries` and `codecs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.types import ANCHOR as ANCHOR
from engine.types import COMPRESSED as COMPRESSED
from engine.types import PINNED as PINNED


@dataclass(frozen=True)
class Spans:
    """A partition of a window's n tokens.

    bounds: int64 [S + 1] from 0 to n, strictly ascending.
    kind: uint8 [S]: COMPRESSED is summarised and zoomed on demand; ANCHOR is one boundary token
    kept exact; PINNED is kept exact for another reason (sink, local window, too short to compress).
    """

    bounds: Tensor
    kind: Tensor


class Segmenter(Protocol):
    def cut(self, surprisal: Tensor, pieces: list[str]) -> Spans:
        """Cut a window.

        Args:
            surprisal: float32 [n], nats.  pieces: the text of each token.
        """
        ...

    def exact_share(self) -> float:
        """Expected share of tokens that stay exact beside sinks and local window."""
        ...


@dataclass(frozen=True)
class Entropy:
    """The published rule: a boundary where surprisal > mean + alpha * std.

    Boundary tokens are anchors; the runs between them are spans; runs shorter than `shortest`
    stay exact on the device.
    Source: SeKV (arXiv 2606.31145), section 3.1; alpha 1, L_min 16. The mean and deviation are
    those of the window, which is the whole prompt when the document is one window.
    """

    alpha: float = 1.0
    shortest: int = 16

    def cut(self, surprisal: Tensor, pieces: list[str]) -> Spans:
        limit = surprisal.mean() + self.alpha * surprisal.std(correction=0)
        spans = _partition(torch.nonzero(surprisal > limit)[:, 0].numpy(), len(surprisal))
        short = (spans.kind == COMPRESSED) & (spans.bounds.diff() < self.shortest)
        return Spans(spans.bounds, torch.where(short, PINNED, spans.kind).to(torch.uint8))

    def exact_share(self) -> float:
        return 0.5  # measured 20-70 %, by text and tokenizer


@dataclass(frozen=True)
class Peaks:
    """Our default: cut at surprisal peaks that keep a distance; only the rarest are anchors.

    With the published rule anchors and short spans alone take 20-70 % of the rows. Here a token
    opens a span if no neighbour within `distance` surprises more, spans longer than `longest`
    are split evenly, and alpha rises until at most `anchors` of the tokens stay exact.
    """

    distance: int = 4
    longest: int = 12
    anchors: float = 0.002

    def cut(self, surprisal: Tensor, pieces: list[str]) -> Spans:
        n = len(surprisal)
        reach = 2 * self.distance + 1
        top = F.max_pool1d(surprisal[None, None], reach, 1, self.distance)[0, 0]
        peaks = torch.nonzero(surprisal >= top)[:, 0].numpy()
        # Equal neighbours are both peaks; the first of a plateau is enough.
        peaks = peaks[np.diff(peaks, prepend=-reach) >= self.distance]
        keep = int(self.anchors * n)
        order = np.argsort(-surprisal.numpy()[peaks], kind="stable")
        anchors = np.sort(peaks[order[:keep]])
        edges = np.unique(np.concatenate([[0, n], peaks, anchors, anchors + 1]))
        edges = split_long(edges[edges <= n], self.longest)
        kind = torch.zeros(len(edges) - 1, dtype=torch.uint8)
        kind[torch.from_numpy(np.isin(edges[:-1], anchors))] = ANCHOR
        return Spans(torch.from_numpy(edges), kind)

    def exact_share(self) -> float:
        return self.anchors


@dataclass(frozen=True)
class Fixed:
    """Spans of equal length, no anchors: the plainest segmentation, and the baselines'."""

    length: int = 16

    def cut(self, surprisal: Tensor, pieces: list[str]) -> Spans:
        edges = np.append(np.arange(0, len(surprisal), self.length), len(surprisal))
        return Spans(torch.from_numpy(edges), torch.zeros(len(edges) - 1, dtype=torch.uint8))

    def exact_share(self) -> float:
        return 0.0


def pin_ends(spans: Spans, sinks: int, local: int) -> Spans:
    """Keep the first `sinks` and the last `local` tokens of a window exact.

    The first tokens draw attention whatever they say (attention sinks, arXiv 2309.17453); the
    last ones are the question's neighbourhood.
    """
    bounds, kind = spans.bounds.numpy(), spans.kind.numpy()
    n = int(bounds[-1])
    head, tail = min(sinks, n), max(min(sinks, n), n - local)
    edges = np.unique(np.concatenate([bounds, [head, tail]]))
    owner = np.searchsorted(bounds, edges[:-1], side="right") - 1
    kinds = kind[owner].copy()
    outside = (edges[:-1] < head) | (edges[:-1] >= tail)
    kinds[outside] = PINNED
    return Spans(torch.from_numpy(edges), torch.from_numpy(kinds))


def _partition(anchors: np.ndarray, n: int) -> Spans:
    """Anchors as spans of one token and the runs between them."""
    edges = np.unique(np.concatenate([[0, n], anchors, anchors + 1]))
    kind = np.where(np.isin(edges[:-1], anchors), ANCHOR, COMPRESSED).astype(np.uint8)
    return Spans(torch.from_numpy(edges), torch.from_numpy(kind))


def split_long(edges: np.ndarray, longest: int) -> np.ndarray:
    """Split every gap above `longest` into the fewest pieces of nearly equal length."""
    lengths = np.diff(edges)
    pieces = -(-lengths // longest)
    owner = np.repeat(np.arange(len(lengths)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.append(edges[owner] + place * lengths[owner] // pieces[owner], edges[-1])
