"""Unix sockets of running servers, in a folder that only their user may open.

Torch-free. A server binds one socket there beside its TCP port; whoever can open it is the same
user, so that no token and no port number is needed. A socket whose server is gone is removed by
the next who looks.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from engine.errors import ServeError
from engine.object_storage import Address

LONGEST = 100
"""Bytes of a socket's path; the systems allow a little more than a hundred."""


LIBRARY = "library"
"""Said in place of the fingerprint of a store by a server that has a whole library."""


def folder() -> Path:
    """Where sockets are: the user's runtime folder, else a folder of their own in the cache, since
    that of the models is not private."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "sekv"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sekv" / "run"


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket.

    Raises:
        ServeError: no such address, or it is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except socket.gaierror as error:
        raise ServeError(f"cannot listen at {host}:{port}: {error.strerror}") from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "it is taken; choose another --port" if taken else os.strerror(error.errno or 0)
        raise ServeError(f"cannot listen at {host}:{port}: {why}") from None


def name_stores(stores: list[Address]) -> dict[str, Address]:
    """What each store is called as a model: its file name without the ending.

    Raises:
        ServeError: two of them have the same, or one store is named twice.
    """
    names: dict[str, Address] = {}
    for path in stores:
        resolved = path.resolve() if isinstance(path, Path) else path
        name = resolved.name.removesuffix(".sekv")
        if names.get(name) == resolved:
            raise ServeError(f"{path} is named twice; name every store once")
        if name in names:
            raise ServeError(f"{names[name]} and {resolved} are both called {name}; rename one")
        names[name] = resolved
    return names


def bind() -> tuple[socket.socket, Path]:
    """A new listening socket of this process, for this user alone.

    Raises:
        ServeError: the folder is not private, or its path is too long for a socket.
    """
    where = folder()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _private(where):
        raise ServeError(f"{where} is not yours alone; chmod 700 it or set XDG_RUNTIME_DIR")
    path = where / f"{os.getpid()}.sock"
    if len(os.fsencode(path)) > LONGEST:
        raise ServeError(f"{path} is too long for a socket; set XDG_RUNTIME_DIR to a short folder")
    path.unlink(missing_ok=True)  # of an earlier process with this number
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        made.bind(str(path))
        made.listen()  # at once: one that nobody listens at counts as left behind
    finally:
        os.umask(before)
    return made, path


def sockets() -> Iterator[Path]:
    """Sockets of this user's servers; those whose server is gone are removed."""
    for path, lives in _tried():
        if lives:
            yield path
        else:
            path.unlink(missing_ok=True)


def stale(*, remove: bool) -> list[Path]:
    """Sockets whose server is gone."""
    found = [path for path, lives in _tried() if not lives]
    for path in found if remove else ():
        path.unlink(missing_ok=True)
    return found


def _tried() -> Iterator[tuple[Path, bool]]:
    """Every socket of this user's servers, and whether somebody listens; without those that do not
    say."""
    where = folder()
    if not hasattr(socket, "AF_UNIX") or not where.is_dir() or not _private(where):
        return
    for path in sorted(where.glob("*.sock")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.settimeout(2)
            try:
                trial.connect(str(path))
            except ConnectionRefusedError:
                yield path, False
                continue
            except OSError:
                continue
        yield path, True


def _private(where: Path) -> bool:
    found = where.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )
