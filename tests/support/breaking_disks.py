"""Disks that break at a chosen step, for the crash tests of the store.

What it is: stand-ins for `engine.store.disk.Disk` that refuse, kill or lose power between any two
things a writer does to a file system. What it is not: a test.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from engine.store.container import Bytes
from engine.store.disk import Disk


class SteppedDisk(Disk):
    """A disk that counts its steps and lets `happen` do what it will before the given one.

    Nothing waits for a real disk: what that is for is the business of `PowerDisk`.
    """

    def __init__(
        self,
        at: int = 0,
        happen: Callable[[], None] = lambda: None,
        *,
        lasting: bool = False,
        exchanges: bool = True,
    ) -> None:
        super().__init__()
        self.at, self.happen, self.lasting, self.exchanges = at, happen, lasting, exchanges
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.at and (self.steps == self.at or (self.lasting and self.steps > self.at)):
            self.happen()

    def create(self, path: Path) -> int:
        self.step()
        return super().create(path)

    def write(self, descriptor: int, path: Path, data: Bytes) -> None:
        """Half of it, then the accident if it is time, then the rest."""
        half = len(data) // 2
        super().write(descriptor, path, memoryview(data)[:half])
        self.step()
        super().write(descriptor, path, memoryview(data)[half:])

    def sync(self, descriptor: int, path: Path) -> None:
        self.step()

    def make_folder(self, path: Path) -> None:
        self.step()
        super().make_folder(path)

    def truncate(self, path: Path, size: int) -> None:
        self.step()
        super().truncate(path, size)

    def rename(self, old: Path, new: Path) -> None:
        self.step()
        super().rename(old, new)
        self.step()

    def exchange(self, one: Path, other: Path) -> bool:
        self.step()
        done = self.exchanges and super().exchange(one, other)
        self.step()
        return done

    def link(self, old: Path, new: Path) -> None:
        self.step()
        super().link(old, new)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.step()

    def remove_tree(self, path: Path) -> None:
        """One thing after another, so that an accident leaves some of them."""
        if path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                self.remove_tree(inner) if inner.is_dir() else self.unlink(inner)
        self.step()
        super().remove_tree(path)


class PowerCut(BaseException):
    """The machine is off. Nobody handles it."""


class PowerDisk(SteppedDisk):
    """A disk that forgets what was never synced: bytes of files, and the latest names.

    Names are forgotten from the end back to the last one whose folders were synced, as a
    journalling file system may; bytes of a file are forgotten whatever its name does.
    """

    def __init__(self, at: int, attic: Path, exchanges: bool) -> None:
        super().__init__(at, self.cut, lasting=True, exchanges=exchanges)
        self.attic = attic
        attic.mkdir()
        self.unsynced: dict[int, int] = {}
        self.names: list[tuple[set[Path], Callable[[], object]]] = []
        self.off = False

    def cut(self) -> None:
        self.off = True
        raise PowerCut

    def note(self, folders: set[Path], undo: Callable[[], object]) -> None:
        self.names.append((folders, undo))

    def keep(self, path: Path) -> Path:
        return self.attic / str(len(list(self.attic.iterdir())))

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self.note({path.parent}, lambda: path.unlink(missing_ok=True))
        self.unsynced[os.fstat(descriptor).st_ino] = 0
        return descriptor

    def append(self, path: Path, data: Bytes) -> None:
        if not path.exists():
            self.note({path.parent}, lambda: path.unlink(missing_ok=True))
        super().append(path, data)

    def write(self, descriptor: int, path: Path, data: Bytes) -> None:
        found = os.fstat(descriptor)
        self.unsynced.setdefault(found.st_ino, found.st_size)
        super().write(descriptor, path, data)

    def sync(self, descriptor: int, path: Path) -> None:
        super().sync(descriptor, path)
        if not path.is_dir():
            self.unsynced.pop(os.fstat(descriptor).st_ino, None)
            return
        for folders, _ in self.names:
            folders.discard(path)
        done = [index for index, (folders, _) in enumerate(self.names) if not folders]
        del self.names[: done[-1] + 1 if done else 0]

    def make_folder(self, path: Path) -> None:
        fresh = not path.exists()
        super().make_folder(path)
        if fresh:
            self.note({path.parent}, lambda: Disk().remove_tree(path))

    def rename(self, old: Path, new: Path) -> None:
        self.step()
        old.rename(new)
        self.note({old.parent, new.parent}, lambda: new.rename(old))
        self.step()

    def exchange(self, one: Path, other: Path) -> bool:
        self.step()
        if not self.exchanges or not Disk().exchange(one, other):
            return False
        self.note({one.parent, other.parent}, lambda: Disk().exchange(one, other))
        self.step()
        return True

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self.note({new.parent}, lambda: new.unlink())

    def unlink(self, path: Path) -> None:
        if path.exists():
            kept = self.keep(path)
            path.rename(kept)
            self.note({path.parent}, lambda: kept.rename(path))
        self.step()

    def remove_tree(self, path: Path) -> None:
        if path.exists():
            kept = self.keep(path)
            path.rename(kept)
            self.note({path.parent}, lambda: kept.rename(path))
        self.step()

    def lose(self, folder: Path, chance: random.Random) -> None:
        """What the next start of the machine finds."""
        for _ in range(chance.randint(0, len(self.names))):
            self.names.pop()[1]()
        for path in folder.rglob("*"):
            durable = self.unsynced.get(path.lstat().st_ino)
            if durable is not None and path.is_file():
                size = path.stat().st_size
                keep = durable + chance.randint(0, max(size - durable, 0))
                with path.open("r+b") as file:
                    file.truncate(keep)
                    file.seek(durable + (keep - durable) // 2)
                    file.write(bytes(keep - file.tell()))
                    file.truncate(chance.choice([keep, size]))
