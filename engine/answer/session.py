"""Use case: one loaded model and store, many questions.

Decoding is transformers' own `generate`; this file prepares the memory and turns tokens and
evidence into an answer. `generate.AnswerStreamer` handles its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch

from engine.answer import checks, counts, whole
from engine.answer.citations import DocumentText
from engine.answer.evidence import Evidence
from engine.answer.focus import Sought, search_texts
from engine.answer.generate import AnswerStreamer
from engine.answer.opened import Opened, memory_options
from engine.answer.outlook import Outlook, Said
from engine.answer.overlap import stems
from engine.answer.support import CALIBRATED, WORDS_ALONE, Signals, refuses
from engine.answer.trace import Trace
from engine.attention.memory_cache import MemoryCache
from engine.attention.step import Watcher
from engine.attention.widen import Retry, can_retry
from engine.errors import OptionError, QuestionError
from engine.memory.conversation import Conversation
from engine.memory.open import Memory
from engine.memory.retrieval import OUTLINE
from engine.models import chunked
from engine.models.chunked import Stop
from engine.models.reader import Reader
from engine.object_storage import Address
from engine.store.reader import Store
from engine.types import Answer, AskOptions, Citation, Progress, Turn, Usage

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
        self.options = options
        self._opened = Opened(store, options, progress, reader)
        self._check_retry(options)
        self._outlook = Outlook(self.book, self._opened.retrieval)
        self._trace = Trace()
        self._answer: Answer | None = None
        self._retry: Retry | None = None

    @property
    def store(self) -> Store:
        return self._opened.store

    @property
    def reader(self) -> Reader:
        return self._opened.reader

    @reader.setter
    def reader(self, reader: Reader) -> None:
        """Let another model read questions and answer; the memory stays."""
        self._opened.reader = reader

    @property
    def memory(self) -> Memory:
        return self._opened.memory

    @property
    def past(self) -> Conversation:
        return self._opened.focus.past

    @property
    def book(self) -> DocumentText:
        return self._opened.book

    @property
    def ids(self) -> torch.Tensor:
        """The document's token ids, int64 [N]."""
        return self._opened.ids

    @property
    def _unread(self) -> tuple[int, ...]:
        return self.store.manifest.unread

    def answer_from(self, memory: Memory) -> None:
        """Answer from this memory and nothing else."""
        self._opened.answer_from(memory)

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
            "resident": counts.resident(self._opened),
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
        if memory_options(options) != memory_options(self.options):
            self._opened.take(options)
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
        sought = Sought(search_texts(question, turns))
        kind = ""
        if self.options.whole is not False:
            kind = whole.kind_of(question, follows=bool(turns)) or (
                whole.ABOUT if self.options.whole else ""
            )
            said = self._outlook.said(question, kind)
            if said is not None:
                return self._say(question, said, on_text, started)
            sought = replace(sought, view=self._outlook.needed(question, kind))
        opened = self._opened
        read_now = opened.read_needed(sought, self.options, stop)
        if sought.view is not None:
            sought = replace(sought, view=self._outlook.view(question, kind, self._unread))
        prepared = self._prepare(question, turns, stop)
        trace, evidence = Trace(), Evidence(self.ids, opened.heads)
        self._trace, self._answer = trace, None
        streamer = AnswerStreamer(self.reader, evidence, trace, on_text, stop, self.options.stop)
        retrieved = opened.focus.on(sought, prepared.prompt, stop)
        if self.options.widen > 1:
            self._retry = Retry(self.memory.shared, self.options.widen, self.options.coverage)
        cache = self.past.cache()
        cache.retry = self._retry
        try:
            self._generate(cache, prepared, streamer)
        finally:
            self.memory.shared.watchers.clear()
        streamer.finish()
        done = time.perf_counter()
        citations, support, supported = self._judge(question, streamer, prepared.most)
        about = sought.view is not None and kind not in whole.IMPRINT
        if about:  # what is judged is whether a passage states a fact
            supported = bool(streamer.answer) and not refuses(streamer.answer)
        elif sought.view is not None and supported:
            front = "".join(self.book.text_of(stretch) for stretch in sought.view)
            supported = not whole.invents_figures(streamer.answer, front)
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
            memory=counts.memory_use(opened, self.options.budget),
            timing=counts.timing(opened, streamer, started, done),
            retrieval=counts.windows_read(opened, retrieved, read_now),
            stats=counts.stats(opened, retrieved, cache, self._retry.steps if self._retry else 0)
            | {
                "turns_read": prepared.turns,
                "turns_folded": self.past.shown,
                "cut_short": streamer.cut_short(prepared.most),
                "judged": not about,
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
        counts.begin(self._opened)
        shared.estimates = self.options.trace
        most = min(self.options.max_new_tokens, left - len(prompt))
        return _PreparedQuestion(prompt, most, len(latest))

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
        room = min(TURNS_SHARE * cap / self._opened.row_bytes, TURNS_POSITIONS * positions)
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
        self.memory.shared.reserved = (len(ids) - len(alone)) * self._opened.row_bytes
        self.memory.shared.question_tokens = len(alone)
        return ids

    def _say(
        self, question: str, said: Said, on_text: Callable[[str], None] | None, started: float
    ) -> Answer:
        """An answer that the outline gives: nothing is read or generated."""
        self._trace, opened = Trace(), self._opened
        if on_text is not None:
            on_text(said.text)
        took = time.perf_counter() - started
        timing = {"model_load_s": opened.model_s, "store_open_s": opened.store_s}
        self._answer = Answer(
            question=question,
            answer=said.text,
            citations=said.citations,
            usage=Usage(self.store.manifest.tokens, 0, 0, 0),
            memory=counts.memory_use(opened, self.options.budget),
            timing={**timing, "first_token_s": took, "total_s": took, "tokens_per_s": 0.0},
            support=1.0 if said.counted else 0.0,
            stats={"windows_by": OUTLINE, "tokens_read": self.store.manifest.tokens_read},
        )
        return self._answer

    def _generate(
        self, cache: MemoryCache, prepared: _PreparedQuestion, streamer: AnswerStreamer
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
        added = stems(answer) - stems(question)
        citations = self.book.citations(evidence.weight, words, added)
        signals = Signals.of(self.book, question, answer, citations, evidence)
        calibration = WORDS_ALONE if self._opened.heads is None else CALIBRATED
        said = bool(answer) and not refuses(answer)
        support = calibration.support(signals) if said else 0.0
        stated = said and support >= calibration.least
        return citations, round(support, 4), stated or streamer.cut_short(most)


@dataclass(frozen=True)
class _PreparedQuestion:
    """A question ready to be read. prompt: its token ids. most: tokens that its answer may have.
    turns: earlier ones that are read with it."""

    prompt: list[int]
    most: int
    turns: int
