"""What `ingest`, `list`, `verify` and `serve` print about stores, and `models` about models."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING

from sekv_cli import names
from sekv_cli.format import (
    bytes_text,
    clean,
    count_text,
    extent,
    facts,
    print_markdown,
    print_table,
    reading,
    seconds_text,
    share_text,
    some,
)

if TYPE_CHECKING:
    from rich.console import Console

    from engine.ingest.parity import Parity
    from engine.models.shelf import Listing, Pulled, Removed
    from engine.store.library import StoreSummary
    from engine.types import IngestReport, Plan, SourceReport

STAGES = {
    "read_s": "text from the sources",
    "tokenize_s": "tokens",
    "prefill_s": "reading by the model",
    "compress_s": "compressing",
    "write_s": "writing",
}
"""What the stages of an ingest are called; what remains of its time is spent loading."""


def print_ingest(out: Console, report: IngestReport) -> None:
    """What was read, what it became, what it weighs, how long it took."""
    timing = report.timing
    prefill = timing.get("prefill_s", 0.0)
    fresh = report.tokens - report.resumed_tokens
    speed = f", read at {count_text(round(fresh / prefill))} tokens/s" if prefill > 0 else ""
    rest = timing.get("total_s", 0.0) - sum(timing.get(name, 0.0) for name in STAGES)
    stages = ", ".join(
        f"{called} {seconds_text(timing.get(name, 0.0))}" for name, called in STAGES.items()
    )
    stages += f", loading libraries and the model {seconds_text(max(rest, 0.0))}"
    state = "is up to date: nothing changed since it was read" if report.unchanged else "is ready"
    out.print(f"{clean(report.store)} {state}", style="bold")
    out.print(
        facts(
            [
                *_source_lines(report.sources),
                ("model", report.model),
                ("method", report.method),
                (
                    "tokens",
                    reading(report.tokens, report.windows, report.window_tokens) + speed,
                ),
                (
                    "resumed",
                    some(report.resumed_tokens, "token") if report.resumed_tokens else "",
                ),
                (
                    "spans",
                    f"{count_text(report.spans)} and {some(report.anchors, 'anchor')}",
                ),
                (
                    "store",
                    f"{bytes_text(report.store_bytes)}, "
                    f"{share_text(report.store_bytes, report.full_kv_bytes)} of the full cache's "
                    f"{bytes_text(report.full_kv_bytes)}",
                ),
                ("time", f"{seconds_text(timing['total_s'])} ({stages})" if timing else ""),
            ]
        )
    )


def print_plan(out: Console, plan: Plan) -> None:
    """What an ingest would do; every byte is an estimate and says so."""
    out.print("nothing was written; this is what ingest would do", style="bold")
    out.print(
        facts(
            [
                *_source_lines(plan.sources),
                ("model", plan.model),
                ("method", plan.method),
                ("tokens", reading(plan.tokens, plan.windows, plan.window_tokens)),
                ("full cache", bytes_text(plan.full_kv_bytes)),
                ("states", f"{bytes_text(plan.state_bytes)} a window" if plan.state_bytes else ""),
                ("store", f"about {bytes_text(plan.estimated_store_bytes)}"),
                ("device", f"about {bytes_text(plan.estimated_device_bytes)}"),
            ]
        )
    )


def _source_lines(sources: Sequence[SourceReport]) -> list[tuple[str, str]]:
    return [
        (
            "source" if not index else "",
            f"{source.path} ({extent(source.path, source.pages, source.chars)})",
        )
        for index, source in enumerate(sources)
    ]


def print_serving(out: Console, url: str, stores: Sequence[str]) -> None:
    """Where clients find the server, and what its models are called."""
    out.print(f"serving at {url} (Ctrl-C ends it)", style="bold")
    out.print(facts((("model" if not index else "", name) for index, name in enumerate(stores))))


def print_check(
    out: Console, store: str, damaged: Sequence[str], changed: Sequence[str], read: str = ""
) -> None:
    """Sound, or what is damaged; then which sources are no longer what was read.

    read: how much is read of a partly read store.
    """
    if damaged:
        out.print(f"{clean(store)} is damaged", style="bold red")
    else:
        out.print(f"{clean(store)} is sound", style="bold")
    for line in [*damaged, *([f"read: {read}"] if read else []), *changed]:
        out.print(f"  {clean(line)}")


def print_stores(out: Console, folder: str, stores: Sequence[StoreSummary]) -> None:
    """One row per store that can be read, then one line per store that cannot."""
    readable = [store for store in stores if not store.problem]
    if not stores:
        out.print(f"no stores in {clean(folder)}")
    if readable:
        rows = (
            (
                _below(store.path, folder),
                store.model,
                _tokens(store),
                bytes_text(store.bytes),
                _day(store),
                names.listed(store.sources),
            )
            for store in readable
        )
        header = ("store", "model", "tokens", "size", "changed", "sources")
        print_table(out, header, rows, left=(0, 1, 4, 5))
    for store in stores:
        if store.problem:
            out.print(clean(store.problem), style="red")


def print_tree(out: Console, folder: str, stores: Sequence[StoreSummary]) -> None:
    """Stores under the folders that hold them, each folder with what it holds in all."""
    from rich.tree import Tree

    if not stores:
        out.print(f"no stores in {clean(folder)}")
        return
    branches = {"": Tree(clean(f"{folder}  {_total(stores)}"))}
    for store in stores:
        below = PurePath(_below(store.path, folder))
        for parent in [*reversed(below.parents)][1:]:
            name = str(parent)
            if name not in branches:
                held = [s for s in stores if _below(s.path, folder).startswith(f"{name}/")]
                above = branches["" if str(parent.parent) == "." else str(parent.parent)]
                branches[name] = above.add(clean(f"{parent.name}  {_total(held)}"))
        at = branches["" if str(below.parent) == "." else str(below.parent)]
        if store.problem:
            at.add(clean(f"{below.name}  {store.problem}"), style="red")
        else:
            size = bytes_text(store.bytes)
            at.add(clean(f"{below.name}  {_tokens(store)} tokens, {size}, {_day(store)}"))
    out.print(branches[""])


def _total(stores: Sequence[StoreSummary]) -> str:
    size = bytes_text(sum(store.bytes for store in stores))
    return f"({some(len(stores), 'store')}, {size})"


def _tokens(store: StoreSummary) -> str:
    read = f" ({count_text(store.tokens_read)} read)"
    return count_text(store.tokens) + read * (0 < store.windows_read < store.windows)


def _day(store: StoreSummary) -> str:
    """The day on which a store changed last, where the user is; "" where it is not known."""
    if not store.changed:
        return ""
    return datetime.fromisoformat(store.changed).astimezone().strftime("%Y-%m-%d")


def _below(path: str, folder: str) -> str:
    """A store's path below the folder that is listed; its name where it was named itself."""
    below = path.removeprefix(f"{folder}/")
    return below if below != path else PurePath(path).name


