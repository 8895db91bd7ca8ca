"""A store that is open for questions, and what a question needs read of a partly read one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from engine.answer.citations import DocumentText
from engine.answer.focus import Focus, Sought
from engine.errors import StoreError
from engine.ingest.on_demand import read_windows
from engine.memory.open import Memory, open_memory
from engine.memory.retrieval import Retrieval
from engine.models import evidence_heads
from engine.models.chunked import Stop
from engine.models.locate import of_store
from engine.models.reader import Reader, load_reader
from engine.object_storage import Address
from engine.store.manifest import Manifest
from engine.store.reader import Store
from engine.types import AskOptions, Progress

T = TypeVar("T")

WINDOWS_READ = 4
"""Windows that one question has read at most; what lies in others is left out."""


class Opened:
    """A store with its model, its text and its memory.

    The memory is opened anew under other options, and when more of the document is read.

    ids: the document's token ids, int64 [N]. heads: how much each head looks at evidence, [L, H];
    None where that is not measured. model_s, store_s: seconds that loading took.
    """

    def __init__(
        self, store: Address, options: AskOptions, progress: Progress, reader: Reader | None
    ):
        """reader: the model, where it is loaded already.

        Raises:
            SekvError: a bad option, a damaged store, another model than the store's.
        """
        self._progress = progress
        at = time.perf_counter()
        self.store = Store.open(store)
        document = self._read(lambda: self.store.document())
        manifest = self.store.manifest
        self.store_s = time.perf_counter() - at
        at = time.perf_counter()
        self.reader = reader or _reader_of(store, manifest, options, progress)
        self.model_s = time.perf_counter() - at
        at = time.perf_counter()
        self.heads = evidence_heads.importance_of(self.reader.identity)
        self.ids = _known_ids(document["ids"], self.reader, store)
        self.book = self._read(lambda: DocumentText.of(self.store, document))
        memory = self._memory_now(options)  # last: it is of the store that is held from now on
        windows = [(window.start, window.end) for window in manifest.windows]
        alone = memory.states is not None
        self.retrieval = Retrieval(
            windows, self.book.text_of, self.reader.word_vectors, alone=alone
        )
        self.answer_from(memory)
        self.store_s += time.perf_counter() - at

    @property
    def manifest(self) -> Manifest:
        return self.store.manifest

    @property
    def memory(self) -> Memory:
        return self.focus.memory

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's live keys and values in one layer."""
        model = self.manifest.model
        return 2 * model.kv_heads * model.head_dim * self.reader.dtype.itemsize

    @property
    def state_bytes(self) -> int:
        """Bytes that the layers without full attention take for the document."""
        return 0 if self.memory.states is None else self.memory.states.nbytes

    def take(self, options: AskOptions) -> None:
        """Open the memory under these options; what was compressed under others is forgotten.

        After an error everything stays as it was.

        Raises:
            SekvError: the store cannot be asked with them.
        """
        self.answer_from(self._memory_now(options))

    def answer_from(self, memory: Memory) -> None:
        """Answer from this memory and nothing else."""
        self.focus = Focus(self.reader, memory, self.manifest, self.retrieval, self.heads)

    def read_needed(self, sought: Sought, options: AskOptions, stop: Stop | None) -> frozenset[int]:
        """Have the model read the windows that a question needs and that nobody has read yet; the
        numbers of those that were read now and here.

        Raises:
            StoppedError: `stop` said so.
            SekvError: the store cannot be added to.
        """
        if not self.manifest.unread or not options.read:
            return frozenset()
        if self.store.was_replaced():
            self._open_again(options)
        unread = frozenset(self.manifest.unread)
        if sought.view is None:
            needed = self.retrieval.needed(sought.queries)
        else:
            needed = self.retrieval.of(sought.view).windows
        missing = [window for window in needed if window in unread]
        if len(missing) > WINDOWS_READ:  # evenly over the document
            missing = [missing[i * len(missing) // WINDOWS_READ] for i in range(WINDOWS_READ)]
        if not missing:
            return frozenset()
        windows = f"{len(missing)} of {len(self.manifest.windows)} windows"
        self._progress.note(f"the question needs {windows} that have not been read yet")
        work = read_windows(
            self.store.path,
            sorted(missing),
            self.reader,
            self._progress,
            router=options.router,
            stop=stop,
        )
        self._open_again(options)
        return frozenset() if work is None else frozenset(work.read)

    def _open_again(self, options: AskOptions) -> None:
        """Take the store that has this one's name now, which has read more of the document.

        Raises:
            StoreError: it is another document's.
        """
        self._follow()
        self.take(options)

    def _memory_now(self, options: AskOptions) -> Memory:
        """The memory of the store; the model is then one for contexts of that store's length."""
        chosen = memory_options(options)
        memory = self._read(lambda: open_memory(self.store, self.reader, **chosen))
        self.reader = self.reader.at(self.manifest.context)
        return memory

    def _read(self, part: Callable[[], T]) -> T:
        """What is read of the store; of its successor, where another process reads more of the
        document meanwhile."""
        while True:
            try:
                return part()
            except StoreError:
                if not self.store.was_replaced():
                    raise
                self._follow()

    def _follow(self) -> None:
        """Hold the store that has this one's name now. Raises StoreError: another document's."""
        before, now = self.manifest, Store.open(self.store.path)
        if (now.manifest.sources, now.manifest.tokens) != (before.sources, before.tokens):
            now.close()
            raise StoreError(f"{self.store.path} was replaced while it was open: open it again")
        self.store.close()
        self.store = now


def memory_options(options: AskOptions) -> dict[str, Any]:
    """The options that a memory is opened under; see `open_memory`."""
    names = ("budget", "coverage", "full", "router")
    return {name: getattr(options, name) for name in names}


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
