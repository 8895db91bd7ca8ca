"""A real pseudo-terminal around `sekv`: what a person sees who types a line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

_CODES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>()][AB0]?)")


@dataclass(frozen=True)
class Seen:
    """How a command ended, and what was on the screen: without colours and moves of the cursor."""

    code: int
    text: str

    @property
    def words(self) -> str:
        """With single spaces, however the lines were folded."""
        return " ".join(self.text.split())

    @property
    def widest(self) -> int:
        """Columns of the longest line."""
        return max((len(line) for line in self.text.splitlines()), default=0)


def see(
    arguments: list[str], columns: int, folder: Path, typed: str = "", **environment: str
) -> Seen:
    """Run `sekv` with these arguments on a terminal of so many columns; `typed` is what is typed
    while it runs, "\\x04" is Ctrl-D."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sekv_cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color", **environment},
        start_new_session=True,
    )
    os.close(theirs)
    os.write(mine, typed.encode())
    shown = bytearray()
    while True:
        try:
            piece = os.read(mine, 65536)
        except OSError:  # the last process that had the terminal is gone
            break
        if not piece:
            break
        shown += piece
    os.close(mine)
    text = _CODES.sub("", shown.decode("utf-8", "replace")).replace("\r\n", "\n")
    return Seen(process.wait(), text.rpartition("\r")[2] if "\n" not in text else text)