def print_models(out: Console, found: Listing) -> None:
    """One row per known model, then one line per converted file of the user's own."""
    rows = (
        (
            row.model.alias + " (default)" * row.model.default,
            f"{row.model.parameters / 1e6:,.0f}M",
            row.model.licence,
            count_text(row.model.context),
            f"pip {row.model.wheel.requirement}",
            f"{bytes_text(row.bytes)} ({row.here})"
            if row.here
            else f"no; {bytes_text(row.model.wheel.bytes)} to fetch",
        )
        for row in found.models
    )
    header = ("model", "parameters", "licence", "context", "from", "here")
    print_table(out, header, rows, left=(0, 2, 4, 5))
    for entry in found.converted:
        out.print(clean(f"{entry.name}  {bytes_text(entry.bytes)}, converted from {entry.origin}"))
    out.print(clean(f"kept in {found.cache}"), style="dim")


def print_pulled(out: Console, report: Pulled) -> None:
    """What is here now, and where."""
    at = f" at {report.revision[:8]}" if report.revision else ""
    out.print(clean(f"{report.model}{at} is here: {bytes_text(report.bytes)} in {report.path}"))


def print_parity(out: Console, found: Parity) -> None:
    """Whether a model's logits are those of its full cache, and by how much they differ."""
    if not found.passed:
        out.print(clean(f"refused: {found.reason}"))
        return
    out.print(
        clean(
            f"{found.model}: passed. Behind {found.tokens} tokens its logits differ by "
            f"{found.difference:.2g} from its full cache's ({found.tolerance:.2g} is allowed in "
            f"{found.dtype}; the largest is {found.largest:.1f})"
        )
    )


def print_removed(out: Console, report: Removed) -> None:
    """What that freed, and where the model still is."""
    left = f"; it is still in {report.left}" if report.left else ""
    out.print(clean(f"removed {report.model}: {bytes_text(report.bytes)} freed{left}"))


def print_measured(out: Console, table: str, folder: PurePath) -> None:
    """What `sekv bench` found, and where it is kept."""
    print_markdown(out, table)
    out.print(clean(f"\nresults.json, this table and its charts are in {folder}"))
