"""Greedy answers of a plain transformers model: one document, many questions. No memory.

A document is read once, whole or in windows that share the prompt's beginning and their
positions and never meet; its keys and values are then shared by all questions on it,
which each see the prefix, every window and their own past in one softmax. With one
window and one question this is what `generate` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from engine.errors import ReaderError
from engine.quoting import TOGETHER, Guide, Marks, Told, telling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

ATTENTION: Final = "sekv_bench"
BOS, DOCUMENT, QUESTION, ANSWER, VALUE, END = (
    "<|endoftext|>",
    "<|document|>",
    "<|question|>",
    "<|answer|>",
    "<|value|>",
    "<|end|>",
)
NOT_STATED: Final = "not stated"
_SCORES: Final = 1 << 25  # scores held at a time: 128 MB
_TOKENS: Final = 8192  # tokens of windows read together
_NEAR: Final = 96  # tokens at a window's end in which a sentence's end is looked for


@dataclass
class _State:
    """Keys and values by layer while a document is read or questions are answered.

    document: [Hkv, N, D] each, shared by all rows.  own: [B, Hkv, T, D] each.
    present: [B, T] bool, false for padding among a row's own tokens.
    """

    document: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    present: Tensor | None = None


@dataclass(frozen=True)
class Document:
    """A document that was read.

    told: its tokens.  layers: keys and values [Hkv, prefix + N, D] of every layer, the prompt's
    beginning included.  start: position of a question.  bounds: tokens [start, stop) of the windows
    it was read in.
    """

    told: Told
    layers: tuple[tuple[Tensor, Tensor], ...]
    start: int
    bounds: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        return len(self.told.ids)

    @property
    def windows(self) -> int:
        return len(self.bounds)

    def parts(self, windows: int) -> list[Document]:
        """The same document, so many windows at a time."""
        found = []
        for at in range(0, self.windows, windows):
            bounds = self.bounds[at : at + windows]
            a, b = bounds[0][0], bounds[-1][1]
            layers = tuple((self._rows(k, a, b), self._rows(v, a, b)) for k, v in self.layers)
            moved = tuple((start - a, stop - a) for start, stop in bounds)
            found.append(Document(self.told.at(slice(a, b)), layers, self.start, moved))
        return found

    def _rows(self, rows: Tensor, start: int, stop: int) -> Tensor:
        prefix = rows.shape[1] - self.tokens
        return torch.cat([rows[:, :prefix], rows[:, prefix + start : prefix + stop]], 1)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Any:
    """Attend and keep the log of the softmax's sum, so that two parts can be joined.

    Args:
        q: [Z, R, D].  k, v: [Z, N, D].  mask: [Z, R, N] bool, true where a row may look.
    Returns:
        outputs [Z, R, D] and log-sums [Z, R].
    """
    outs, sums = [], []
    step = max(1, _SCORES // max(1, q.shape[0] * k.shape[1]))
    for at in range(0, q.shape[1], step):
        scores = (q[:, at : at + step] @ k.transpose(1, 2)).mul_(scale)
        if mask is not None:
            scores.masked_fill_(~mask[:, at : at + step], float("-inf"))
        total = scores.logsumexp(-1)
        outs.append(scores.sub_(total[..., None]).exp_() @ v)
        sums.append(total)
    return torch.cat(outs, 1), torch.cat(sums, 1)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    state: _State,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer; `state` is a keyword of forward.

    Args:
        query: [B, H, T, D].  key, value: [B, Hkv, T, D].
    Returns:
        [B, T, H, D] and no weights.
    """
    del attention_mask  # who sees whom is the state's alone
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if state.present is None:  # reading: rows are windows, causal each for itself
        state.own.append((key, value))
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    if layer < len(state.own):
        before = state.own[layer]
        key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        state.own[layer] = (key, value)
    else:
        state.own.append((key, value))
    rows, heads, new, dim = query.shape
    kv, length = key.shape[1], key.shape[2]
    groups = heads // kv
    grouped = query.view(rows, kv, groups, new, dim)
    shared = grouped.transpose(0, 1).reshape(kv, rows * groups * new, dim)
    far, far_sum = attend(shared, *state.document[layer], scaling, None)
    far = far.view(kv, rows, groups * new, dim).transpose(0, 1).flatten(0, 1)
    far_sum = far_sum.view(kv, rows, groups * new).transpose(0, 1).flatten(0, 1)
    # A row sees its own real tokens up to itself.
    ahead = torch.arange(length, device=key.device)
    seen = ahead[None, :] <= (length - new + ahead[:new])[:, None]
    mask = (seen[None] & state.present[:, None, :])[:, None, None]
    mask = mask.expand(rows, kv, groups, new, length).reshape(rows * kv, groups * new, length)
    near, near_sum = attend(
        grouped.reshape(rows * kv, groups * new, dim),
        key.flatten(0, 1),
        value.flatten(0, 1),
        scaling,
        mask,
    )
    share = torch.sigmoid(far_sum - near_sum)[..., None]
    out = (share * far + (1 - share) * near).view(rows, heads, new, dim)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)


