"""What the disk promises where systems differ."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine.store import disk
from engine.store.disk import Disk

FULL_SYNC = 51
"""What macOS calls F_FULLFSYNC."""


@pytest.mark.parametrize(
    ("answer", "synced"),
    [(0, ["full"]), (errno.ENOTSUP, ["full", "plain"])],
    ids=["disk", "network"],
)
def test_on_macos_the_disk_s_own_cache_is_emptied_where_it_can_be(
    answer: int, synced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For files and for the names in folders."""
    calls: list[str] = []

    def control(descriptor: int, command: int) -> int:
        assert command == FULL_SYNC
        os.fstat(descriptor)  # it is open
        calls.append("full")
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(disk, "_FULL_SYNC", FULL_SYNC)
    monkeypatch.setattr(disk.fcntl, "fcntl", control)
    monkeypatch.setattr(disk.os, "fsync", lambda _: calls.append("plain"))
    Disk().write_file(tmp_path / "file", [b"bytes"])
    Disk().sync_folder(tmp_path)
    assert calls == synced * 2
    assert (tmp_path / "file").read_bytes() == b"bytes"


def test_a_disk_that_fails_is_not_taken_for_one_without_a_full_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "_FULL_SYNC", FULL_SYNC)
    monkeypatch.setattr(disk.fcntl, "fcntl", broken)
    with pytest.raises(OSError, match="Input/output"):
        Disk().write_file(tmp_path / "file", [b"bytes"])
