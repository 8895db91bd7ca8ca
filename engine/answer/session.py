"""Use case: one loaded model and store, many questions.

Decoding is transformers' own `generate`; this file prepares the memory and turns tokens and
evidence into an answer. `generate.AnswerStreamer` handles its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import torch

from engine.answer import checks, whole
from engine.answer.citations import DocumentText
from engine.answer.evidence import Evidence
from engine.answer.generate import AnswerStreamer
from engine.answer.outlook import WINDOWS_READ, Outlook, Said
from engine.answer.overlap import content_words, stems
from engine.answer.support import CALIBRATED, WORDS_ALONE, Signals, refuses
from engine.answer.trace import Trace
from engine.attention import seam
from engine.attention.coverage import Coverage
from engine.attention.host_records import Traffic
from engine.attention.step import Watcher
from engine.attention.view import Stretch
from engine.attention.widen import Retry, can_retry
from engine.errors import OptionError, QuestionError, StoreError
from engine.ingest.on_demand import read_windows
from engine.memory.conversation import Conversation
from engine.memory.fitting import parse_budget
from engine.memory.open import Memory, open_memory
from engine.memory.retrieval import OUTLINE, Retrieval, Retrieved
from engine.models import chunked, evidence_heads
from engine.models.chunked import Stop
from engine.models.locate import of_store
from engine.models.reader import Reader, load_reader
from engine.object_storage import Address
from engine.store.manifest import Manifest
from engine.store.reader import Store
from engine.types import (
    Answer,
    AskOptions,
    Citation,
    MemoryUse,
    Progress,
    Turn,
    Usage,
    WindowRead,
)

TURNS_SHARE = 0.125
"""Share of the budget that the latest turns of a conversation may take uncompressed. Older ones are
compressed; see `memory.conversation`."""

TURNS_POSITIONS = 0.25
"""Share of the positions behind the document that these turns may take."""


class Session:
    """A store open for questions. Use as a context manager."""

    def __init__(
        self,
        store: Address,
        options: AskOptions,
        progress: Progress,
        reader: Reader | None = None,
    ):
        """Load model and store once; `reader`: the model, where it is loaded already.

        Raises:
            SekvError: a bad option, a damaged store, another model than the store's.
        """
        checks.check_options(options, measuring=True)
        self.options, self._progress = options, progress
        at = time.perf_counter()
        self.store = Store.open(store)
        manifest = self.store.manifest
        document = self.store.document()
        self._store_s = time.perf_counter() - at
        at = time.perf_counter()
        self.reader = reader or _reader_of(store, manifest, options, progress)
        self._model_s = time.perf_counter() - at
        at = time.perf_counter()
        self._take(options)
        self._check_retry(options)
        self.ids = _known_ids(document["ids"], self.reader, store)
        self.book = DocumentText.of(self.store, document)
        windows = [(window.start, window.end) for window in manifest.windows]
        alone = self.memory.states is not None
        self._retrieval = Retrieval(windows, self.book.text_of, alone=alone)
        self._outlook = Outlook(self.book)
        self._store_s += time.perf_counter() - at
        self._heads = evidence_heads.importance_of(self.reader.identity)
        self._trace = Trace()
        self._answer: Answer | None = None
        self._retry: Retry | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.store.close()

    @property
    def held_bytes(self) -> int:
        """Bytes that it takes beside the model, about: the memory of the document, and its text
        with token tables and index."""
        manifest = self.store.manifest
        text = sum(source.chars for source in manifest.sources)
        return int(self.memory.shared.device_bytes) + 4 * text + 32 * manifest.tokens

    def trace(self) -> dict[str, Any]:
        """The last question's zoom decisions and its answer as JSON values; see `replay`."""
        return {
            "store": str(self.store.path),
            "model": self.store.manifest.model.id,
            "weights": self.store.manifest.model.weights,
            "sources": [source.sha256 for source in self.store.manifest.sources],
            "spans": self.store.manifest.spans,
            "question": self._answer.question if self._answer else "",
            "answer": self._answer.answer if self._answer else "",
            "remark": self._answer.remark if self._answer else "",
            "citations": [asdict(c) for c in self._answer.citations] if self._answer else [],
            "said": self._trace.said,
            "retrieval": [asdict(w) for w in self._answer.retrieval] if self._answer else [],
            "moves": self._trace.moves,
            "zoom": self._trace.zoom,
        }

    def retune(self, options: AskOptions) -> None:
        """Take other options; another budget, coverage, `full` or router opens the memory anew.

        Device, dtype and model stay those of the loaded reader. After an error everything stays
        as it was.

        Raises:
            OptionError, BudgetError: an option is out of its range.
            RouterError: the store cannot be asked with this router.
        """
        checks.check_options(options, measuring=True)
        self._check_retry(options)
        if _memory_options(options) != _memory_options(self.options):
            self._take(options)
        self.options = options

    @torch.inference_mode()
    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        *,
        turns: Sequence[Turn] = (),
        stop: Stop | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            on_text: gets the visible answer as it is made.
            turns: the conversation so far; the latest turns that fit `TURNS_SHARE` are read as
                they are, older ones once and then compressed.
            stop: whether to give up; called before every token and every chunk that is read.
        Raises:
            QuestionError: an empty question, or one that is longer than the model's positions.
            StoppedError: `stop` said so.
        """
        checks.check_question(question, turns)
        started = time.perf_counter()
        texts = search_texts(question, turns)
        view = None
        if self.options.whole is not False:
            kind = whole.kind_of(question) or (whole.ABOUT if self.options.whole else "")
            said = self._outlook.said(question, kind)
            if said is not None:
                return self._say(question, said, on_text, started)
            view = self._outlook.view(question, kind)
        read_now = self._read_needed(texts, view, stop)
        prepared = self._prepare(question, turns, stop)
        trace, evidence = Trace(), Evidence(self.ids, self._heads)
        self._trace, self._answer = trace, None
        streamer = AnswerStreamer(self.reader, evidence, trace, on_text, stop, self.options.stop)
        retrieved = self._retrieve(texts, prepared.prompt, stop, view)
        if self.options.widen > 1:
            self._retry = Retry(self.memory.shared, self.options.widen, self.options.coverage)
        cache = self._cache()
        try:
            self._generate(cache, prepared, streamer)
        finally:
            self.memory.shared.watchers.clear()
        streamer.finish()
        done = time.perf_counter()
        citations, support, supported = self._judge(question, streamer, prepared.most)
        if view is not None:  # what is judged is whether a passage states a fact
            supported = bool(streamer.answer) and not refuses(streamer.answer)
        self._answer = Answer(
            question=question,
            answer=streamer.answer,
            supported=supported,
            support=support,
            thinking=streamer.thinking,
            citations=citations,
            usage=Usage(
                self.store.manifest.tokens,
                self.memory.shared.recomputed_tokens,
                len(prepared.prompt),
                len(streamer.tokens),
            ),
            memory=self._memory_use(),
            timing=self._timing(streamer, started, done),
            retrieval=self._windows_read(retrieved, read_now),
            stats=self._stats(retrieved, cache)
            | {
                "turns_read": prepared.turns,
                "turns_folded": self.past.shown,
                "cut_short": streamer.cut_short(prepared.most),
                "first_text_s": (streamer.shown or done) - started,
            },
        )
        return self._answer

    # -- steps ---------------------------------------------------------------------

    def _prepare(
        self, question: str, turns: Sequence[Turn], stop: Stop | None
    ) -> _PreparedQuestion:
        """Restore or compute compressed older turns, then reset the counts of one question.

        Raises:
            QuestionError: it is longer than the model's positions.
            StoppedError: `stop` said so.
        """
        old, latest = self._split(turns)
        shared = self.memory.shared
        shared.reserved = 0
        self._retry = None
        self.past.recall(old if self.past.compresses else (), stop)
        self.past.stand_behind(self.store.manifest.read[-1])
        prompt = self._prompt(question, latest)
        left = self.reader.max_positions - self.past.length
        if len(prompt) >= left:
            raise QuestionError(
                f"the question has {len(prompt)} tokens; only {max(0, left - 1)} positions are "
                "left; ask a shorter one"
            )
        for layer in self.memory.layers:
            layer.zoomed.traffic = Traffic()
        shared.peak_bytes, shared.working_bytes = shared.device_bytes, 0
        shared.recomputed_tokens = 0
        shared.coverage = Coverage()
        shared.estimates = self.options.trace
        most = min(self.options.max_new_tokens, left - len(prompt))
        return _PreparedQuestion(prompt, most, len(latest))

    def _take(self, options: AskOptions) -> None:
        """Open the memory under these options; what was compressed under others is forgotten."""
        self.answer_from(open_memory(self.store, self.reader, **_memory_options(options)))

    def answer_from(self, memory: Memory) -> None:
        """Answer from this memory and nothing else."""
        self.memory = memory
        self.past = Conversation(self.reader, memory, self._retrieve)

    def _check_retry(self, options: AskOptions) -> None:
        """Refuse `widen` for a method that cannot undo a step.

        Raises:
            OptionError: the method keeps what a step did.
        """
        recipe = self.memory.layers[0].recipe
        if options.widen > 1 and (recipe.output is not None or not can_retry(recipe.selector)):
            raise OptionError(
                "widen",
                f"method {recipe.name} cannot do a step again with more room: leave it out",
            )

    def _split(self, turns: Sequence[Turn]) -> tuple[Sequence[Turn], Sequence[Turn]]:
        """Older turns, which are compressed, and the latest, which every question reads anew."""
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

        The turns are live rows like the question's. Their bytes are taken from the slots for zoomed
        spans, so that a long conversation stays within the budget.
        """
        prompt, tokenizer = self.reader.prompt, self.reader.tokenizer
        first = self.past.length == self.memory.length
        ids = prompt.question(tokenizer, question, latest, first=first)
        alone = prompt.question(tokenizer, question, first=first and not latest)
        self.memory.shared.reserved = (len(ids) - len(alone)) * self._row_bytes
        self.memory.shared.question_tokens = len(alone)
        return ids

    @property
    def _row_bytes(self) -> int:
        """Bytes of one token's live keys and values in one layer."""
        model = self.store.manifest.model
        return 2 * model.kv_heads * model.head_dim * self.reader.dtype.itemsize

    def _cache(self) -> seam.MemoryCache:
        cache = self.past.cache()
        cache.retry = self._retry
        return cache

    def _say(
        self, question: str, said: Said, on_text: Callable[[str], None] | None, started: float
    ) -> Answer:
        """An answer that the outline gives: nothing is read or generated."""
        self._trace = Trace()
        if on_text is not None:
            on_text(said.text)
        took = time.perf_counter() - started
        timing = {"model_load_s": self._model_s, "store_open_s": self._store_s}
        self._answer = Answer(
            question=question,
            answer=said.text,
            citations=said.citations,
            usage=Usage(self.store.manifest.tokens, 0, 0, 0),
            memory=self._memory_use(),
            timing={**timing, "first_token_s": took, "total_s": took, "tokens_per_s": 0.0},
            support=1.0 if said.counted else 0.0,
            stats={"windows_by": OUTLINE, "tokens_read": self.store.manifest.tokens_read},
        )
        return self._answer

    def _retrieve(
        self,
        texts: Sequence[str],
        prompt: list[int],
        stop: Stop | None = None,
        view: tuple[Stretch, ...] | None = None,
    ) -> Retrieved:
        """Hide everything of a long document but the retrieved passages, in all layers.

        Args:
            texts: search texts: the question, and the turn before it joined with the question.
            prompt: token ids of the question, which vote where no word is found.
            view: what is to be seen, where it is not words that choose.
        """
        unread = self.store.manifest.unread
        if view is not None:
            retrieved = self._retrieval.of(view, unread)
        else:
            queries = [content_words(text) for text in texts]
            vote = lambda: self._vote(prompt, stop)  # noqa: E731
            retrieved = self._retrieval.choose(queries, vote, unread)
        for layer in self.memory.layers:
            layer.focus(retrieved.stretches)
        self.past.stand_behind(retrieved.windows[0])
        return retrieved

    def _vote(self, prompt: list[int], stop: Stop | None) -> torch.Tensor | None:
        """Votes of a prompt's rows for windows, [W], by the router's estimates for their spans;
        None where no router runs. Heads count by how much they look at evidence."""
        shared, first = self.memory.shared, self.memory.layers[0]
        if first.full or not len(first.view.spans):
            return None
        shared.votes = torch.zeros(
            self.reader.layers, self.store.manifest.model.heads, shared.windows
        )
        try:
            for _ in chunked.read(self.reader.model, prompt, self._cache(), stop):
                pass
            importance = torch.ones(shared.votes.shape[:2]) if self._heads is None else self._heads
            return torch.einsum("lhw,lh->w", shared.votes, importance)
        finally:
            shared.votes = None

    def _read_needed(
        self, texts: Sequence[str], view: tuple[Stretch, ...] | None, stop: Stop | None
    ) -> frozenset[int]:
        """Have the model read the windows that hold the passages for these texts and that nobody
        has read yet; the numbers of those that were read now and here.

        Raises:
            StoppedError: `stop` said so.
            SekvError: the store cannot be added to.
        """
        if not self.store.manifest.unread or not self.options.read:
            return frozenset()
        if self.store.was_replaced():
            self._open_again()
        unread = frozenset(self.store.manifest.unread)
        if view is None:
            needed = self._retrieval.needed([content_words(text) for text in texts])
        else:
            needed = self._retrieval.of(view).windows
        missing = frozenset([window for window in needed if window in unread][:WINDOWS_READ])
        if not missing:
            return missing
        work = read_windows(
            self.store.path,
            sorted(missing),
            self.reader,
            self._progress,
            router=self.options.router,
            stop=stop,
        )
        self._open_again()
        return frozenset() if work is None else frozenset(work.read)

    def _open_again(self) -> None:
        """Take the store that has this one's name now, which has read more of the document.

        Raises:
            StoreError: it is another document's.
        """
        before, now = self.store.manifest, Store.open(self.store.path)
        if (now.manifest.sources, now.manifest.tokens) != (before.sources, before.tokens):
            now.close()
            raise StoreError(f"{self.store.path} was replaced while it was open: open it again")
        self.store.close()
        self.store = now
        self._take(self.options)

    def _windows_read(
        self, retrieved: Retrieved, read_now: Collection[int]
    ) -> tuple[WindowRead, ...]:
        found = []
        for window in retrieved.windows:
            token = self.store.manifest.windows[window].start
            source, start = int(self.book.source[token]), int(self.book.starts[token])
            lexical, attention = retrieved.lexical.get(window), retrieved.attention.get(window)
            page = self.book.page_at(source, start)
            found.append(WindowRead(window, page, lexical, attention, window in read_now))
        return tuple(found)

    def _generate(
        self, cache: seam.MemoryCache, prepared: _PreparedQuestion, streamer: AnswerStreamer
    ) -> None:
        """Read the prompt and generate up to `prepared.most` tokens."""
        options = self.options
        # Evidence and trace are of the last chunk, which holds all of a question that fits in one.
        rest = chunked.read_ahead(self.reader.model, prepared.prompt, cache, streamer.stop)
        watchers: list[Watcher] = [streamer.evidence]
        self.memory.shared.watchers[:] = [*watchers, streamer.trace] if options.trace else watchers
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if options.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": options.temperature,
                "top_p": options.top_p,
            }
        ids = torch.tensor([rest], device=self.reader.devices[0])
        gpus = {device for device in self.reader.devices if device.type == "cuda"}
        with torch.random.fork_rng(devices=gpus):  # the caller's random numbers stay the caller's
            torch.manual_seed(options.seed)
            self.reader.model.generate(
                ids,
                attention_mask=torch.ones(1, cache.get_seq_length() + len(rest)).to(ids),
                past_key_values=cache,
                max_new_tokens=prepared.most,
                top_k=None,
                pad_token_id=self.reader.tokenizer.pad_token_id or 0,
                **streamer.controls(),
                **sampling,
            )
        cache.check_used(self.reader.model)

    def _judge(
        self, question: str, streamer: AnswerStreamer, most: int
    ) -> tuple[tuple[Citation, ...], float, bool]:
        """The passages of an answer, its support, and whether the document states it.

        An answer that was cut short is never reported as not stated.
        """
        answer, evidence = streamer.answer, streamer.evidence
        words = self.book.rare(stems(f"{question} {answer}"))
        citations = self.book.citations(evidence.weight, words)
        signals = Signals.of(self.book, question, answer, citations, evidence)
        calibration = WORDS_ALONE if self._heads is None else CALIBRATED
        said = bool(answer) and not refuses(answer)
        support = calibration.support(signals) if said else 0.0
        stated = said and support >= calibration.least
        return citations, round(support, 4), stated or streamer.cut_short(most)

    def _memory_use(self) -> MemoryUse:
        manifest, shared = self.store.manifest, self.memory.shared
        zoomed = torch.cat([z.cpu() for layer in self.memory.layers for z in layer.zoomed.spans])
        zoomed = torch.bincount(zoomed)[: manifest.spans] > 0  # without those of old turns
        turns = shared.reserved * len(self.memory.layers)
        rows = manifest.model.numbers_per_token * manifest.tokens * self.reader.dtype.itemsize
        return MemoryUse(
            device_kv_bytes=shared.peak_bytes + turns + self._state_bytes,
            full_kv_bytes=rows + self._state_bytes,
            zoomed_spans=int(zoomed.sum()),
            total_spans=manifest.spans,
            peak_device_bytes=_peak(self.reader.devices),
            working_bytes=shared.working_bytes,
            budget_tokens=round(parse_budget(self.options.budget, manifest.tokens)),
        )

    @property
    def _state_bytes(self) -> int:
        """Bytes that the layers without full attention take for the document."""
        return 0 if self.memory.states is None else self.memory.states.nbytes

    def _timing(self, streamer: AnswerStreamer, started: float, done: float) -> dict[str, float]:
        return {
            "model_load_s": self._model_s,
            "store_open_s": self._store_s,
            "first_token_s": streamer.first - started,
            "total_s": done - started,
            # The first token came before the clock of the others started.
            "tokens_per_s": (len(streamer.tokens) - 1) / max(1e-9, done - streamer.first),
        }

    def _stats(self, retrieved: Retrieved, cache: seam.MemoryCache) -> dict[str, Any]:
        traffic = [layer.zoomed.traffic for layer in self.memory.layers]
        shared = self.memory.shared
        fetched = sum(t.fetched_spans for t in traffic)
        reused = sum(t.reused_spans for t in traffic)
        received, requests = self.store.received
        return {
            "context": "exact" if shared.windows == 1 else "parallel windows",
            "windows": shared.windows,
            "windows_read": len(retrieved.windows),
            "windows_by": retrieved.by,
            "tokens_read": self.store.manifest.tokens_read,
            "tokens_seen": retrieved.tokens(self.store.manifest.tokens_read),
            "pinned_rows": int(self.memory.layers[0].pinned_k.shape[1]),
            "fetched_bytes": sum(t.fetched_bytes for t in traffic),
            "fetched_spans": fetched,
            "reused_spans": reused,
            "fixed_bytes": sum(layer.fixed_bytes for layer in self.memory.layers),
            "read_bytes": self.store.device_bytes_read,
            "read_host_bytes": self.store.host_bytes_read,
            "received_bytes": received,
            "requests": requests,
            "estimated_coverage": round(shared.coverage.mean, 4),
            "least_coverage": round(shared.coverage.least, 4),
            "widened_steps": self._retry.steps if self._retry else 0,
            "reuse_rate": reused / max(1, reused + fetched),
            "answer_kv_bytes": cache.peak_live_bytes,
            "state_bytes": self._state_bytes,
            "state_window": None if self.memory.states is None else self.past.window,
        }


