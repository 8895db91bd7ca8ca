"""How far the ingest of a library has come."""

from __future__ import annotations

import time

from engine.types import LibraryStatus


class Tally:
    """How much of a run is done, in bytes of the documents, whose tokens nobody knows yet."""

    def __init__(self, sizes: dict[int, int], done: int, failed: int) -> None:
        """sizes: bytes of the documents to be read, by their number. done, failed: documents of
        which nothing is read, in all and for a reason."""
        self._sizes, self._begun = sizes, time.monotonic()
        self._documents, self._done, self._failed = len(sizes) + done, done, failed
        self._length: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._before: dict[int, int] = {}  # those of them that an earlier run had read
        self._ended: set[int] = set()
        self.tokens = 0

    def begin(self, number: int, tokens: int) -> None:
        """A document has so many tokens; if it was begun before, it begins again."""
        self._length[number], self._read[number], self._before[number] = tokens, 0, 0

    def advance(self, number: int, tokens: int) -> None:
        """So many more of them are read."""
        if number in self._ended:  # told too late, as by another machine; `end` has counted it
            return
        self._read[number] = self._read.get(number, 0) + tokens
        self.tokens += tokens

    def resume(self, number: int, tokens: int) -> None:
        """So many more were read by an earlier run: they say nothing of pace."""
        if number not in self._ended:
            self._before[number] = self._before.get(number, 0) + tokens
        self.advance(number, tokens)

    def end(self, number: int, tokens: int, *, failed: bool) -> None:
        """A document is done with. tokens: that it has, 0 where this run did not read it."""
        if tokens:
            self.tokens += tokens - self._read.get(number, 0)
        self._ended.add(number)
        self._done += 1
        self._failed += failed

    def has_ended(self, number: int) -> bool:
        return number in self._ended

    def status(self) -> LibraryStatus:
        """The state of things now."""
        took = max(1e-6, time.monotonic() - self._begun)
        total = sum(self._sizes.values())
        share = sum(self._part(number) * size for number, size in self._sizes.items())
        before = sum(
            tokens / max(1, self._length.get(number, 0)) * self._sizes.get(number, 0)
            for number, tokens in self._before.items()
        )
        left = took * (total - share) / (share - before) if share > before else None
        speed = (self.tokens - sum(self._before.values())) / took
        part = share / total if total else 1.0
        return LibraryStatus(
            self._documents, self._done, self._failed, part, self.tokens, speed, left
        )

    def _part(self, number: int) -> float:
        if number in self._ended:
            return 1.0
        return self._read.get(number, 0) / max(1, self._length.get(number, 0))
