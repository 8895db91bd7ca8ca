"""Use case: one loaded model and store, many questions.

Decoding is transformers' own `generate`; this file prepares the memory, streams the text and
turns what was looked at into citations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from engine import attention, cite
from engine.certainty import SCORES
from engine.errors import BudgetError, StoppedError, StoreError
from engine.manifest import ModelIdentity
from engine.memory import Coverage
from engine.quoting import TOGETHER, Guide, Marks, Told, telling
from engine.readers import hf
from engine.recall import Memory, open_memory
from engine.store import Store
from engine.tiers import Traffic
from engine.trace import Evidence, Trace
from engine.turns import Past
from engine.types import Answer, AskOptions, Citation, MemoryUse, Progress, Turn, Usage

NOT_STATED = "not stated in the document"

TURNS_SHARE = 0.125
"""Share of the budget that the latest turns of a conversation may take as they are: half of what
always stays free to zoom. Older ones fold; see `turns`."""

TURNS_POSITIONS = 0.25
"""Share of the positions behind the document that these turns may take."""

MOST_WINDOWS = 8
"""Windows of a long document that stay visible while a question is answered."""


class Session:
    """A store open for questions. Use as a context manager."""

    def __init__(
        self,
        store: Path,
        options: AskOptions,
        progress: Progress,
        reader: hf.Reader | None = None,
    ):
        """Load model and store once; `reader` is one already loaded, when there is.

        Raises:
            SekvError: a bad option, a damaged store, another model than the store's.
        """
        _check(options)
        self.options = options
        at = time.perf_counter()
        self.store = Store.open(store)
        manifest = self.store.manifest
        document = self.store.document()
        self._store_s = time.perf_counter() - at
        at = time.perf_counter()
        self.reader = reader or _load_reader(manifest.model, manifest.dtype, options, progress)
        self._model_s = time.perf_counter() - at
        at = time.perf_counter()
        self._take(options)
        self.ids = _known_ids(document["ids"], self.reader, store)
        self.book = cite.Book.of(self.store, document)
        self._store_s += time.perf_counter() - at
        self._trace, self._evidence = Trace(), Evidence(self.ids)
        self._answer: Answer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.store.close()

    @cached_property
    def marks(self) -> Marks:
        """A look-up reader's own tokens; the whole vocabulary is gone through once."""
        prompt, tokenizer = self.reader.prompt, self.reader.tokenizer
        end = tokenizer.eos_token_id
        return Marks.of(tokenizer, prompt.quote_token, prompt.value_token, end, prompt.refusal)

    @cached_property
    def told(self) -> Told:
        """The document as the guides of a look-up reader see it."""
        return self.book.told(self.ids.numpy())

    def trace(self) -> dict[str, Any]:
        """The last question's zoom decisions and its answer as JSON values; see `engine.replay`."""
        return {
            "store": str(self.store.path),
            "model": self.store.manifest.model.id,
            "weights": self.store.manifest.model.weights,
            "sources": [source.sha256 for source in self.store.manifest.sources],
            "question": self._answer.question if self._answer else "",
            "answer": self._answer.answer if self._answer else "",
            "citations": [asdict(c) for c in self._answer.citations] if self._answer else [],
            "said": self._trace.said,
            "moves": self._trace.moves,
            "zoom": self._trace.zoom,
        }

    def evidence(self) -> tuple[Citation, ...]:
        """What the last question's attention alone would cite, whatever was quoted."""
        return self.book.citations(self._evidence.weight)

    def retune(self, options: AskOptions) -> None:
        """Take other options; only another budget, coverage or `full` opens the memory anew.

        Device, dtype and model stay those of the loaded reader.

        Raises:
            BudgetError: a bad option; everything stays as it was.
        """
        _check(options)
        now = self.options
        if (options.budget, options.coverage, options.full) != (now.budget, now.coverage, now.full):
            self._take(options)
        self.options = options

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        *,
        turns: Sequence[Turn] = (),
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            on_text: gets the visible answer as it is made.
            turns: the conversation so far; the latest turns that fit `TURNS_SHARE` are read as
                they are, older ones once and then folded.
            stop: asked before every token, and every turn that is read, whether to give up.
        Raises:
            BudgetError: an empty question, or one that is longer than the model's positions.
            StoppedError: `stop` said so.
        """
        if not question.strip():
            raise BudgetError("the question is empty")
        started = time.perf_counter()
        old, latest = self._split(turns)
        shared = self.memory.shared
        shared.reserved = 0
        self.past.recall(old if self.past.folds else (), stop)
        prompt = self._prompt(question, latest)
        left = self.reader.max_positions - self.past.length
        if len(prompt) >= left:
            raise BudgetError(
                f"the question has {len(prompt)} tokens; only {max(0, left - 1)} positions are left"
            )
        for layer in self.memory.layers:
            layer.zoomed.traffic = Traffic()
        shared.peak_bytes = shared.device_bytes
        shared.recomputed_tokens = 0
        shared.coverage = Coverage()
        windows = self._scout(prompt)
        guide = None
        if self.reader.prompt.value_token >= 0:
            windows, guide = self._look(prompt, question, windows)
        evidence = self._evidence = Evidence(self.ids)
        self._trace, self._answer = Trace(), None
        watchers: list[Any] = [evidence, *([self._trace] if self.options.trace else [])]
        shared.watchers[:] = watchers
        speaker = _Speaker(self, evidence, self._trace, on_text, started, stop)
        most = min(self.options.max_new_tokens, left - len(prompt))
        torch.manual_seed(self.options.seed)
        try:
            cache = self._generate(prompt, most, speaker, guide)
        finally:
            shared.watchers.clear()
        done = time.perf_counter()
        manifest = self.store.manifest
        zoomed = {int(s) for layer in self.memory.layers for z in layer.zoomed.spans for s in z}
        zoomed &= set(range(manifest.spans))  # without those of old turns
        row = 2 * manifest.model.layers * manifest.model.kv_heads * manifest.model.head_dim
        speed = len(speaker.tokens) / max(1e-9, done - speaker.first)
        self._answer = Answer(
            question=question,
            answer=speaker.answer if speaker.supported else NOT_STATED,
            quote=speaker.quote if speaker.supported else "",
            citations=(
                self.book.citations(evidence.weight, speaker.place) if speaker.supported else ()
            ),
            usage=Usage(
                manifest.tokens,
                shared.recomputed_tokens,
                len(prompt),
                len(speaker.tokens),
            ),
            memory=MemoryUse(
                device_kv_bytes=shared.peak_bytes + shared.reserved * manifest.model.layers,
                full_kv_bytes=row * manifest.tokens * self.reader.dtype.itemsize,
                zoomed_spans=len(zoomed),
                total_spans=manifest.spans,
                peak_device_bytes=_peak(self.reader.devices),
            ),
            timing={
                "model_load_s": self._model_s,
                "store_open_s": self._store_s,
                "first_token_s": speaker.first - started,
                "total_s": done - started,
                "tokens_per_s": speed,
            },
            stats=self._stats(windows, speaker, cache)
            | {
                "turns_read": len(latest),
                "turns_folded": self.past.shown,
                "cut_short": speaker.cut_short(most),
            },
        )
        return self._answer

    # -- steps ---------------------------------------------------------------------

    def _take(self, options: AskOptions) -> None:
        """Open the memory under these options; what was folded under others is forgotten."""
        self.answer_from(
            open_memory(
                self.store,
                self.reader,
                budget=options.budget,
                coverage=options.coverage,
                full=options.full,
                router=options.router,
            )
        )

    def answer_from(self, memory: Memory) -> None:
        """Answer from this memory and nothing else."""
        self.memory = memory
        self.past = Past(self.reader, memory, self._scout)

    def _split(self, turns: Sequence[Turn]) -> tuple[Sequence[Turn], Sequence[Turn]]:
        """Older turns, which fold, and the latest, which are read anew with every question."""
        prompt, tokenizer = self.reader.prompt, self.reader.tokenizer
        if not prompt.between:
            return (), ()
        cap = min(layer.limits.cap for layer in self.memory.layers)
        positions = self.reader.max_positions - self.memory.length
        room = min(TURNS_SHARE * cap / self._row_bytes, TURNS_POSITIONS * positions)
        first = len(turns)
        while first:
            room -= len(prompt.turn(tokenizer, turns[first - 1], first=first == 1))
            if room < 0:
                break
            first -= 1
        return turns[:first], turns[first:]

    def _prompt(self, question: str, latest: Sequence[Turn]) -> list[int]:
        """Token ids of the latest turns and the question.

        The turns are rows like those of the question. Their bytes are taken from the room to
        zoom, so that a long conversation stays within the budget.
        """
        prompt, tokenizer = self.reader.prompt, self.reader.tokenizer
        first = self.past.length == self.memory.length
        ids = prompt.question(tokenizer, question, latest, first=first)
        alone = prompt.question(tokenizer, question, first=first and not latest)
        self.memory.shared.reserved = (len(ids) - len(alone)) * self._row_bytes
        return ids

    @property
    def _row_bytes(self) -> int:
        """Of one token's live keys and values in one layer."""
        model = self.store.manifest.model
        return 2 * model.kv_heads * model.head_dim * self.reader.dtype.itemsize

    def _cache(self) -> attention.MemoryCache:
        return self.past.cache()

    def _read(self, prompt: list[int]) -> torch.Tensor:
        """Logits [V] of what follows the prompt, given what the memory sees now."""
        ids = torch.tensor([prompt], device=self.reader.devices[0])
        out = self.reader.model(
            input_ids=ids,
            attention_mask=torch.ones(1, self.past.length + len(prompt)).to(ids),
            past_key_values=self._cache(),
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def _scout(self, prompt: list[int]) -> torch.Tensor | None:
        """For a document of many windows: look over all of them once, keep those that matter."""
        shared = self.memory.shared
        if shared.windows <= MOST_WINDOWS or not len(self.memory.layers[0].view.spans):
            return None
        shared.scout = torch.zeros(len(self.memory.layers), shared.windows)
        try:
            self._read(prompt)
            score = shared.scout.sum(0)
        finally:
            shared.scout = None
        windows = score.topk(MOST_WINDOWS).indices.sort().values
        self._focus(windows)
        return windows

    def _focus(self, windows: torch.Tensor | None) -> None:
        for layer in self.memory.layers:
            layer.focus(windows)

    def _look(
        self, prompt: list[int], question: str, windows: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, Guide]:
        """For a look-up reader: those few of the windows where a quote is likeliest, and its guide
        there."""
        seen = torch.arange(self.memory.shared.windows) if windows is None else windows
        tokenizer = self.reader.tokenizer
        asked = [
            tokenizer.encode(words, add_special_tokens=False, split_special_tokens=True)
            for words in telling(question)
        ]
        parts = [seen[at : at + TOGETHER] for at in range(0, len(seen), TOGETHER)]
        if len(parts) == 1 or not len(self.memory.layers[0].view.spans):
            return windows, self._guide(seen, asked)
        guides = [self._guide(part, asked) for part in parts]
        margins = []
        for part, guide in zip(parts, guides, strict=True):
            self._focus(part)
            margins.append(guide.margin(self._read(prompt).float().cpu().numpy()))
        best = int(np.argmax(margins))
        self._focus(parts[best])
        return parts[best], guides[best]

    def _guide(self, windows: torch.Tensor, asked: list[list[int]]) -> Guide:
        """The guide of a look-up reader that sees these windows; asked: see `Guide`."""
        tables = self.store.manifest.windows
        seen = np.concatenate(
            [np.arange(tables[one].start, tables[one].end) for one in windows.tolist()]
        )
        return Guide(self.marks, self.told.at(seen), asked)

    def _generate(
        self, prompt: list[int], tokens: int, speaker: _Speaker, guide: Guide | None
    ) -> attention.MemoryCache:
        """Let the speaker say the answer; the cache it was said in."""
        options, cache = self.options, self._cache()
        ids = torch.tensor([prompt], device=self.reader.devices[0])
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if options.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": options.temperature,
                "top_p": options.top_p,
            }
        self.reader.model.generate(
            ids,
            attention_mask=torch.ones(1, self.past.length + len(prompt)).to(ids),
            past_key_values=cache,
            max_new_tokens=tokens,
            streamer=speaker,
            top_k=None,
            logits_processor=LogitsProcessorList(
                [speaker.heard, _LookUp(guide, len(prompt), self.reader.prompt.reluctance)]
                if guide
                else []
            ),
            pad_token_id=self.reader.tokenizer.pad_token_id or 0,
            **sampling,
        )
        return cache

    def _stats(
        self, windows: torch.Tensor | None, speaker: _Speaker, cache: attention.MemoryCache
    ) -> dict[str, Any]:
        traffic = [layer.zoomed.traffic for layer in self.memory.layers]
        shared = self.memory.shared
        fetched = sum(t.fetched_spans for t in traffic)
        reused = sum(t.reused_spans for t in traffic)
        return {
            "context": "exact" if shared.windows == 1 else "parallel windows",
            "windows": shared.windows,
            "windows_read": shared.windows if windows is None else len(windows),
            "pinned_rows": int(self.memory.layers[0].pinned_k.shape[1]),
            "fetched_bytes": sum(t.fetched_bytes for t in traffic),
            "fetched_spans": fetched,
            "reused_spans": reused,
            "fixed_bytes": sum(layer.fixed_bytes for layer in self.memory.layers),
            "read_bytes": self.store.device_bytes_read,
            "read_host_bytes": self.store.host_bytes_read,
            "estimated_coverage": round(shared.coverage.mean, 4),
            "least_coverage": round(shared.coverage.least, 4),
            "reuse_rate": reused / max(1, reused + fetched),
            "answer_kv_bytes": cache.peak_live_bytes,
            "unsupported_quote": "" if speaker.supported else speaker.quote,
            "certainty": {name: round(of(speaker.log_p), 4) for name, of in SCORES.items()}
            if speaker.log_p
            else {},
        }


