"""Who answers a command's questions: a running server of the same user, else an own session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from engine import api
from engine.object_storage import Address, address
from engine.store import glance
from engine.store.folders import is_library

if TYPE_CHECKING:
    from types import TracebackType

    import typer

    from engine.types import Answer, AskOptions, IngestOptions, Progress, Turn


class Asker(Protocol):
    """What `engine.answer.session.Session` and `sekv_cli.server.client.Remote` have in common."""

    options: AskOptions

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...

    def ask(
        self,
        question: str,
        on_text: Callable[[str], None] | None = None,
        *,
        turns: Sequence[Turn] = (),
    ) -> Answer: ...

    def retune(self, options: AskOptions) -> None: ...

    def trace(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Unread:
    """A document that has no store yet, and how it is to be read."""

    source: Path
    reading: IngestOptions


def open_asker(
    store: Address,
    options: AskOptions,
    progress: Progress,
    *,
    no_server: bool,
    unread: Unread | None = None,
) -> Asker:
    """The running server that has the store open, or a session that loads it.

    A server answers with the model it was started with; who names another one is not sent there.

    Args:
        no_server: what computes was named, so that no server's will do; see `computes_here`.
        unread: the document that the store is to be made of.
    Raises:
        SekvError: the store cannot be opened.
    """
    if unread is not None:
        return api.open_document(unread.source, store, options, unread.reading, progress)
    if not no_server and not options.model and not options.router:
        from sekv_cli.server import client

        remote = client.find(store, options, progress)
        if remote is not None:
            return remote
    if is_library(store):
        return api.open_library(store, options, progress)
    return api.open_store(store, options, progress)


def computes_here(context: typer.Context) -> bool:
    """Whether the command line asks for model and store to be loaded by this process.

    A device or dtype of the settings or the environment is for what is loaded here, and sends
    nobody away from a server.
    """
    if context.params["no_server"]:
        return True
    sources = [context.get_parameter_source(name) for name in ("device", "dtype")]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def asked(store: str) -> Address:
    """The path or URL of a store or library that is there, before anything is loaded to ask it.

    Raises:
        StoreMissingError, ObjectStorageError: there is none, or none to be had.
    """
    place = address(store)
    if not is_library(place):
        glance.check_store(place)
    return place