def cut(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Cut tokens into windows of at most `size`, at a sentence's end where one is near.

    Args:
        offsets: characters of each token.
    Returns:
        [start, stop) of each window; together they hold every token.
    """
    found = []
    start = 0
    while start < len(offsets):
        stop = min(start + size, len(offsets))
        if stop < len(offsets):
            for back in range(stop, max(start + 1, stop - min(_NEAR, size // 2)), -1):
                if text[offsets[back - 1][1] - 1] in ".!?\n":
                    stop = back
                    break
        found.append((start, stop))
        start = stop
    return found


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=ATTENTION
    )


class Decoder:
    """A checkpoint with the reader's prompt format.

    Args:
        folder: of the checkpoint.  device: where to compute; in float32.
        held: hold answers to the document, as `ask` does; else plain greedy decoding.
    Raises:
        ReaderError: the tokenizer lacks the prompt's marks.
    """

    def __init__(self, folder: Path, device: str = "cpu", *, held: bool = True) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = _load(folder).to(device).eval()
        self.device = torch.device(device)
        self.held = held
        self.window = int(getattr(self.model.config, "sekv_window", 0))
        known = self.tokenizer.get_vocab()
        missing = [
            mark for mark in (BOS, DOCUMENT, QUESTION, ANSWER, VALUE, END) if mark not in known
        ]
        if missing:
            raise ReaderError(
                f"{folder} is no look-up reader: its tokenizer lacks {', '.join(missing)}; "
                "give the folder of one trained with `sekv train reader`"
            )
        self.end = int(known[END])
        # How much less willing to refuse than it was trained to be; see `engine.prompt.Prompt`.
        self.reluctance = float(getattr(self.model.config, "sekv_reluctance", 0.0))
        refusal = tuple(self._ids(f"{ANSWER} {NOT_STATED}")[1:])
        self.marks = Marks.of(
            self.tokenizer, int(known[DOCUMENT]), int(known[VALUE]), self.end, refusal
        )
        self.prefix = self._ids(BOS + DOCUMENT)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text of any length, and the characters of each."""
        # The wrapper around it warns of every text longer than the model's positions.
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _ids(self, text: str) -> list[int]:
        return self.encode(text)[0]

    def _hidden(self, ids: Tensor, places: Tensor, state: _State) -> Tensor:
        # The mask is the state's business; transformers must not build its own.
        out: Tensor = self.model.model(
            input_ids=ids, position_ids=places, use_cache=False, state=state
        ).last_hidden_state
        return out

    @torch.no_grad()
    def read(self, text: str, window: int = 0) -> Document:
        """Keys and values of a document, read in windows of so many tokens (0: whole)."""
        ids, offsets = self.encode(text)
        spans = cut(text, offsets, window or len(ids)) or [(0, 0)]
        size = max(stop - start for start, stop in spans)
        first = len(self.prefix)
        parts: list[list[tuple[Tensor, Tensor]]] = []
        together = max(1, _TOKENS // (size + first))
        for at in range(0, len(spans), together):
            some = spans[at : at + together]
            # Padding stands behind a window's tokens, where nothing looks at it.
            rows = [self.prefix + ids[a:b] + [self.end] * (size - (b - a)) for a, b in some]
            state = _State()
            tokens = torch.tensor(rows, device=self.device)
            places = torch.arange(tokens.shape[1], device=self.device).expand(len(rows), -1)
            self._hidden(tokens, places, state)
            for row, (a, b) in enumerate(some):
                begin = first if parts else 0
                parts.append(
                    [
                        (k[row, :, begin : first + b - a], v[row, :, begin : first + b - a])
                        for k, v in state.own
                    ]
                )
        layers = tuple(
            (
                torch.cat([part[layer][0] for part in parts], 1),
                torch.cat([part[layer][1] for part in parts], 1),
            )
            for layer in range(len(parts[0]))
        )
        ends = np.array([end for _, end in offsets], dtype=np.int64)
        told = Told.of(text, np.array(ids, dtype=np.int64), ends)
        return Document(told, layers, first + size, tuple(spans))

    @torch.no_grad()
    def answer(self, document: Document, questions: Sequence[str], most: int = 100) -> list[str]:
        """The greedy answer to each question, without its end mark, marks inside kept; held to
        the document as `engine.quoting` says, unless told otherwise: then each is answered from
        those few windows where a quote is likeliest."""
        if not self.held or document.windows <= TOGETHER:
            return self._answer(document, questions, most)
        parts = document.parts(TOGETHER)
        margins = []
        for part in parts:
            scores = self.model.lm_head(self._ask(part, questions)[1]).float().cpu().numpy()
            guides = self._guides(part, questions)
            margins.append([g.margin(line) for g, line in zip(guides, scores, strict=True)])
        best = np.argmax(margins, axis=0)
        found = [""] * len(questions)
        for number in np.unique(best):
            mine = np.flatnonzero(best == number).tolist()
            said = self._answer(parts[number], [questions[one] for one in mine], most)
            for one, answer in zip(mine, said, strict=True):
                found[one] = answer
        return found

    def _guides(self, document: Document, questions: Sequence[str]) -> list[Guide]:
        return [
            Guide(self.marks, document.told, [self._ids(w) for w in telling(question)])
            for question in questions
        ]

    def _ask(self, document: Document, questions: Sequence[str]) -> tuple[_State, Tensor]:
        """Read the questions on a document; the hidden state of each's last token."""
        none = torch.zeros(len(questions), 0, dtype=torch.bool, device=self.device)
        state = _State(list(document.layers), present=none)
        prompts = [self._ids(f"{QUESTION} {text}{ANSWER}") for text in questions]
        return state, self._read_on(document.start, state, prompts)

    def _read_on(self, start: int, state: _State, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read further tokens of every row; the hidden state [rows, width] of each's last.

        Args:
            start: position of a question.
        """
        assert state.present is not None
        counts = torch.tensor([len(row) for row in tokens], device=self.device)
        order = torch.arange(int(counts.max()), device=self.device)
        padded = [[*row, *[self.end] * (len(order) - len(row))] for row in tokens]
        places = start + state.present.sum(1, keepdim=True) + order
        state.present = torch.cat([state.present, order < counts[:, None]], 1)
        hidden = self._hidden(torch.tensor(padded, device=self.device), places, state)
        return hidden[torch.arange(len(counts)), counts - 1]

    def _answer(self, document: Document, questions: Sequence[str], most: int) -> list[str]:
        state, last = self._ask(document, questions)
        assert state.present is not None
        found: list[list[int]] = [[] for _ in questions]
        guides: Sequence[Guide | None] = (
            self._guides(document, questions) if self.held else [None] * len(questions)
        )
        rows = list(range(len(questions)))
        while rows:
            scores = self.model.lm_head(last).cpu()
            said = [self._say(line, guides[row]) for line, row in zip(scores, rows, strict=True)]
            for row, tokens in zip(rows, said, strict=True):
                found[row] = (found[row] + tokens)[:most]
            ended = [tokens[-1] == self.end for tokens in said]
            going = [at for at, row in enumerate(rows) if not ended[at] and len(found[row]) < most]
            if 0 < len(going) < len(rows):
                state.own = [(k[going], v[going]) for k, v in state.own]
                state.present = state.present[going]
            rows = [rows[at] for at in going]
            if rows:
                last = self._read_on(document.start, state, [said[at] for at in going])
        return [
            str(self.tokenizer.decode([t for t in ids if t != self.end], skip_special_tokens=False))
            for ids in found
        ]

    def _say(self, scores: Tensor, guide: Guide | None) -> list[int]:
        """The best allowed token of scores [V] and all that the guide then dictates; any token
        where there is no guide."""
        if guide is None:
            return [int(scores.argmax())]
        allowed = torch.from_numpy(guide.choices(scores.numpy(), self.reluctance))
        token = int(allowed[scores[allowed].argmax()])
        guide.say(token)
        return [token, *guide.dictated()]
