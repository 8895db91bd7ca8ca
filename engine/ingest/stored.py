"""A store as ingest goes on from it: its sources, its tokens and the method it was made by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.compression.methods import Method
from engine.errors import StoreError, StoreMismatchError
from engine.object_storage import Address
from engine.store.pages import pages
from engine.store.reader import read_store

if TYPE_CHECKING:
    from engine.compression.params import Tensors
    from engine.documents import Source
    from engine.documents.tokens import Tokens
    from engine.models.reader import Reader
    from engine.store.manifest import Manifest
    from engine.store.reader import Store


@dataclass(frozen=True)
class Stored:
    """What is read of a store to go on from it.

    table: of tokens, see `store.Store.document`. shared: the tensors that all windows share.
    """

    manifest: Manifest
    sources: tuple[Source, ...]
    table: dict[str, Any]
    shared: Tensors

    @classmethod
    def at(cls, target: Address) -> Stored:
        """All of it from one store, though another process may replace that meanwhile.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        return read_store(
            target,
            lambda store: cls(store.manifest, _sources(store), store.document(), store.shared()),
        )

    @property
    def tokens(self) -> Tokens:
        from engine.documents.tokens import Tokens

        columns = {name: self.table[name] for name in ("ids", "starts", "ends", "source")}
        return Tokens(**columns, engine=self.manifest.tokenizer_engine)


def _sources(store: Store) -> tuple[Source, ...]:
    """The sources of a store as they were read."""
    from engine.documents import Page, Source

    return tuple(
        Source(
            path=entry.path,
            kind=entry.kind,
            text=store.text(index),
            pages=tuple(
                Page(page.label, page.start, page.sheet, page.printed) for page in pages(entry)
            )
            if entry.pages
            else (),
            sha256=entry.sha256,
            notes=entry.notes,
            imprint=entry.imprint,
        )
        for index, entry in enumerate(store.manifest.sources)
    )


def method_of(
    target: Address, manifest: Manifest, shared: Tensors, reader: Reader, router: str
) -> Method:
    """The method of a store that this reader can go on with.

    Raises:
        StoreError: the store belongs to another reader, or is damaged.
        RouterError: the router that it was made with is not at hand.
    """
    from engine.memory.open import in_its_bases
    from engine.store.library import compare_identity
    from engine.store.schema import Schema, recipe_of

    dtypes = manifest.dtype, reader.dtype_name
    different = compare_identity(manifest.model, reader.identity, dtypes)
    if different:
        raise StoreMismatchError(f"{target}: {different}")
    try:
        recipe = recipe_of(manifest)
        schema = Schema.of(manifest, recipe)
        schema.check_shared(in_its_bases(shared, recipe, reader, router))
    except StoreError as error:
        raise type(error)(f"{target}: {error}") from None
    return recipe
