"""A library's ingest as a command in a process of its own, and what its workers read. Not a test
itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT, environment

WINDOW = 160
"""Tokens of a window, which are bytes with the tiny model."""

_COMMAND = """
import sys
from pathlib import Path
from engine.ingest.library import ingest_library
from engine.types import IngestOptions, LibraryOptions
class Told:
    def status(self, status): print(status.tokens, status.done, flush=True)
    def note(self, line): pass
options = IngestOptions(model=sys.argv[3], window=int(sys.argv[4]), chunk_tokens=32)
many = LibraryOptions(jobs=int(sys.argv[5]), cluster=sys.argv[6], lease=5.0)
report = ingest_library([sys.argv[1]], Path(sys.argv[2]), options, many, Told())
print("states", *(each.state for each in report.documents))
for each in report.of("failed"):
    print(each.store, each.reason, file=sys.stderr)
"""

_NOTING = """
import os
from engine.ingest import build
read = build.StoreBuild._read
def noted(self, index, *rest, **more):
    line = f"{self.document.sources[0].path} {index}\\n".encode()
    place = os.open(os.environ["WINDOWS_BEGUN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(place, line)
    os.close(place)
    return read(self, index, *rest, **more)
build.StoreBuild._read = noted
"""


def start(
    source: Path,
    library: Path,
    model: str | Path,
    *,
    jobs: int = 1,
    cluster: str = "",
    env: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Begin to read a folder; a line of stdout has the tokens and documents done, the last one
    "states" and the outcome of every document."""
    arguments = [str(source), str(library), str(model), str(WINDOW), str(jobs), cluster]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments],
        cwd=ROOT,
        env=environment() if env is None else env,
        stdout=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Begun:
    """The windows that any process begins to read, noted in a file by whoever has `environment`."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """What a process inherits that is to note them."""
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(_NOTING)
        path = os.pathsep.join([str(site), environment()["PYTHONPATH"]])
        noted = str(self.folder / "begun")
        return environment(PYTHONPATH=path, WINDOWS_BEGUN=noted, OMP_NUM_THREADS="1")

    def windows(self) -> list[str]:
        """A line for each, in order: its document and number."""
        noted = self.folder / "begun"
        return noted.read_text().splitlines() if noted.exists() else []
