"""Standard input and output as they may be: closed, full, or not UTF-8.

A process may be started with any of the three closed. Then the next file that is opened gets the
number, and what is meant for a terminal ends up in it; `secure` keeps the numbers taken.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from engine.errors import StreamError


def secure() -> None:
    """Take the numbers of closed streams, and let output that nobody can read fail or vanish.

    Results that cannot be written are an error, as on a full disk; remarks on stderr are not.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, mode)
            if null != number:  # a lower number was free too, and stays taken
                os.dup2(null, number)
                os.close(null)
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(cast("BinaryIO", _Closed()), write_through=True)
    if sys.stderr is None or not sys.stderr.isatty():
        encoding = None if sys.stderr is None else sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(cast("BinaryIO", _Remarks()), encoding, write_through=True)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


class _Closed(io.RawIOBase):
    """What stands for a closed stdout: every write fails and says why."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.EBADF, "it is closed, so the result has nowhere to go", "stdout")


class _Remarks(io.RawIOBase):
    """Stderr, whose loss stops nothing: what a closed or full one does not take is gone."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            os.write(2, data)
        return memoryview(data).nbytes


def binary() -> BinaryIO:
    """Standard input as bytes.

    Raises:
        StreamError: it is closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise StreamError("stdin is closed; there is nothing to read from it")
    return sys.stdin.buffer


def lines() -> Iterator[str]:
    """The lines of standard input as they come, without their ends; a byte order mark is none.

    Raises:
        StreamError: it is closed or cannot be read, or a line is not UTF-8 text.
    """
    for number, line in enumerate(raw_lines(), 1):
        yield decoded(line, number)


def raw_lines() -> Iterator[bytes]:
    """The lines of standard input as they come. Raises StreamError: it cannot be read."""
    try:
        yield from binary()
    except OSError as error:  # open for writing alone, or a terminal that went away
        raise StreamError(f"stdin cannot be read: {error.strerror}") from None


def decoded(line: bytes, number: int) -> str:
    """One line of standard input as text. Raises StreamError."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise StreamError(f"line {number} of stdin is not UTF-8 text") from None
