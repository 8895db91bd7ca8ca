"""Files that a command writes beside its store: pages, traces, histories, saved conversations.

A file of anybody else's is never replaced: what has the name must be of the same kind and of
sekv's own making, or be empty. What is replaced stays whole until the new one is.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from engine.answer.replay import PACKED
from engine.errors import OutputError

PAGE_MARK = b'<meta name="generator" content="sekv">'
"""Near the beginning of every page that `inspect --html` writes."""

_ENTRY = re.compile(rb"\s*# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\n]*\n\+")
"""How a history of typed lines begins."""


def check_page(file: Path | None) -> None:
    """Whether `inspect --html` may write this file. Raises OutputError."""
    _check(file, "page", lambda old: PAGE_MARK in old.read(4096))


def check_trace(file: Path | None) -> None:
    """Whether `ask --trace` may write this file. Raises OutputError."""
    _check(file, "trace", _is_trace)


def check_history(file: Path | None) -> None:
    """Whether `chat --history` may write this file. Raises OutputError."""
    _check(file, "history", lambda old: _ENTRY.match(old.read(4096)) is not None)


def check_router(file: Path) -> None:
    """Whether `train` may write this file. Raises OutputError."""
    _check(file, "router", lambda old: b"sekv-router " in old.read(4096))


def check_heads(file: Path) -> None:
    """Whether `train heads` may write this file. Raises OutputError."""
    _check(file, "list of heads", lambda old: b'"sekv-heads ' in old.read(4096))


def check_new(file: Path) -> None:
    """Whether a file can be made that is not there yet. Raises OutputError."""
    _check(file, "", lambda old: False)


def write(file: Path, text: str) -> int:
    """Write a whole file: beside and then renamed, so that it is never there by half. One whose
    name ends with .gz is compressed.

    Returns:
        Its bytes.
    Raises:
        OutputError: it cannot be written; what was there is there still.
        OSError: a device or a pipe takes nothing.
    """
    data = text.encode("utf-8", "replace")
    if file.suffix == PACKED:
        data = gzip.compress(data, mtime=0)
    if file.exists() and not file.is_file():  # a device or a pipe, which may have no path
        file.write_bytes(data)
        return len(data)
    target = Path(os.path.realpath(file))
    beside = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)
        return len(data)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _check(file: Path | None, kind: str, is_own: Callable[[BinaryIO], bool]) -> None:
    if file is None:
        return
    if "\0" in str(file) or str(file) == "-":
        raise OutputError(f"{str(file)!a} is no name of a file; name another")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise OutputError(f"{file} cannot be written; name a file in an existing folder")
    if not file.is_file() or not file.stat().st_size:
        return  # nothing there, or nothing in it; or a device, which keeps nothing
    with file.open("rb") as old:
        if kind and is_own(old):
            return
    if not kind:
        raise OutputError(f"{file} is there already; name another file")
    raise OutputError(
        f"{file} is there already and is no {kind} of sekv's, so it is not overwritten; "
        "name another file"
    )


def _is_trace(old: BinaryIO) -> bool:
    try:
        packed = old.read(2) == b"\x1f\x8b"
        old.seek(0)
        first = json.loads((gzip.GzipFile(fileobj=old) if packed else old).readline())
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"store", "question", "zoom"} <= first.keys()
