"""`sekv ingest`: read documents once, write a store."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from engine import api
from engine.compression import method_names
from engine.errors import DocumentError, SekvError
from engine.ingest.collect import read_list
from engine.ingest.sources import check_named_once, check_there
from engine.models import named
from engine.object_storage import Address, address, is_url
from engine.store.folders import is_library
from engine.types import IngestOptions, LibraryOptions
from sekv_cli import completion, options, streams
from sekv_cli.commands import RESEARCH


def ingest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Documents in the order they are to be read; - is stdin. A folder: every document "
            "in it gets a store of its own, in the library that -o names.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE|LIBRARY/",
            help="Where to write: a store, or a library, whose name ends in / if it is a new one. "
            "[default: first source's name.sekv]",
            show_default=False,
        ),
    ] = None,
    append: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Add the sources to this store instead; its model and method are used.",
            show_default=False,
            autocompletion=completion.stores,
        ),
    ] = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Read again if a source changed since; a library always is."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a store of that name.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and what it would weigh."),
    ] = False,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--list",
            metavar="FILE",
            help="Documents of a library, one a line; - is stdin.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of a folder only files like this, such as '*.pdf'; may be given again.",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of a folder no files and folders like this; may be given again.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Processes that read documents of a library."),
    ] = 1,
    cluster: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Have the workers of a Dask scheduler read the documents of a library, such as "
            "tcp://host:8786. Needs pip install 'sekv[cluster]'.",
            show_default=False,
        ),
    ] = "",
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove stores of a library whose sources are gone."),
    ] = False,
    pages: Annotated[
        str,
        typer.Option(
            metavar="1-20,ii,#4",
            help="Only these pages of each PDF, by label where it has its own; #4 is a sheet.",
            show_default=False,
        ),
    ] = "",
    keep_headers: Annotated[
        bool,
        typer.Option(
            "--keep-headers", help="Keep running headers, footers and page numbers of PDFs."
        ),
    ] = False,
    password_stdin: Annotated[
        bool,
        typer.Option("--password-stdin", help="Read the password of a PDF from stdin."),
    ] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = None,
    model: options.OwnModel = "",
    revision: options.Revision = "",
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    offline: options.Offline = False,
    window: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Document tokens per context; 0 takes the longest the model reads well.",
            rich_help_panel=RESEARCH,
        ),
    ] = 0,
    chunk_tokens: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Tokens per prefill step.", rich_help_panel=RESEARCH),
    ] = 1024,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How the memory is compressed: sekv, or another of docs/recipes.md.",
            rich_help_panel=RESEARCH,
        ),
    ] = "sekv",
    router: options.Router = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Retrieval heads by `sekv train heads`. [default: heads.json beside the model]",
            show_default=False,
            rich_help_panel=RESEARCH,
        ),
    ] = None,
) -> None:
    """Read documents once and keep the memory as a store.

    The store does not depend on any question. It appears under its name only
    when it is complete; an interrupted run goes on with the same command.

    \b
    Example:
      sekv ingest book.pdf
      sekv ingest notes.md paper.pdf -o work.sekv --model Qwen/Qwen3-4B
      sekv ingest second.pdf --append book.sekv
      pdftotext scan.pdf - | sekv ingest - -o scan.sekv
      sekv ingest papers/ notes/ -o library/ --jobs 2
      sekv ingest s3://bucket/papers/ -o s3://bucket/library/
    """
    sources = [*(sources or []), *(_listed(listed) if listed is not None else [])]
    if not sources:
        raise DocumentError("no SOURCE is given; name a file, a folder, or - for stdin")
    _check_sources(sources, password_stdin=password_stdin)
    if append is not None and (output is not None or overwrite or update or dry_run):
        raise SekvError("--append goes with none of -o, --update, --overwrite and --dry-run")
    check_there(sources)
    many = LibraryOptions(tuple(include or ()), tuple(exclude or ()), jobs, cluster, prune, dry_run)
    library = _library(sources, output, listed, many)
    if cluster:
        _check_cluster(jobs, password_stdin=password_stdin)
    if library is not None and append is not None:
        raise SekvError("--append adds files to one store; leave out folders and --list")
    if append is not None:
        options.there(append)
    named.check(model, offline=offline)
    options.check_router(router)
    method_names.check(method)
    if heads is not None and not heads.is_file():
        raise DocumentError(f"there is no file {heads}; make one with `sekv train heads`")
    password = _password() if password_stdin else ""
    stdin = streams.binary() if "-" in sources else None

    from sekv_cli import format, progress, reports
    from sekv_cli.many import finish, on_stderr

    chosen = IngestOptions(
        model=model,
        revision=revision,
        method=method,
        device=device,
        dtype=dtype.value,
        chunk_tokens=chunk_tokens,
        window=window,
        pages=pages,
        keep_headers=keep_headers,
        password=password,
        overwrite=overwrite,
        router=str(router) if router else "",
        heads=str(heads) if heads else "",
        offline=offline,
        update=update,
    )
    if library is not None:
        with on_stderr(verbose) as told:
            made = api.ingest_library(sources, library, chosen, many, told)
        finish(made, as_json=as_json)
        return
    target = None if output is None else address(output)
    with progress.on_stderr(verbose) as shown:
        if dry_run:
            plan = api.plan(sources, chosen, shown, stdin=stdin)
        elif append is not None:
            report = api.append(sources, append, chosen, shown, stdin=stdin)
        else:
            report = api.ingest(sources, target, chosen, shown, stdin=stdin)
    if as_json:
        format.emit_json((plan if dry_run else report).to_json())
    elif dry_run:
        reports.print_plan(format.console(), plan)
    else:
        reports.print_ingest(format.console(), report)


def _listed(file: Path) -> list[str]:
    """The sources that a list names."""
    if str(file) == "-":
        return read_list(streams.lines())
    try:
        return read_list(file.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise SekvError(f"{file} is not UTF-8 text; save the list as UTF-8") from None


def _check_cluster(jobs: int, *, password_stdin: bool) -> None:
    """Whether documents can go to a cluster. Raises SekvError."""
    if find_spec("distributed") is None:
        raise SekvError("--cluster needs one more package: pip install 'sekv[cluster]'")
    if jobs > 1:
        raise SekvError("--jobs is for this machine; a cluster has the workers that it has")
    if password_stdin:
        raise SekvError("--password-stdin goes not with --cluster: a password stays here")


def _library(
    sources: list[str], output: str | None, listed: Path | None, many: LibraryOptions
) -> Address | None:
    """The library that is to be brought up to date; None where the sources become one store.

    Raises:
        SekvError: a library without a name, or its options without a library.
    """
    place = None if output is None else address(output)
    named = place is not None and (str(output).endswith(("/", os.sep)) or is_library(place))
    if named or listed is not None or any(map(_is_folder, sources)):
        if place is None:
            raise SekvError("a folder or a list becomes a library of stores: name it with -o")
        return place
    if many != LibraryOptions(dry_run=many.dry_run):
        raise SekvError(
            "--include, --exclude, --jobs, --cluster and --prune are for a library: name a folder, "
            "or --list"
        )
    return None


def _is_folder(source: str) -> bool:
    """Whether a source is a folder; of an object store one whose URL ends in /."""
    return source.endswith("/") if is_url(source) else Path(source).is_dir()


def _check_sources(sources: list[str], *, password_stdin: bool) -> None:
    """Refuse names that no two sources, or no source and a password, can share."""
    if password_stdin and "-" in sources:
        raise DocumentError(
            "stdin cannot carry both a document and a password; name the document's file"
        )
    if sources.count("-") > 1:
        raise DocumentError("stdin was named twice; it can be read once")
    if "" in sources:
        raise DocumentError("a source has an empty name")
    check_named_once(sources)


def _password() -> str:
    """The first line of stdin; spaces belong to the password."""
    return next(streams.lines(), "")
