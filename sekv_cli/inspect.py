"""`sekv inspect`: what a store holds, and what a question zoomed into."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engine.answer import checks
from engine.errors import SekvError
from engine.models import named
from engine.object_storage import Address
from engine.types import AUTO, AskOptions
from sekv_cli import options, outputs

if TYPE_CHECKING:
    from engine.types import InspectReport


def _stretch(text: str) -> str:
    parts = re.fullmatch(r"(\d+):(\d+)", text) if text else None
    if text and (parts is None or int(parts[1]) >= int(parts[2])):
        raise typer.BadParameter(f"{text!r} is not START:END with START below END.")
    return text


def inspect(
    store: options.Store,
    question: Annotated[
        str,
        typer.Option(
            "--question",
            "-q",
            metavar="Q",
            help="Show what this question zooms into.",
            show_default=False,
        ),
    ] = "",
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Show what a recorded answer zoomed into, the last of the file.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="START:END",
            callback=_stretch,
            help="Show these characters with spans coloured and anchors marked.",
            show_default=False,
        ),
    ] = "",
    source: Annotated[
        int, typer.Option(min=1, metavar="N", help="Which source --text counts in.")
    ] = 1,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.html",
            help="Write one page for a browser instead: the text, what was read, by whom.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Only this layer.", show_default=False),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Only this KV head; what moved is counted for all.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    max_new_tokens: options.MaxNewTokens = 128,
    budget: options.Budget = AUTO,
    verbose: options.Verbose = None,
    model: options.Model = "",
    device: options.Device = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    offline: options.Offline = False,
    full: options.Full = False,
    coverage: options.Coverage = 1.0,
    router: options.Router = None,
) -> None:
    """Show what a store holds and what a question zooms into.

    Sources, model, spans, anchors, the bytes of each tier beside the full cache,
    and a map of the whole document.

    With a question or a trace it adds which spans were brought to full
    resolution, by which layers and heads, at which step, and how much
    attention they then received. --html writes it as one page that needs nothing
    but a browser: the whole text shaded by attention, token by token of the answer.

    \b
    Example:
      sekv inspect book.sekv
      sekv inspect book.sekv --question "Who warned Jonathan Harker?"
      sekv inspect book.sekv --text 12000:13000
      sekv inspect book.sekv -q "Who warned Jonathan Harker?" --html book.html
    """
    _check(question, trace, text, html)
    place = options.there(store)
    named.check(model, offline=offline)
    options.check_router(router)
    outputs.check_page(html)

    from sekv_cli import format, inspection, progress

    chosen = AskOptions(
        budget=budget,
        coverage=coverage,
        full=full,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype.value,
        model=model,
        offline=offline,
        router=str(router) if router else "",
        trace=True,
    )
    start, _, end = text.partition(":")
    stretch = (int(start), int(end)) if text else None
    with progress.on_stderr(verbose) as shown:
        from engine.answer import inspect

        report = inspect.inspect(
            place,
            question=question,
            trace=trace,
            text=stretch,
            layer=layer,
            head=head,
            options=chosen,
            progress=shown,
        )
    if html is not None:
        _write_page(place, report, html)
    if as_json:
        format.emit_json(report.to_json())
    elif html is not None:
        inspection.print_written(format.console(), str(html), html.stat().st_size)
    else:
        _print(place, report, source - 1, stretch, asked=bool(question or trace))


def _check(question: str, trace: Path | None, text: str, html: Path | None) -> None:
    """Whether these options go together, and what they name is there.

    Raises:
        SekvError: they do not, or it is not.
    """
    if question and trace is not None:
        raise SekvError("--question and --trace exclude each other; give one of them")
    if html is not None and text:
        raise SekvError("--html shows the whole text; leave --text out")
    if trace is not None and not trace.is_file():
        raise SekvError(f"there is no trace {trace}; `sekv ask --trace FILE` writes one")
    if question:
        checks.check_question(question)


def _print(
    store: Address,
    report: InspectReport,
    source: int,
    stretch: tuple[int, int] | None,
    *,
    asked: bool,
) -> None:
    """The store's summary or a stretch of a source's text; what was zoomed where it was asked."""
    from engine.answer import inspect
    from sekv_cli import format, inspection

    out = format.console()
    if stretch:
        inspection.print_text(out, inspect.text(store, source, *stretch))
    else:
        inspection.print_summary(out, str(store), report)
        inspection.print_map(out, report)
    if asked:
        inspection.print_asked(out, report)
        words = inspect.excerpts(store, inspection.heaviest(report.zoom))
        inspection.print_zoom(out, report, words)


def _write_page(store: Address, report: InspectReport, html: Path) -> None:
    from engine.answer import inspect
    from engine.store.reader import Store
    from sekv_cli import page

    with Store.open(store) as opened:
        sources = range(len(report.manifest["sources"]))
        texts = [inspect.source_text(opened, source) for source in sources]
    outputs.write(html, page.render(str(store), report, texts))
