"""`sekv verify`: check every byte of a store."""

from __future__ import annotations

import typer

from engine.errors import FormatError, StoreError
from sekv_cli import options
from sekv_cli.endings import CHECK_FAILED


def verify(
    store: options.Store, as_json: options.Json = False, verbose: options.Verbose = None
) -> None:
    """Check every byte of a store against its checksums.

    Every table is checked against the manifest too. Ends with code 1 and the
    list of what is damaged, or with code 0. Sources that changed since are
    named; the store is none the worse for that.

    \b
    Example:
      sekv verify book.sekv
    """
    place = options.there(store)

    from sekv_cli import format, progress, reports

    changed: list[str] = []
    size = windows = read = tokens = 0
    with progress.on_stderr(verbose) as shown:
        from engine.store.library import check_sources
        from engine.store.reader import Store

        try:
            with Store.open(place) as opened:
                size, manifest = opened.size(), opened.manifest
                windows, read = len(manifest.windows), len(manifest.read)
                tokens = manifest.tokens_read
                damaged = opened.verify(shown)
                changed = check_sources(opened.manifest, place)
        except StoreError as error:
            if isinstance(error, FormatError):
                raise
            damaged = [str(error)]  # A store there is, and it is not sound.
    if as_json:
        format.emit_json(
            {
                "store": str(store),
                "ok": not damaged,
                "bytes": size,
                "windows": windows,
                "windows_read": read,
                "tokens_read": tokens,
                "damaged": damaged,
                "sources": changed,
            }
        )
    else:
        so_far = format.read_so_far(tokens, read, windows) if read < windows else ""
        reports.print_check(format.console(), str(store), damaged, changed, so_far)
    if damaged:
        raise typer.Exit(CHECK_FAILED)
