"""Selectors: when a layer chooses spans anew, by which query, and what is hidden.

A router says how much each span matters to a query (`routers`); a selector turns that into what is
zoomed now. A frozen dataclass is the rule and begins one choice per layer and question, which
remembers what the rule needs. It moves nothing and counts no bytes: `RoutingInput.fit` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from engine.compression.text_spans import ends_sentence


@dataclass
class Transcript:
    """The question and the answer so far, as text: where sentences of the answer end.

    text: decodes token ids. question: live rows of the question. expected: tokens that belong to
    it, where it takes several forwards. sentences: finished ones of the answer, as ranges of live
    rows. began: where the newest token's sentence begins. ended: whether the newest token ends a
    sentence.
    """

    text: Callable[[list[int]], str] = field(default=lambda ids: "")
    ids: list[int] = field(default_factory=list)
    question: int = 0
    expected: int = 1
    sentences: list[tuple[int, int]] = field(default_factory=list)
    began: int = 0
    ended: bool = False

    def append(self, ids: list[int]) -> None:
        """Take the tokens of one forward; the first forwards are the question."""
        if len(self.ids) < self.expected:
            self.ids += ids
            self.question = len(self.ids)
            self.ended = True
            return
        for token in ids:
            if self.ended:
                self.began = len(self.ids)
            self.ids.append(token)
            said = self.ids[max(self.question, len(self.ids) - 24) :]
            self.ended = ends_sentence(self.text(said))
            if self.ended:
                self.sentences.append((self.began, len(self.ids)))

    @property
    def opens(self) -> bool:
        """Whether the newest token is the first of a sentence of the answer."""
        return bool(self.ids) and self.began == len(self.ids) - 1


@dataclass(frozen=True)
class RoutingInput:
    """What a layer sees when it chooses; Hkv KV heads, G query heads each, Q rows, F spans.

    q: [Hkv, G * Q, D] scaled queries. rows: Q. share: [Hkv, F] estimated share of attention, the
    largest over heads and rows. current: bool [Hkv, F], what is zoomed. live_k: [Hkv, n, D].
    estimate: queries [Hkv, m, D] -> the router's log-mass [Hkv, m, F].
    fit: scores [Hkv, F], or [1, F] where all heads choose alike -> bool [Hkv, F], what fits the
    room by falling score. With more columns than spans, those after the spans are ranges of
    live rows, whose bytes it is given.
    """

    q: Tensor
    rows: int
    share: Tensor
    current: Tensor
    live_k: Tensor
    transcript: Transcript
    uncovered: float
    estimate: Callable[[Tensor], Tensor]
    fit: Callable[..., Tensor]


class Choice(Protocol):
    """One layer's choices for one question.

    hidden: bool [Hkv, n] live rows that are not seen now, or None.
    """

    hidden: Tensor | None

    def choose(self, routing: RoutingInput) -> Tensor:
        """bool [Hkv, F]: the spans to have in full now."""
        ...


class Selector(Protocol):
    """hides: spans that are not zoomed are not seen at all; else they stand as summaries.
    static: the choice does not follow the query, so that the device holds no routing tensors.
    by_share: every span is zoomed while there is room, only by its estimated share, so that a step
    can be done again with more room."""

    hides: ClassVar[bool]
    static: ClassVar[bool]
    by_share: ClassVar[bool]

    def begin(self) -> Choice: ...


# ---------------------------------------------------------------------------- ours


@dataclass(frozen=True)
class ByShare:
    """Our default: anew for every forward, by the estimated share of attention.

    What is zoomed stays until others have much more, so that spans do not come and go with every
    token. in_use: how often the share of a span that is zoomed counts. least: what it counts as at
    least, so that slots of no use are not filled anew with spans of as little. worthwhile: what a
    head's zoomed spans must gain in estimated share for any of them to be exchanged; without effect
    where a coverage is asked for.
    """

    in_use: float = 4.0
    worthwhile: float = 0.03
    least: float = 0.002
    hides: ClassVar[bool] = False
    static: ClassVar[bool] = False
    by_share: ClassVar[bool] = True

    def begin(self) -> Choice:
        return _Shares(self)


@dataclass
class _Shares:
    rule: ByShare
    hidden: Tensor | None = None

    def choose(self, routing: RoutingInput) -> Tensor:
        rule, held, share = self.rule, routing.current, routing.share
        anew = routing.uncovered > 0 or not held.any()
        # An exchange gains no more than all that is not zoomed draws.
        if not anew and not bool(((share * ~held).sum(-1) > rule.worthwhile).any()):
            return held
        kept = (rule.in_use * share).clamp_min(rule.least)
        wanted = routing.fit(torch.where(held, kept, share), uncovered=routing.uncovered)
        if anew:
            return wanted
        gain = (share * wanted).sum(-1) - (share * held).sum(-1)
        return torch.where((gain > rule.worthwhile)[:, None], wanted, held)


# ---------------------------------------------------------------------------- baselines


@dataclass(frozen=True)
class Once:
    """Chosen when the first query comes, by a ranking that does not know it, and never again.

    alike: all KV heads of a layer keep the same tokens.
    """

    alike: bool = False
    hides: ClassVar[bool] = True
    static: ClassVar[bool] = True
    by_share: ClassVar[bool] = False

    def begin(self) -> Choice:
        return _Kept(self.alike)


@dataclass
class _Kept:
    alike: bool
    hidden: Tensor | None = None
    kept: Tensor | None = None

    def choose(self, routing: RoutingInput) -> Tensor:
        if self.kept is None:
            mass = routing.estimate(routing.q[:, :1])
            self.kept = routing.fit(in_turns(mass[:1] if self.alike else mass))
        return self.kept


@dataclass(frozen=True)
class Blocks:
    """Anew for every forward, the best spans of every query head in turn.

    overlap: what is resident stays while it holds at least this share of the new choice and no
    sentence of the answer has ended; above 1 the new choice is always taken.
    Source: SentKVCompress (OpenReview T0ii3nAxk4) fetches only what is newly selected and
    reports that 70 % is reused; the rule is ours.
    """

    overlap: float = 2.0
    hides: ClassVar[bool] = True
    static: ClassVar[bool] = False
    by_share: ClassVar[bool] = False

    def begin(self) -> Choice:
        return _Resident(self.overlap)


@dataclass
class _Resident:
    overlap: float
    hidden: Tensor | None = None
    chosen: bool = False

    def choose(self, routing: RoutingInput) -> Tensor:
        wanted = routing.fit(in_turns(routing.estimate(routing.q)))
        common = int((wanted & routing.current).sum())
        stays = common >= self.overlap * int(wanted.sum())
        if self.chosen and stays and not routing.transcript.opens:
            return routing.current
        self.chosen = True
        return wanted


@dataclass(frozen=True)
class SentenceQuery:
    """By the mean query of the sentence that is being written; finished ones become buckets.

    The question is one sentence. While a new sentence has a single token, the last choice stays.
    A finished sentence of the answer that is older than `recent` tokens is ranked among those of
    the document and seen only if it fits in with them.
    Source: SentenceKV (arXiv 2504.00970), section 3.3. There the first tokens of a sentence see
    everything, which no budget holds.
    """

    recent: int = 32
    hides: ClassVar[bool] = True
    static: ClassVar[bool] = False
    by_share: ClassVar[bool] = False

    def begin(self) -> Choice:
        return _Sentence(self.recent)


@dataclass
class _Sentence:
    recent: int
    hidden: Tensor | None = None
    total: Tensor | None = None
    count: int = 0

    def choose(self, routing: RoutingInput) -> Tensor:
        heads, _, size = routing.q.shape
        q = routing.q.reshape(heads, -1, routing.rows, size)
        first = self.total is None
        if self.total is None or routing.transcript.opens:
            self.total, self.count = torch.zeros_like(q[:, :, 0]), 0
        self.total = self.total + q.sum(2)
        self.count += routing.rows
        live = routing.live_k.shape[1]
        if self.count < 2 and not first:
            if self.hidden is not None:
                more = live - self.hidden.shape[1]
                self.hidden = torch.nn.functional.pad(self.hidden, (0, more))
            return routing.current
        query = self.total / self.count
        scores = routing.estimate(query)
        old = [(a, b) for a, b in routing.transcript.sentences if b <= live - self.recent]
        if not old:
            self.hidden = None
            return routing.fit(in_turns(scores))
        keys = torch.stack([routing.live_k[:, a:b].float().mean(1) for a, b in old], 1)
        own = torch.bmm(query, keys.mT) / math.sqrt(size)
        seen = routing.fit(in_turns(torch.cat([scores, own], -1)), live=[b - a for a, b in old])
        self.hidden = routing.live_k.new_zeros(heads, live, dtype=torch.bool)
        for place, (a, b) in enumerate(old, scores.shape[-1]):
            self.hidden[:, a:b] = ~seen[:, place, None]
        return seen[:, : scores.shape[-1]]


def in_turns(scores: Tensor) -> Tensor:
    """Score of each span when every row takes its best in turn: the sum of 1 / rank over rows.

    Args:
        scores: [Hkv, m, F], comparable only within a row.
    Returns:
        [Hkv, F], comparable over heads.
    Source: reciprocal rank fusion (Cormack et al., SIGIR 2009), without its constant.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    turn = 1 / torch.arange(1, scores.shape[-1] + 1, device=scores.device).float()
    fused = torch.zeros_like(scores, dtype=torch.float32)
    return fused.scatter_(-1, order, turn.expand_as(order)).sum(1)
