"""`sekv serve`: keep stores loaded and answer over HTTP as OpenAI's API does."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import OptionError, SekvError, StoreMissingError
from engine.models import named
from engine.object_storage import Address, ObjectUrl, address
from engine.store.folders import is_library, stamps, stores_below
from engine.types import AUTO, AskOptions
from sekv_cli import completion, options
from sekv_cli.asker import asked
from sekv_cli.server import unix_socket

if TYPE_CHECKING:
    import socket

TOKEN = "SEKV_TOKEN"


def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE",
            help="Stores made by `sekv ingest`, or folders of stores.",
            autocompletion=completion.stores,
        ),
    ] = None,
    store_dir: Annotated[
        str,
        typer.Option(
            "--store-dir",
            metavar="DIR",
            help="Serve every store of this folder or URL too; each is opened by its first "
            "question.",
            show_default=False,
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; beyond loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="TCP port; 0 takes a free one.")
    ] = 8321,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its first line is the token that clients must send. [default: SEKV_TOKEN]",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            callback=options.size,
            help="What open stores may take together, such as 800MB; the latest used stay open.",
        ),
    ] = "2GB",
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors",
            metavar="ORIGIN",
            help="A web page that may ask from a browser, such as http://localhost:3000; can be "
            "given several times. * is any page, and needs a token.",
            show_default=False,
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Questions that may wait; more are refused.")
    ] = 128,
    timeout: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="Of one question at most, waiting included."),
    ] = 300.0,
    most_tokens: Annotated[
        int,
        typer.Option(
            "--most-new-tokens", min=1, metavar="N", help="Longest answer a request may ask for."
        ),
    ] = 1024,
    budget: options.Budget = AUTO,
    no_read: options.NoRead = False,
    max_new_tokens: options.MaxNewTokens = 128,
    as_json: options.Json = False,
    verbose: options.Verbose = None,
    model: options.Model = "",
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    offline: options.Offline = False,
    full: options.Full = False,
    coverage: options.Coverage = 1.0,
    widen: options.Widen = 1.0,
) -> None:
    """Keep stores loaded behind an OpenAI-compatible endpoint.

    Every store is a model of the endpoint: GET /v1/models lists them, POST
    /v1/chat/completions answers, streamed or at once, with citations beside the
    answer and the document counted as cached tokens. `sekv ask` and `sekv chat`
    of the same user find the server by themselves.

    A folder of stores is a model too, whose documents are found by the words
    of the question; its stores are models of their own, "library/book", and are
    opened when they are asked.

    Questions are answered one after the other. On loopback no token is asked
    for unless there is one; other addresses need one. Ctrl-C ends it. Needs
    pip install 'sekv[serve]'.

    \b
    Example:
      sekv serve book.sekv
      sekv serve book.sekv law.sekv --port 9000
      sekv serve library/ --memory 8GB
      sekv serve --store-dir ~/library
      SEKV_TOKEN=... sekv serve book.sekv --host 0.0.0.0
    """
    if not timeout < float("inf"):
        raise OptionError("timeout", f"{timeout:g} is not a number of seconds")
    at_once = [address(store) for store in stores or []]
    for store in stores or []:
        asked(store)
    later = _stores_of(address(store_dir), at_once) if store_dir else []
    if not at_once and not later:
        raise SekvError("there is no store to serve: name stores, or a folder with --store-dir")
    names = unix_socket.name_stores([*at_once, *later])
    libraries = {name: place for name, place in names.items() if is_library(place)}
    single = {name: place for name, place in names.items() if name not in libraries}
    named.check(model, offline=offline)
    token = _token(token_file)
    origins = _origins(cors or [], token)
    if any(find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise SekvError("sekv serve needs two more packages: pip install 'sekv[serve]'")

    from sekv_cli import progress

    chosen = AskOptions(
        budget=budget,
        coverage=coverage,
        full=full,
        widen=widen,
        max_new_tokens=min(max_new_tokens, most_tokens),
        device=device,
        dtype=dtype.value,
        model=model,
        offline=offline,
        read=not no_read,
    )
    listening = _listen(host, port, token)
    with progress.on_stderr(verbose) as shown:
        from sekv_cli.server import app, process
        from sekv_cli.server.answering import ServerLimits, Underway
        from sekv_cli.server.warm import Warm

        limit, waiting = options.bytes_of(memory), list(names)[len(at_once) :]
        served = Warm(
            single, chosen, shown, queue, libraries=libraries, memory=limit, later=waiting
        )
        with closing(served) as warm:
            shown.clear()
            local, path = unix_socket.bind()
            url = _url(listening)
            found = {"url": url, "pid": os.getpid(), "stores": list(names), "socket": str(path)}
            ready = partial(_announce, found, as_json=as_json)
            try:
                underway = Underway()
                limits = ServerLimits(timeout, most_tokens)
                made = app.build(warm, chosen, limits, token, underway, origins)
                process.run(made, [listening, local], 2 * queue + 64, ready, underway)
            finally:
                path.unlink(missing_ok=True)


def _announce(found: dict[str, Any], *, as_json: bool) -> None:
    """Say where the server listens. found: its url, process, stores and socket."""
    from sekv_cli import format, reports

    if as_json:
        format.emit_json(found)
    else:
        reports.print_serving(format.console(), found["url"], found["stores"])


def _stores_of(folder: Address, others: list[Address]) -> list[Address]:
    """The stores of a folder, but for those that are named besides.

    Raises:
        StoreMissingError: there is no such folder, or nothing at such a URL.
        ObjectStorageError: its object store cannot be reached or refuses.
    """
    if isinstance(folder, ObjectUrl):
        names = sorted(stamps(folder))
        if not names:
            raise StoreMissingError(f"there is no store below {folder}; check its name")
        return [each for name in names if (each := folder / name) not in others]
    if not folder.is_dir():
        raise StoreMissingError(f"there is no folder {folder}; name one that holds stores")
    known = {place.resolve() for place in others if isinstance(place, Path)}
    return [store for store in stores_below(folder) if store.resolve() not in known]


def _origins(named: list[str], token: str) -> list[str]:
    """Origins as browsers send them.

    Raises:
        OptionError: one is no origin, or any page could ask without a token.
    """
    for origin in named:
        if origin == "*":
            if not token:
                raise OptionError("cors", f"any web page could ask; set {TOKEN} or --token-file")
        elif not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin):
            raise OptionError("cors", f"{origin!r} is no origin; write it as http://localhost:3000")
    return named


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        lines = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError:
        raise SekvError(f"{file} is not UTF-8 text; write the token in its first line") from None
    if not lines:
        raise SekvError(f"{file} holds no token; write one in its first line")
    return lines[0]


def _listen(host: str, port: int, token: str) -> socket.socket:
    """A socket that takes requests over TCP.

    Raises:
        SekvError: others could reach it and no token is asked for.
    """
    listening = unix_socket.listen(host, port)
    if not token and not _is_loopback(listening):
        listening.close()
        raise SekvError(f"{host} can be reached by others; set {TOKEN} or name a --token-file")
    return listening


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
