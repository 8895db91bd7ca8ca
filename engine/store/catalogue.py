"""The catalogue of a library: which stores a folder has, and which passages have which words.

A library is a folder of stores, at any depth. Its catalogue is one SQLite file beside them, or in
the user's cache folder if the library is in an object store or cannot be written. Everything in it
follows from the stores: `refresh` compares the size and time of every manifest with what was noted,
in an object store its tag, so that stores may be copied, moved and removed by any means; a
catalogue that is damaged, missing or of another version is made anew. torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from engine.errors import LibraryError, StoreError
from engine.object_storage import Address
from engine.store import cache_folder
from engine.store.container import checksum
from engine.store.folders import CATALOGUE as NAME
from engine.store.folders import stamp, stamps
from engine.store.manifest import DOCUMENT
from engine.store.passages import make_table, passages, query, spaced
from engine.store.reader import Store, read_store
from engine.types import Silent

if TYPE_CHECKING:
    from engine.store.manifest import Manifest
    from engine.types import Progress

VERSION = 2
"""Of the tables; a file of another version is made anew."""

TAKEN_TOGETHER = 32
"""Stores that are noted in one transaction, which waits for the disk once."""

LONG_LOOK, RESTS = 0.5, 10
"""Seconds from which on a look at all stores takes long, as of very many in an object store, and
how many times as long it is not made again where that may be spared."""

BUSY_SECONDS = 60
"""How long another process may write before this one gives up."""

_TABLES = """
CREATE TABLE stores(
    id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, stamp TEXT NOT NULL, model TEXT NOT NULL,
    weights TEXT NOT NULL, tokens INTEGER NOT NULL, unread INTEGER NOT NULL,
    sources TEXT NOT NULL, words TEXT NOT NULL, problem TEXT NOT NULL);
CREATE TABLE places(
    id INTEGER PRIMARY KEY, store INTEGER NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL);
