"""Use case: one loaded model and store, many questions.

Decoding is transformers' own `generate`; this file prepares the memory, streams the text and
turns what was looked at into citations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from engine import attention, cite
from engine.errors import BudgetError
from engine.manifest import ModelIdentity
from engine.quoting import Guide, Marks
from engine.readers import hf
from engine.recall import Memory, open_memory
from engine.store import Store
from engine.tiers import Traffic
from engine.trace import Evidence, Trace
from engine.types import Answer, AskOptions, MemoryUse, Progress, Usage

NOT_STATED = "not stated in the document"

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
        self.memory: Memory = open_memory(
            self.store,
            self.reader,
            budget=options.budget,
            coverage=options.coverage,
            full=options.full,
            router=options.router,
        )
        self.ids = torch.from_numpy(document["ids"]).long()
        self.book = cite.Book.of(self.store, document)
        self._store_s += time.perf_counter() - at
        self._trace = Trace()

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
        """The last question's zoom decisions as JSON values."""
        return {
            "store": str(self.store.path),
            "model": self.store.manifest.model.id,
            "weights": self.store.manifest.model.weights,
            "sources": [source.sha256 for source in self.store.manifest.sources],
            "zoom": self._trace.zoom,
        }

    @torch.inference_mode()
    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer one question; `on_text` gets the visible answer as it is made.

        Raises:
            BudgetError: an empty question, or one that is longer than the model's positions.
        """
        if not question.strip():
            raise BudgetError("the question is empty")
        started = time.perf_counter()
        prompt = self.reader.prompt.question(self.reader.tokenizer, question)
        room = self.reader.max_positions - self.memory.length - len(prompt)
        if room < 1:
            raise BudgetError(
                f"the question has {len(prompt)} tokens; only "
                f"{max(0, self.reader.max_positions - self.memory.length - 1)} positions are left"
            )
        for layer in self.memory.layers:
            layer.release()
            layer.zoomed.traffic = Traffic()
        self.memory.shared.peak_bytes = self.memory.shared.device_bytes
        windows = self._scout(prompt)
        evidence = Evidence(self.ids)
        self._trace = Trace()
        watchers: list[Any] = [evidence, *([self._trace] if self.options.trace else [])]
        self.memory.shared.watchers[:] = watchers
        speaker = _Speaker(self, evidence, self._trace, on_text, started)
        torch.manual_seed(self.options.seed)
        try:
            self._generate(prompt, min(self.options.max_new_tokens, room), speaker)
        finally:
            self.memory.shared.watchers.clear()
        done = time.perf_counter()
        zoomed = {int(s) for layer in self.memory.layers for z in layer.zoomed.spans for s in z}
        manifest = self.store.manifest
        row = 2 * manifest.model.layers * manifest.model.kv_heads * manifest.model.head_dim
        speed = len(speaker.tokens) / max(1e-9, done - speaker.first)
        return Answer(
            question=question,
            answer=speaker.answer if speaker.supported else NOT_STATED,
            quote=speaker.quote if speaker.supported else "",
            citations=(
                self.book.citations(evidence.weight, speaker.place) if speaker.supported else ()
            ),
            usage=Usage(manifest.tokens, 0, len(prompt), len(speaker.tokens)),
            memory=MemoryUse(
                device_kv_bytes=self.memory.shared.peak_bytes,
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
            stats=self._stats(windows, speaker),
        )

    # -- steps ---------------------------------------------------------------------

    def _cache(self) -> attention.MemoryCache:
        return attention.MemoryCache(self.memory.layers, self.memory.length)

    def _scout(self, prompt: list[int]) -> torch.Tensor | None:
        """For a document of many windows: look over all of them once, keep those that matter."""
        shared = self.memory.shared
        if shared.windows <= MOST_WINDOWS or not len(self.memory.layers[0].view.spans):
            return None
        shared.scout = torch.zeros(len(self.memory.layers), shared.windows)
        try:
            ids = torch.tensor([prompt], device=self.reader.devices[0])
            self.reader.model(
                input_ids=ids,
                attention_mask=torch.ones(1, self.memory.length + len(prompt)).to(ids),
                past_key_values=self._cache(),
                logits_to_keep=1,
            )
            score = shared.scout.sum(0)
        finally:
            shared.scout = None
        windows = score.topk(MOST_WINDOWS).indices.sort().values
        for layer in self.memory.layers:
            layer.focus(windows)
        return windows

    def _generate(self, prompt: list[int], tokens: int, speaker: BaseStreamer) -> None:
        options = self.options
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
            attention_mask=torch.ones(1, self.memory.length + len(prompt)).to(ids),
            past_key_values=self._cache(),
            max_new_tokens=tokens,
            streamer=speaker,
            top_k=None,
            logits_processor=LogitsProcessorList(
                [_LookUp(self, len(prompt))] if self.reader.prompt.value_token >= 0 else []
            ),
            pad_token_id=self.reader.tokenizer.pad_token_id or 0,
            **sampling,
        )

    def _stats(self, windows: torch.Tensor | None, speaker: _Speaker) -> dict[str, Any]:
        traffic = [layer.zoomed.traffic for layer in self.memory.layers]
        shared = self.memory.shared
        return {
            "context": "exact" if shared.windows == 1 else "parallel windows",
            "windows": shared.windows,
            "windows_read": shared.windows if windows is None else len(windows),
            "pinned_rows": int(self.memory.layers[0].pinned_k.shape[1]),
            "fetched_bytes": sum(t.fetched_bytes for t in traffic),
            "fetched_spans": sum(t.fetched_spans for t in traffic),
            "reused_spans": sum(t.reused_spans for t in traffic),
            "fixed_bytes": sum(layer.fixed_bytes for layer in self.memory.layers),
            "unsupported_quote": "" if speaker.supported else speaker.quote,
        }


class _LookUp(LogitsProcessor):
    """A look-up reader's decoding: held to the document, as ready to refuse as calibrated."""

    def __init__(self, session: Session, start: int):
        prompt, tokenizer = session.reader.prompt, session.reader.tokenizer
        marks = Marks.of(tokenizer, prompt.value_token, tokenizer.eos_token_id, prompt.refusal)
        self.guide = Guide(marks, session.ids.numpy())
        self.prompt, self.start = prompt, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] > self.start:
            self.guide.say(int(input_ids[0, -1]))
        else:
            scores[:, self.prompt.refusal[0]] -= self.prompt.reluctance
        allowed = torch.from_numpy(self.guide.allowed()).to(scores.device)
        held = torch.full_like(scores, float("-inf"))
        held[:, allowed] = scores[:, allowed]
        return held  # type: ignore[return-value]


class _Speaker(BaseStreamer):
    """Takes tokens as they are generated; shows text, feeds evidence and trace.

    A look-up reader says a quote, its value token, then the short answer: only the short answer
    is shown, and only if the quote stands in the document.
    """

    def __init__(
        self,
        session: Session,
        evidence: Evidence,
        trace: Trace,
        on_text: Callable[[str], None] | None,
        started: float,
    ):
        self.tokenizer, self.book = session.reader.tokenizer, session.book
        self.value_token = session.reader.prompt.value_token
        self.evidence, self.trace, self.on_text = evidence, trace, on_text
        self.first = started
        self.tokens: list[int] = []
        self.quote = ""
        self.place: tuple[int, int, int] | None = None
        self._answer_from = 0 if self.value_token < 0 else -1
        self._shown = ""
        self._prompted = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompted:  # generate hands over the prompt first
            self._prompted = True
            return
        if not self.tokens:
            self.first = time.perf_counter()
        for token in value.reshape(-1).tolist():
            self.tokens.append(token)
            self.evidence.said(token)
            self.trace.step += 1
            if token == self.value_token and self._answer_from < 0:
                self.quote = self._text(self.tokens)
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
