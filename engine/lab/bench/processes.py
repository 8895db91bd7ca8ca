"""What starting a program costs: wall seconds and peak memory of processes that begin anew."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import SekvError


def measure(programs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Run programs in turns, each to its end.

    Args:
        programs: command lines by name.
    Returns:
        By name: wall_s, the median, all_s, and peak_bytes, the most that lay in memory at once.
    Raises:
        SekvError: a program failed.
    """
    measured: dict[str, dict[str, Any]] = {
        name: {"all_s": [], "peak_bytes": 0} for name in programs
    }
    for _ in range(rounds):
        for name, command in programs.items():
            ran = run(name, command)
            measured[name]["all_s"].append(ran.seconds)
            measured[name]["peak_bytes"] = max(measured[name]["peak_bytes"], ran.peak)
    for one in measured.values():
        one["wall_s"] = statistics.median(one["all_s"])
    return measured


@dataclass(frozen=True)
class Ran:
    """A process that has ended. seconds: of the wall. peak: bytes at most in memory. output: what
    it printed."""

    seconds: float
    peak: int
    output: str


def run(name: str, command: Sequence[str]) -> Ran:
    """Run a program to its end.

    Linux counts what its parent held as the child's until the child's program begins, so that
    the parent is a small process of its own.

    Raises:
        SekvError: it failed; `name` says which.
    """
    launcher = [sys.executable, "-m", __name__, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False)
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), "")
        raise SekvError(f"{name} failed with exit code {done.returncode}: {last}")
    return Ran(*json.loads(done.stdout))


def _launch(command: Sequence[str]) -> int:
    """Run a program; print what `Ran` holds as JSON; its exit code."""
    at = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - at
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps([seconds, peak, done.stdout]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(_launch(sys.argv[1:]))