CREATE INDEX places_of_store ON places(store);
CREATE TABLE files(
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, time INTEGER NOT NULL, sha256 TEXT NOT NULL);
"""

T = TypeVar("T")


@dataclass(frozen=True)
class Holding:
    """A store of a library.

    name: its path below the library, with slashes. weights: fingerprint of its model. unread:
    windows that no model has read yet. sources: `path`, `near` and `sha256` of each, see
    `manifest.SourceEntry`. problem: "" or why it cannot be read.
    """

    name: str
    model: str
    weights: str
    tokens: int
    unread: int
    sources: tuple[tuple[str, str, str], ...]
    problem: str = ""


@dataclass(frozen=True)
class Found:
    """A passage that has words of a question: tokens [first, end) of a store, and its BM25."""

    store: str
    first: int
    end: int
    score: float


class Catalogue:
    """The open catalogue of a library. Use as a context manager."""

    def __init__(self, folder: Address) -> None:
        """Open that of a library, or make an empty one.

        Raises:
            LibraryError: it can neither be opened nor made.
        """
        self.folder = folder
        self._file = _place(folder)
        self._database = self._open()
        self._rests_until = 0.0
        self._entries: list[Holding] = []
        self._entries_as_of: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def refresh(self, progress: Progress | None = None, *, sparing: bool = False) -> None:
        """Bring it up to date with the stores that are there now.

        Args:
            sparing: not if a look at all stores takes long and the last one was made lately.
        Raises:
            LibraryError: it cannot be written.
        """
        if sparing and time.monotonic() < self._rests_until:
            return
        self._sound(lambda: self._refresh(progress or Silent()))

    def take(self, name: str) -> None:
        """Note one store as it is now. Raises LibraryError as `refresh`."""

        def write() -> None:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._take(name)

        self._sound(write)

    def entries(self) -> list[Holding]:
        """The stores, by name, as they were when it was last brought up to date."""
        return self._sound(self._read_entries)

    def find(self, words: Iterable[str], most: int) -> list[Found]:
        """The passages of all stores that have any of the words, best first, so many at most."""
        wanted = query(words)
        if not wanted:
            return []
        rows = self._sound(lambda: self._database.execute(_FIND, [wanted, most]).fetchall())
        return [Found(*row) for row in rows]

    def sha256(self, path: str, size: int, time: int) -> str:
        """What was noted of a file's content when it had this size and time; "" if nothing was.

        Args:
            path: absolute.  time: of its last change, in nanoseconds.
        """
        row = self._sound(
            lambda: self._database.execute(
                "SELECT sha256 FROM files WHERE path = ? AND size = ? AND time = ?",
                [path, size, time],
            ).fetchone()
        )
        return str(row[0]) if row else ""

    def note(self, path: str, size: int, time: int, sha256: str) -> None:
        """Note a file's content under its size and time; arguments as those of `sha256`."""

        def write() -> None:
            with self._database:
                self._database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [path, size, time, sha256]
                )

        self._sound(write)

    # -- inner steps

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            raise self._refused(error) from None
        except sqlite3.DatabaseError:  # no database, or a damaged one
            return self._anew()

    def _anew(self) -> sqlite3.Connection:
        try:
            for name in (self._file.name, f"{self._file.name}-journal"):
                self._file.with_name(name).unlink(missing_ok=True)
            return self._connect()
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._refused(error) from None

    def _connect(self) -> sqlite3.Connection:
        made = sqlite3.connect(self._file, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            if self._version(made) != VERSION:
                with made:
                    made.execute("BEGIN IMMEDIATE")
                    if self._version(made) != VERSION:  # another process was not quicker
                        _make_tables(made)
        except BaseException:
            made.close()
            raise
        return made

    @staticmethod
    def _version(database: sqlite3.Connection) -> int:
        return int(database.execute("PRAGMA user_version").fetchone()[0])

    def _refused(self, error: Exception) -> LibraryError:
        return LibraryError(
            f"the catalogue of {self.folder} cannot be written ({error}): make the folder "
            f"writable, or free some space; {self._file.name} in it can be removed at any time"
        )

    def _sound(self, act: Callable[[], T]) -> T:
        """Do it; where the file turns out to be damaged, make it anew and do it again."""
        try:
            return act()
        except sqlite3.OperationalError as error:
            raise self._refused(error) from None
        except sqlite3.DatabaseError:
            self._database.close()
            self._database = self._anew()
        try:
            self._refresh(Silent())
            return act()
        except sqlite3.DatabaseError as error:
            raise self._refused(error) from None

    def _read_entries(self) -> list[Holding]:
        """As `entries`; the rows are read again only if this or another process wrote any."""
        others = int(self._database.execute("PRAGMA data_version").fetchone()[0])
        now = others, self._database.total_changes
        if self._entries_as_of != now:
            names = "name, model, weights, tokens, unread, sources, problem"
            rows = self._database.execute(f"SELECT {names} FROM stores ORDER BY name")
            self._entries = [
                Holding(name, model, weights, tokens, unread, _sources(sources), problem)
                for name, model, weights, tokens, unread, sources, problem in rows
            ]
            self._entries_as_of = now
        return self._entries

    def _refresh(self, progress: Progress) -> None:
        begun = time.monotonic()
        there = stamps(self.folder)
        ended = time.monotonic()
        if ended - begun > LONG_LOOK:
            self._rests_until = ended + RESTS * (ended - begun)
        known = dict(self._database.execute("SELECT name, stamp FROM stores").fetchall())
        stale = sorted(name for name, now in there.items() if known.get(name) != now)
        for name in known.keys() - there.keys():
            with self._database:
                self._drop(name)
        if stale:
            progress.start("reading the words of stores", len(stale), "stores")
        for at in range(0, len(stale), TAKEN_TOGETHER):
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                for name in stale[at : at + TAKEN_TOGETHER]:
                    self._take(name)
                    progress.advance(1)

    def _take(self, name: str) -> None:
        """Note a store as it is now, in the transaction that is open.

        The passages of one that has the same text as before stay: more of it was read.
        """
        path = self.folder / name
        now = stamp(path)
        if not now:  # gone since it was looked for
            self._drop(name)
            return
        known = self._database.execute("SELECT words FROM stores WHERE name = ?", [name]).fetchone()

        def look(store: Store) -> tuple[Manifest, list[tuple[int, int, str]] | None]:
            same = known is not None and known[0] == _words_of(store.manifest)
            return store.manifest, None if same else _passages(store)

        try:
            manifest, found = read_store(path, look)
            model, weights = manifest.model.id, manifest.model.weights
            sources = [[source.path, source.near, source.sha256] for source in manifest.sources]
            row = [now, model, weights, manifest.tokens, len(manifest.unread), json.dumps(sources)]
            row += [_words_of(manifest), "", name]
        except StoreError as error:
            problem = " ".join(str(error).split())
            row, found = [now, "", "", 0, 0, "[]", "", problem, name], []
        if found is None:
            self._database.execute(_UPDATE, row)
            return
        self._drop(name)
        number = self._database.execute(_INSERT, row).lastrowid
        for first, end, text in found:
            place = self._database.execute(
                "INSERT INTO places(store, first, end) VALUES (?, ?, ?)", [number, first, end]
            ).lastrowid
            self._database.execute("INSERT INTO passages(rowid, text) VALUES (?, ?)", [place, text])

    def _drop(self, name: str) -> None:
        row = self._database.execute("SELECT id FROM stores WHERE name = ?", [name]).fetchone()
        if row:
            self._database.execute(
                "DELETE FROM passages WHERE rowid IN (SELECT id FROM places WHERE store = ?)", row
            )
            self._database.execute("DELETE FROM places WHERE store = ?", row)
            self._database.execute("DELETE FROM stores WHERE id = ?", row)


_NOTED = "stamp, model, weights, tokens, unread, sources, words, problem"
_INSERT = f"INSERT INTO stores({_NOTED}, name) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = f"UPDATE stores SET {_NOTED.replace(',', ' = ?,')} = ? WHERE name = ?"

_FIND = """
SELECT stores.name, places.first, places.end, -passages.rank FROM passages
JOIN places ON places.id = passages.rowid JOIN stores ON stores.id = places.store
WHERE passages MATCH ? ORDER BY passages.rank, stores.name, places.first LIMIT ?
"""


def _place(folder: Address) -> Path:
    """The file of a library's catalogue; its folder exists afterwards.

    Raises:
        LibraryError: it cannot be made.
    """
    if isinstance(folder, Path):
        if os.access(folder, os.W_OK):
            return folder / NAME
        folder = folder.resolve()
    name = hashlib.sha256(os.fsencode(str(folder))).hexdigest()[:32]
    place = cache_folder.root() / "catalogues" / f"{name}{NAME}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LibraryError(
            f"the catalogue of {folder} cannot be kept in {place.parent}: {error.strerror}; name "
            "another folder with SEKV_CACHE"
        ) from None
    return place


