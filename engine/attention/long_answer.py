"""Compresses a long answer while it is generated: the device keeps what query heads vote for.

One `LongAnswer` per question decides for all layers at once; a `LongAnswerLayer` moves the rows of
one layer. Full rows of compressed thoughts are on the host and come back when they are voted
for, at the positions they were written at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.compression.scores import group_queries
from engine.compression.selectors import Transcript
from engine.compression.thoughts import Thoughts


@dataclass
class LongAnswerLayer:
    """The compressed rows of one layer.

    away: live tokens that are not resident. means: [Hkv, T, D] mean key of each compressed
    thought's summary, on the device.
    """

    answer: LongAnswer
    away: int = 0
    means: Tensor | None = None
    _host: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _shown: int = 0  # resident rows of compressed thoughts, right behind the question
    _from: int = 0  # live position of the first row behind them

    def rows(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The rows to keep of the resident k, v [1, Hkv, n, D]: question, shown thoughts, rest."""
        answer, rule = self.answer, self.answer.rule
        if not answer.changed:
            return k, v
        question = answer.transcript.question
        first = self._from or question
        behind = question + self._shown - first  # from live positions to resident ones
        for start, end in answer.thoughts[len(self._host) : answer.compressed]:
            mine = [x[0, :, start + behind : end + behind] for x in (k, v)]
            mean = mine[0][:, -rule.summary :].float().mean(1, keepdim=True)
            self.means = mean if self.means is None else torch.cat([self.means, mean], 1)
            self._host.append((mine[0].cpu(), mine[1].cpu()))
        self._from = answer.thoughts[answer.compressed - 1][1] if answer.compressed else first
        out = []
        for side, x in enumerate((k, v)):
            parts = [x[:, :, :question]]
            for thought, full in answer.shown:
                kept = self._host[thought][side]
                kept = kept if full else kept[:, -rule.summary :]
                parts.append(kept[None].to(x.device))
            parts.append(x[:, :, self._from + behind :])
            out.append(torch.cat(parts, 2))
        self._shown = sum(part.shape[2] for part in parts[1:-1])
        self.away = self._from - question - self._shown
        return out[0], out[1]


class LongAnswer:
    """What of the answer is compressed and shown, the same for every layer and head.

    thoughts: finished ones as ranges of live positions, the first `compressed` of them compressed.
    shown: which of those are resident, ascending, and whether in full or as their summary.
    changed: whether the newest plan is another one than that before.
    """

    def __init__(self, rule: Thoughts, transcript: Transcript, layers: int):
        self.rule, self.transcript = rule, transcript
        self.layers = [LongAnswerLayer(self) for _ in range(layers)]
        self.thoughts: list[tuple[int, int]] = []
        self.compressed = 0
        self.shown: tuple[tuple[int, bool], ...] = ()
        self.changed = False
        self.votes: Tensor | None = None
        self._planned = 0

    @property
    def device_bytes(self) -> int:
        """Bytes of the mean summary keys of all layers."""
        return sum(layer.means.nbytes for layer in self.layers if layer.means is not None)

    @property
    def at_boundary(self) -> bool:
        """Whether the newest token ends a sentence, or none has ended for too long."""
        return (
            self.transcript.ended or len(self.transcript.ids) - self._planned >= self.rule.longest
        )

    def vote(self, layer: LongAnswerLayer, q: Tensor) -> None:
        """Every query head of a layer names the thoughts it would look at; q [H, Q, D]."""
        means = layer.means
        if means is None or not self.at_boundary:
            return
        scores = torch.bmm(group_queries(q[:, -1:], len(means)), means.mT)
        top = scores.topk(min(self.rule.top, means.shape[1]), -1).indices
        count = torch.bincount(top.flatten(), minlength=means.shape[1]).cpu()
        self.votes = count if self.votes is None else self.votes + count

    def plan(self) -> None:
        """Compress what is finished and choose what is shown; layers then follow with `rows`."""
        self.changed = False
        votes, self.votes = self.votes, None
        if not self.at_boundary:
            return
        self._planned = len(self.transcript.ids)
        self._finish_thoughts()
        before, shown = self.compressed, self.shown
        oldest = len(self.transcript.ids) - self.rule.recent
        self.compressed = sum(end <= oldest for _, end in self.thoughts)
        if votes is not None:
            order = votes.argsort(descending=True, stable=True).tolist()
            named = [thought for thought in order if votes[thought] > 0]
            named = named[: self.rule.full + self.rule.shown]
            full = set(named[: self.rule.full])
            self.shown = tuple((thought, thought in full) for thought in sorted(named))
        # What is compressed only now had no votes yet; it stays as a summary until it can have.
        fresh = tuple((thought, False) for thought in range(before, self.compressed))
        self.shown += fresh
        self.changed = self.shown != shown or self.compressed != before

    def _finish_thoughts(self) -> None:
        """Whole sentences of at least `shortest` tokens, or `longest` tokens without an end."""
        rule = self.rule
        start = self.thoughts[-1][1] if self.thoughts else self.transcript.question
        ends = [end for _, end in self.transcript.sentences if end - start >= rule.shortest]
        while ends or len(self.transcript.ids) - start >= rule.longest:
            end = min([start + rule.longest, *ends])
            self.thoughts.append((start, end))
            start = end
            ends = [end for end in ends if end - start >= rule.shortest]
