"""Use case: one loaded model and store, many questions.

Decoding is transformers' own `generate`; this file prepares the memory, streams the text and
turns what was looked at into citations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers.generation.streamers import BaseStreamer

from engine.answer import citations
from engine.answer.trace import Evidence, Trace
from engine.attention import seam
from engine.attention.budget import Coverage
from engine.attention.residency import Traffic
from engine.attention.retry import Retry, can_retry
from engine.errors import BudgetError, StoppedError, StoreError
from engine.memory.conversation import Conversation
from engine.memory.open import Memory, open_memory
from engine.models import hf
from engine.store.reader import Store
from engine.types import (
    Answer,
    AskOptions,
    Citation,
    MemoryUse,
    ModelIdentity,
    Progress,
    Turn,
    Usage,
)

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
        self._check_widening(options)
        self.ids = _known_ids(document["ids"], self.reader, store)
        self.book = citations.DocumentText.of(self.store, document)
        self._store_s += time.perf_counter() - at
        self._trace, self._evidence = Trace(), Evidence(self.ids)
        self._answer: Answer | None = None
        self._widening: Retry | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.store.close()

    def trace(self) -> dict[str, Any]:
        """The last question's zoom decisions and its answer as JSON values; see `replay`."""
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
        """The passages that the last question's attention weighed most."""
        return self.book.citations(self._evidence.weight)

    def retune(self, options: AskOptions) -> None:
        """Take other options; only another budget, coverage or `full` opens the memory anew.

        Device, dtype and model stay those of the loaded reader.

        Raises:
            BudgetError: a bad option; everything stays as it was.
        """
        _check(options)
        self._check_widening(options)
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
        self._widening = None
        self.past.recall(old if self.past.folds else (), stop)
        prompt = self._prompt(question, latest)
        left = self.reader.max_positions - self.past.length
        if len(prompt) >= left:
            raise BudgetError(
                f"the question has {len(prompt)} tokens; only {max(0, left - 1)} positions are left"
            )
        for layer in self.memory.layers:
            layer.zoomed.traffic = Traffic()
        shared.peak_bytes, shared.working_bytes = shared.device_bytes, 0
        shared.recomputed_tokens = 0
        shared.coverage = Coverage()
        shared.estimates = self.options.trace
        most = min(self.options.max_new_tokens, left - len(prompt))
        self._trace, self._evidence, self._answer = Trace(), Evidence(self.ids), None
        speaker = _Streamer(self, on_text, started, stop)
        self._trace, self._evidence = speaker.trace, speaker.evidence
        windows = self._scout(prompt)
        if self.options.widen > 1:
            self._widening = Retry(shared, self.options.widen, self.options.coverage)
        cache = self._cache()
        try:
            self._generate(cache, prompt, most, speaker)
        finally:
            shared.watchers.clear()
        speaker.finish()
        done = time.perf_counter()
        manifest = self.store.manifest
        zoomed = torch.cat([z.cpu() for layer in self.memory.layers for z in layer.zoomed.spans])
        zoomed = torch.bincount(zoomed)[: manifest.spans] > 0  # without those of old turns
        row = 2 * manifest.model.layers * manifest.model.kv_heads * manifest.model.head_dim
        # The first token came before the clock of the others started.
        speed = (len(speaker.tokens) - 1) / max(1e-9, done - speaker.first)
        self._answer = Answer(
            question=question,
            answer=speaker.answer,
            citations=self.book.citations(speaker.evidence.weight),
            usage=Usage(
                manifest.tokens,
                shared.recomputed_tokens,
                len(prompt),
                len(speaker.tokens),
            ),
            memory=MemoryUse(
                device_kv_bytes=shared.peak_bytes + shared.reserved * manifest.model.layers,
                full_kv_bytes=row * manifest.tokens * self.reader.dtype.itemsize,
                zoomed_spans=int(zoomed.sum()),
                total_spans=manifest.spans,
                peak_device_bytes=_peak(self.reader.devices),
                working_bytes=shared.working_bytes,
            ),
            timing={
                "model_load_s": self._model_s,
                "store_open_s": self._store_s,
                "first_token_s": speaker.first - started,
                "total_s": done - started,
                "tokens_per_s": speed,
            },
            stats=self._stats(windows, cache)
            | {
                "turns_read": len(latest),
                "turns_folded": self.past.shown,
                "cut_short": speaker.cut_short(most),
                "first_text_s": (speaker.shown or done) - started,
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
        self.past = Conversation(self.reader, memory, self._scout)

    def _check_widening(self, options: AskOptions) -> None:
        """Refuse to do steps again where a method keeps what a step did."""
        recipe = self.memory.layers[0].recipe
        if options.widen > 1 and (recipe.output is not None or not can_retry(recipe.selector)):
            raise BudgetError(
                f"method {recipe.name} cannot do a step again with more room: leave out --widen"
            )

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

    def _cache(self) -> seam.MemoryCache:
        cache = self.past.cache()
        cache.widening = self._widening
        return cache

    def _scout(self, prompt: list[int]) -> torch.Tensor | None:
        """For a document of many windows: look over all of them once, keep those that matter."""
        shared = self.memory.shared
        first = self.memory.layers[0]
        if shared.windows <= MOST_WINDOWS or first.full or not len(first.view.spans):
            return None
        shared.scout = torch.zeros(len(self.memory.layers), shared.windows)
        try:
            ids = torch.tensor([prompt], device=self.reader.devices[0])
            self.reader.model(
                input_ids=ids,
                attention_mask=torch.ones(1, self.past.length + len(prompt)).to(ids),
                past_key_values=self._cache(),
                logits_to_keep=1,
            )
            score = shared.scout.sum(0)
        finally:
            shared.scout = None
        windows = score.topk(MOST_WINDOWS).indices.sort().values
        self._focus(windows)
        return windows

    def _focus(self, windows: torch.Tensor | None) -> None:
        for layer in self.memory.layers:
            layer.focus(windows)

    def _generate(
        self, cache: seam.MemoryCache, prompt: list[int], most: int, speaker: _Streamer
    ) -> None:
        """Read the prompt and say up to `most` tokens."""
        options = self.options
        self.memory.shared.watchers[:] = speaker.watchers
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if options.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": options.temperature,
                "top_p": options.top_p,
            }
        ids = torch.tensor([prompt], device=self.reader.devices[0])
        gpus = {device for device in self.reader.devices if device.type == "cuda"}
        with torch.random.fork_rng(devices=gpus):  # the caller's random numbers stay the caller's
            torch.manual_seed(options.seed)
            self.reader.model.generate(
                ids,
                attention_mask=torch.ones(1, cache.get_seq_length() + len(prompt)).to(ids),
                past_key_values=cache,
                max_new_tokens=most,
                streamer=speaker,
                top_k=None,
                pad_token_id=self.reader.tokenizer.pad_token_id or 0,
                **sampling,
            )

    def _stats(self, windows: torch.Tensor | None, cache: seam.MemoryCache) -> dict[str, Any]:
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
            "widened_steps": self._widening.steps if self._widening else 0,
            "reuse_rate": reused / max(1, reused + fetched),
            "answer_kv_bytes": cache.peak_live_bytes,
        }