def _make_tables(database: sqlite3.Connection) -> None:
    for kind, name in database.execute("SELECT type, name FROM sqlite_master").fetchall():
        if kind == "table" and name in ("passages", "places", "stores", "files"):
            database.execute(f"DROP TABLE {name}")
    for statement in _TABLES.split(";"):
        database.execute(statement)
    make_table(database)
    database.execute(f"PRAGMA user_version = {VERSION}")


def _sources(text: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((path, near, sha256) for path, near, sha256 in json.loads(text))


def _words_of(manifest: Manifest) -> str:
    """What the passages of a store follow from: its text, and where its windows are."""
    bounds = [[window.start, window.end] for window in manifest.windows]
    text = json.dumps([asdict(manifest.files[DOCUMENT]), bounds], sort_keys=True)
    return checksum(text.encode("ascii"))


def _passages(store: Store) -> list[tuple[int, int, str]]:
    """The passages of a store: tokens [first, end), and their words.

    Raises:
        StoreError: its tables or texts cannot be read.
    """
    table, texts = store.document(), store.texts()
    found = []
    for window in store.manifest.windows:
        for first, end in passages((window.start, window.end)):
            found.append((first, end, spaced(_text(table, texts, first, end))))
    return found


def _text(table: dict[str, Any], texts: tuple[str, ...], first: int, end: int) -> str:
    """The text of tokens [first, end); a line break between two sources."""
    source = table["source"][first:end]
    changes = [at + 1 for at in range(len(source) - 1) if source[at] != source[at + 1]]
    return "\n".join(
        texts[int(source[a])][int(table["starts"][first + a]) : int(table["ends"][first + b - 1])]
        for a, b in pairwise([0, *changes, end - first])
    )
