"""`python -m engine.train.reader`: parse, start the processes, train. No training code here."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

from engine.errors import SekvError

# glibc gives large blocks back to the system at once and asks for them anew every step,
# which costs more than half of the speed; these two keep them.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
INTERRUPTED = 130  # what a shell says of SIGINT


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.train.reader", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt books")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--out", type=Path, help="folder of the finished reader")
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0, help="0: the default shape's")
    parser.add_argument("--batch", type=int, default=0, help="tokens a process and step")
    parser.add_argument("--processes", type=int, default=2, help="CPU processes, one thread each")
    parser.add_argument("--compile", action="store_true", help="torch.compile; for GPUs")
    parser.add_argument("--export", action="store_true", help="only write the run's reader")
    return parser.parse_args()


def _spread(processes: int) -> int:
    """Start this command once per process and wait; the first failure ends them all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        extra = {
            **_ALLOCATOR,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(processes),
        }
        command = [sys.executable, "-m", "engine.train.reader", *sys.argv[1:]]
        started.append(subprocess.Popen(command, env={**os.environ, **extra}))
    try:
        while started:
            for process in started:
                try:
                    code = process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
                started.remove(process)
                if code:
                    return code
                break
        return 0
    except KeyboardInterrupt:  # the processes were told as well, and say so
        for process in started:
            process.wait()
        return INTERRUPTED
    finally:
        for process in started:
            process.terminate()


def main() -> int:
    """Run the command; returns its exit code."""
    given = _parse()
    if "RANK" not in os.environ and not given.export:
        import torch

        processes = 1 if torch.cuda.is_available() else given.processes
        if processes > 1 or "MALLOC_MMAP_MAX_" not in os.environ:
            return _spread(processes)
    from dataclasses import replace

    from engine.train.reader.batches import Curriculum
    from engine.train.reader.loop import Options, export_run, train_reader
    from engine.train.reader.model import Shape

    shape, curriculum = Shape(), Curriculum()
    if given.layers:
        shape = replace(shape, layers=given.layers)
    if given.batch:
        curriculum = replace(curriculum, budget=given.batch)
    options = Options(
        text=given.text,
        run=given.run,
        out=given.out,
        minutes=given.minutes,
        steps=given.steps,
        seed=given.seed,
        compiled=given.compile,
        shape=shape,
        curriculum=curriculum,
    )
    try:
        if given.export:
            print(export_run(options, given.out))
        else:
            train_reader(options)
    except SekvError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
