"""The store on disk: written once and atomically, read lazily, never believed unchecked.

What it is: the door to the package. `StoreWriter` makes a store, `Store` and `HostSection` read
it, the rest asks about stores from the outside. `docs/format.md` says what lies on the disk.
What it is not: it knows no model, no method and no device.
"""

from __future__ import annotations

from engine.store.host import HostSection
from engine.store.library import (
    StoreSummary,
    check_sources,
    compare_identity,
    list_stores,
)
from engine.store.reader import Store
from engine.store.writer import StoreWriter

__all__ = [
    "HostSection",
    "Store",
    "StoreSummary",
    "StoreWriter",
    "check_sources",
    "compare_identity",
    "list_stores",
]