class _Streamer(BaseStreamer):
    """Takes tokens as they are generated; shows text, feeds evidence and trace."""

    def __init__(
        self,
        session: Session,
        on_text: Callable[[str], None] | None,
        started: float,
        stop: Callable[[], bool] | None,
    ):
        self.stop = stop
        self.evidence, self.trace = Evidence(session.ids), Trace()
        self.watchers: list[Any] = [self.evidence]
        if session.options.trace:
            self.watchers.append(self.trace)
        ends = session.reader.model.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [ends]
        self.tokenizer = session.reader.tokenizer
        self.on_text = on_text
        self.first = started
        self.shown: float | None = None
        self.tokens: list[int] = []
        self._shown = ""
        self._prompted = False

    def put(self, value: torch.Tensor) -> None:
        if self.stop is not None and self.stop():
            raise StoppedError("the answer was stopped")
        if not self._prompted:  # generate hands over its prompt first
            self._prompted = True
            return
        if not self.tokens:
            self.first = time.perf_counter()
        for token in value.reshape(-1).tolist():
            self.evidence.said(token)
            self.tokens.append(token)
            self.trace.tell(self.tokenizer.decode([token]))
        # An unfinished character decodes to U+FFFD; wait for its last byte. It may yet be white
        # space, so that the space before it may yet be the end.
        self._show(self.answer.rstrip("\ufffd").rstrip())

    def end(self) -> None:
        self._prompted = False
        self.evidence.forget()

    def finish(self) -> None:
        """The answer is complete."""
        self._show(self.answer)

    @property
    def answer(self) -> str:
        """The answer so far."""
        text: str = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text.strip()

    def cut_short(self, most: int) -> bool:
        """Whether the answer ended for want of tokens."""
        return len(self.tokens) >= most and self.tokens[-1] not in self.ends

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown):
            self.shown = self.shown or time.perf_counter()
            if self.on_text:
                self.on_text(text[len(self._shown) :])
            self._shown = text


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
    return hf.load(
        options.model or model.id,
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
    if not 1 <= options.widen < math.inf:
        raise BudgetError("--widen must be 1 or more")


def _peak(devices: list[torch.device]) -> int:
    """Most bytes ever allocated on the GPUs in use; 0 on a CPU, where nobody counts them."""
    gpus = {device for device in devices if device.type == "cuda"}
    return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