class _LookUp(LogitsProcessor):
    """A look-up reader's decoding: held to the document, as ready to refuse as calibrated."""

    def __init__(self, guide: Guide, start: int, reluctance: float):
        self.guide, self.start, self.reluctance = guide, start, reluctance

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] > self.start:
            self.guide.say(int(input_ids[0, -1]))
        choices = self.guide.choices(scores[0].float().cpu().numpy(), self.reluctance)
        allowed = torch.from_numpy(choices).to(scores.device)
        held = torch.full_like(scores, float("-inf"))
        held[:, allowed] = scores[:, allowed]
        return held  # type: ignore[return-value]


class _Heard(LogitsProcessor):
    """Listens to what the model itself holds likely next, before anything holds it to anything.

    log_p: float32 [V] of the token to come, none before the first.
    """

    log_p: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.log_p = scores[0].float().log_softmax(-1)
        return scores


class _Speaker(BaseStreamer):
    """Takes tokens as they are generated; shows text, feeds evidence and trace.

    A look-up reader says a pointer, its quote token, a quote, its value token, then the short
    answer: only the short answer is shown, and only if the quote stands in the document and the
    reader is sure enough of its pointer.
    """

    def __init__(
        self,
        session: Session,
        evidence: Evidence,
        trace: Trace,
        on_text: Callable[[str], None] | None,
        started: float,
        stop: Callable[[], bool] | None,
    ):
        self.stop = stop
        ends = session.reader.model.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [ends]
        self.tokenizer, self.book = session.reader.tokenizer, session.book
        prompt = session.reader.prompt
        self.quote_token, self.value_token, self.bar = (
            prompt.quote_token,
            prompt.value_token,
            prompt.bar,
        )
        self.heard = _Heard()
        self.log_p: list[float] = []
        self.evidence, self.trace, self.on_text = evidence, trace, on_text
        self.first = started
        self.tokens: list[int] = []
        self.quote = ""
        self.place: tuple[int, int, int] | None = None
        self._quote_from = -1
        self._answer_from = 0 if self.value_token < 0 else -1
        self._shown = ""
        self._prompted = False

    def put(self, value: torch.Tensor) -> None:
        if self.stop is not None and self.stop():
            raise StoppedError("the answer was stopped")
        if not self._prompted:  # generate hands over the prompt first
            self._prompted = True
            return
        if not self.tokens:
            self.first = time.perf_counter()
        for token in value.reshape(-1).tolist():
            self.tokens.append(token)
            if token == self.quote_token and self._quote_from < 0:
                self._quote_from = len(self.tokens)
            elif self.heard.log_p is not None and self._quote_from < 0:
                self.log_p.append(float(self.heard.log_p[token]))
            self.evidence.said(token)
            self.trace.tell(self.tokenizer.decode([token]))
            if token == self.value_token and self._answer_from < 0:
                self.quote = self._text(self.tokens[max(0, self._quote_from) :])
                if self.bar.holds(self.log_p):
                    self.place = self.book.locate(self.quote, self.evidence.weight)
                self._answer_from = len(self.tokens)
        # An unfinished character decodes to U+FFFD; wait for its last byte. It may yet be white
        # space, so that the space before it may yet be the end.
        self._show(self.answer.rstrip("\ufffd").rstrip())

    def end(self) -> None:
        self.evidence.forget()
        self._show(self.answer)

    @property
    def answer(self) -> str:
        """The answer so far; for a look-up reader what follows the value token."""
        return self._text(self.tokens[self._answer_from :]) if self._answer_from >= 0 else ""

    def cut_short(self, most: int) -> bool:
        """Whether the answer ended for want of tokens."""
        return len(self.tokens) >= most and self.tokens[-1] not in self.ends

    @property
    def supported(self) -> bool:
        """Whether the answer may be given: a look-up reader's only with a quote that stands."""
        return self.value_token < 0 or self.place is not None

    def _show(self, text: str) -> None:
        if self.on_text and self.supported and len(text) > len(self._shown):
            self.on_text(text[len(self._shown) :])
            self._shown = text

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        # A look-up reader copies the document's line breaks too.
        return text.strip() if self.value_token < 0 else " ".join(text.split())


