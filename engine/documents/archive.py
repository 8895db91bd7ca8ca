"""Reading a few members of a hostile zip file, with every size bounded.

Nothing is unpacked to disk, and only members asked for are decompressed.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lxml.etree import _Element

MAX_ENTRIES = 20_000
MAX_MEMBER_BYTES = 128 * 2**20
MAX_TOTAL_BYTES = 512 * 2**20


class Archive:
    """Members of one zip by name, against one budget of decompressed bytes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._spent = 0
        self.names = frozenset(archive.namelist())

    def read(self, name: str) -> bytes:
        """All bytes of a member.

        Raises:
            DocumentError: missing, damaged, encrypted, or larger than the limits.
        """
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise DocumentError(f"is damaged: {name} is missing inside it") from None
        if info.flag_bits & 1:
            raise DocumentError("is encrypted; save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DocumentError(f"is damaged: {name} inside it has an unknown compression")
        limit = min(MAX_MEMBER_BYTES, MAX_TOTAL_BYTES - self._spent)
        try:
            with self._archive.open(info) as member:
                # The declared size may lie: what is really unpacked is what counts.
                data = member.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            raise DocumentError(f"is damaged: {name} inside it cannot be unpacked") from error
        except (NotImplementedError, RuntimeError) as error:
            raise DocumentError(f"cannot be unpacked: {error}") from error
        self._spent += len(data)
        if len(data) > limit:
            raise DocumentError(
                f"unpacks to more than {limit // 2**20} MiB ({name}); it is no ordinary document"
            )
        return data


@contextmanager
def opened(raw: bytes) -> Iterator[Archive]:
    """The zip archive in `raw`.

    Raises:
        DocumentError: no zip, damaged, or with too many entries.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if len(archive.infolist()) > MAX_ENTRIES:
                raise DocumentError(f"is an archive of more than {MAX_ENTRIES:,} files; refused")
            yield Archive(archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise DocumentError("is damaged: its zip archive cannot be read") from error


def xml(data: bytes, name: str) -> _Element:
    """Parse a small XML member: no entities, no DTD, no network, libxml2's own limits on.

    Raises:
        DocumentError: malformed.
    """
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, recover=False
    )
    try:
        return etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DocumentError(f"is damaged: {name} inside it is not valid XML") from error