def _memory_options(options: AskOptions) -> dict[str, Any]:
    """The options that a memory is opened under; see `open_memory`."""
    names = ("budget", "coverage", "full", "router")
    return {name: getattr(options, name) for name in names}


def search_texts(question: str, turns: Sequence[Turn]) -> list[str]:
    """The question, and the latest turn joined with it, since a question may refer to that turn."""
    if not turns:
        return [question]
    return [question, f"{turns[-1].question} {turns[-1].answer} {question}"]


@dataclass(frozen=True)
class _PreparedQuestion:
    """A question ready to be read. prompt: its token ids. most: tokens that its answer may have.
    turns: earlier ones that are read with it."""

    prompt: list[int]
    most: int
    turns: int


def _known_ids(ids: Any, reader: Reader, store: Address) -> torch.Tensor:
    """The document's token ids, int64 [N].

    Raises:
        StoreError: the model has no such tokens.
    """
    known = reader.model.get_input_embeddings().num_embeddings
    if int(ids.max()) >= known:
        raise StoreError(f"{store}: token {int(ids.max())} of a model with {known}: ingest again")
    return torch.from_numpy(ids).long()


def _reader_of(
    store: Address, manifest: Manifest, options: AskOptions, progress: Progress
) -> Reader:
    """The reader that a store names, or the one the options put in its place."""
    progress.note(f"loading {manifest.model.id}")
    return load_reader(
        of_store(store, manifest.model, options.model, offline=options.offline, progress=progress),
        device=options.device,
        dtype=manifest.dtype if options.dtype == "auto" else options.dtype,
        progress=progress,
    )


def _peak(devices: list[torch.device]) -> int:
    """Most bytes ever allocated on the GPUs in use; 0 on a CPU, where nobody counts them."""
    gpus = {device for device in devices if device.type == "cuda"}
    return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
