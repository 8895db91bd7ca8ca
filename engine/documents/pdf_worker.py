"""Text of PDF pages, extracted in a process of its own. Run as a script, never imported.

A PDF is a program written by a stranger: it can crash a C++ parser, loop for
ever or ask for all memory. Here that ends this process, not the ingest. One
request comes in on stdin (a line of JSON, then the bytes of the file); one
line of JSON per event goes out on stdout:

    {"count": 318}                       pages of the file
    {"page": 12, "text": "..."}          text as the library gives it
    {"page": 13, "error": "..."}         this page cannot be read
    {"error": "...", "kind": "password"} nothing can be read: password, malformed or limit
    {"done": true}                       nothing was lost on the way

Only the standard library and the PDF library asked for are imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Refused(Exception):
    """The file as a whole cannot be read; args are (kind, message)."""


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    # A page that kills this process must not take those before it along.
    sys.stdout.flush()


def _give(number: int, text: str, request: dict[str, Any]) -> None:
    request["characters"] -= len(text)
    if request["characters"] < 0:
        raise _Refused("limit", f"holds too much text (page {number} is one too many)")
    _say({"page": number, "text": text})


def _bound(seconds: int, memory: int) -> Callable[[], None]:
    """Cap the memory of this process; returns what restarts the time limit of one page.

    An alarm without a handler ends the process even inside native code, where
    no Python handler would run.
    """
    try:
        import resource
    except ImportError:  # no such limits on this system; the parent's own still hold
        return lambda: None
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    # Not every system lets a process cap its own address space; the clock still holds there.
    with contextlib.suppress(ValueError, OSError):
        if hard == resource.RLIM_INFINITY or hard > memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def restart() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return restart


def _chosen(count: int, ranges: list[list[int]], limit: int) -> Iterable[int]:
    _say({"count": count})
    if not ranges:
        ranges = [[1, count]]
    if max(last for _, last in ranges) > count:
        return ()  # the parent has the count and says so
    if sum(last - first + 1 for first, last in ranges) > limit:
        raise _Refused("limit", f"has {count:,} pages; at most {limit:,} are read at once")
    return (page for first, last in ranges for page in range(first, last + 1))


def _pdfium(data: bytes, request: dict[str, Any], restart: Callable[[], None]) -> None:
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data, password=request["password"])
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", 0) == 4  # FPDF_ERR_PASSWORD
        raise _Refused("password" if locked else "malformed", str(error)) from error
    for number in _chosen(len(pdf), request["ranges"], request["pages"]):
        restart()
        try:
            page = pdf[number - 1]
            text = page.get_textpage()
            _give(number, text.get_text_range(), request)
            text.close()
            page.close()
        except pypdfium2.PdfiumError as error:
            _say({"page": number, "error": str(error)})


def _pypdf(data: bytes, request: dict[str, Any], restart: Callable[[], None]) -> None:
    import pypdf

    # On damaged files pypdf raises whatever its pure Python meets (KeyError, TypeError,
    # RecursionError ...); each means the same here, and this process holds nothing to spoil.
    broken = (
        pypdf.errors.PyPdfError, ArithmeticError, AssertionError, AttributeError, LookupError,
        NotImplementedError, OSError, RecursionError, TypeError, ValueError,
    )  # fmt: skip
    try:
        pdf = pypdf.PdfReader(io.BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(request["password"] or ""):
            raise _Refused("password", "wrong password")
        count = len(pdf.pages)
    except pypdf.errors.DependencyError as error:
        raise _Refused("malformed", f"unsupported encryption: {error}") from error
    except broken as error:
        raise _Refused("malformed", str(error)) from error
    for number in _chosen(count, request["ranges"], request["pages"]):
        restart()
        try:
            _give(number, pdf.pages[number - 1].extract_text(), request)
        except broken as error:
            _say({"page": number, "error": str(error)})


def main() -> None:
    """Serve one request and exit; the exit status is not a message."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    restart = _bound(request["seconds"], request["memory"])
    restart()
    try:
        {"pdfium": _pdfium, "pypdf": _pypdf}[request["library"]](data, request, restart)
    except _Refused as refused:
        kind, message = refused.args
        _say({"error": message, "kind": kind})
    except MemoryError:
        _say({"error": "out of memory", "kind": "limit"})
        return
    _say({"done": True})


if __name__ == "__main__":
    main()