def _known_ids(ids: Any, reader: hf.Reader, store: Path) -> torch.Tensor:
    """The document's token ids, int64 [N].

    Raises:
        StoreError: the model has no such tokens.
    """
    known = reader.model.get_input_embeddings().num_embeddings
    if int(ids.max()) >= known:
        raise StoreError(f"{store}: token {int(ids.max())} of a model with {known}: ingest again")
    return torch.from_numpy(ids).long()


def _load_reader(
    model: ModelIdentity, dtype: str, options: AskOptions, progress: Progress
) -> hf.Reader:
    """The reader that a store names, or the one the options put in its place."""
    progress.note(f"loading {model.id}")
    own = "" if model.id == "builtin" else model.id
    return hf.load(
        options.model or own or str(hf.BUILTIN),
        revision="" if options.model else model.revision,
        device=options.device,
        dtype=dtype if options.dtype == "auto" else options.dtype,
    )


def _check(options: AskOptions) -> None:
    if options.max_new_tokens < 1:
        raise BudgetError("--max-new-tokens must be at least 1")
    if options.temperature < 0:
        raise BudgetError("--temperature must not be negative")
    if not 0 < options.top_p <= 1:
        raise BudgetError("--top-p must be in (0, 1]")


def _peak(devices: list[torch.device]) -> int:
    """Most bytes ever allocated on the GPUs in use; 0 on a CPU, where nobody counts them."""
    gpus = {device for device in devices if device.type == "cuda"}
    return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
