"""Object storage: what an object is called, and the few requests that sekv makes.

An address is a path or a URL of an object store (`s3://bucket/key`, `gs://`, `az://`, `memory://`).
obstore speaks to the servers; it is imported when a URL is used, not before. It takes credentials
from where it finds them (the environment, the machine's own role). None of them is in a URL, in a
message or in anything that is written.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit

from engine.errors import ObjectMissingError, ObjectStorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import Any

    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "memory")
"""Schemes of object stores; `file://` is a path."""

INSTALL = "object storage needs one more package: pip install 'sekv[object]'"

_TRIES = 3
_GIVE_UP = timedelta(seconds=30)
_PART = 8 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LONGEST_REASON = 200


@dataclass(frozen=True)
class ObjectUrl:
    """An object, or all objects whose keys begin with `key/`. root: "s3://bucket"."""

    root: str
    key: str

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __truediv__(self, name: str) -> ObjectUrl:
        return ObjectUrl(self.root, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the key; of a whole bucket its name."""
        return (self.key or self.root).rpartition("/")[2]


Address: TypeAlias = Path | ObjectUrl
"""Where a store or a document is."""


def is_url(name: str) -> bool:
    """Whether a name is meant as a URL."""
    return _URL.match(name) is not None


def is_of_process(name: str) -> bool:
    """Whether what a name means lasts as long as this process, and no other has it."""
    return name.startswith("memory:")


def address(name: str | os.PathLike[str] | ObjectUrl) -> Address:
    """The path or the object that a name means. `file://` URLs are paths.

    Raises:
        ObjectStorageError: a URL of no known scheme, without a bucket or a key, or with
            credentials in it.
    """
    if isinstance(name, ObjectUrl):
        return name
    text = os.fspath(name)
    if not is_url(text):
        return Path(text)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ObjectStorageError(
            "this is no URL of an object store; write s3://bucket/name"
        ) from None
    scheme = parts.scheme
    shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ObjectStorageError(
            f"{shown} was given with a password, a signature or a query; name it without, and put "
            "credentials in the environment"
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
            raise ObjectStorageError(f"{shown} names no file here; write file:///folder/name")
        return Path(unquote(parts.path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in (*SCHEMES, "file"))
        raise ObjectStorageError(f"{shown}: sekv knows {known} and no {scheme}://")
    key = parts.path.strip("/")
    if not (parts.netloc or scheme == "memory"):
        raise ObjectStorageError(f"{shown} names no bucket; write {scheme}://bucket/name")
    steps = parts.path.removeprefix("/").removesuffix("/").split("/")
    if key and any(step in ("", ".", "..") for step in steps):
        raise ObjectStorageError(f"{shown} has // or a . or .. between its slashes; write it out")
    return ObjectUrl(f"{scheme}://{parts.netloc}", key)


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a listing has it. tag: changes with its content (ETag)."""

    key: str
    size: int
    tag: str
    changed: datetime


class Bucket:
    """Requests to the object store of one root. requests, received: made and bytes read so far.

    Every method raises `ObjectMissingError` where there is no such object, and
    `ObjectStorageError` where the store cannot be reached or refuses. Safe for many threads.
    """

    def __init__(self, root: str, store: ObjectStore) -> None:
        self.root = root
        self._store = store

    def head(self, key: str) -> ObjectInfo:
        """What is known of an object without reading it."""
        import obstore

        with self._asking(key):
            return _info(obstore.head(self._store, key))

    def read(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A whole object."""
        import obstore

        with self._asking(key):
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), _info(found.meta)

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object, fewer where it ends before."""
        import obstore

        with self._asking(key):
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def objects(self, key: str) -> Iterator[ObjectInfo]:
        """All objects whose keys begin with `key/`."""
        import obstore

        with self._asking(key):
            for page in obstore.list(self._store, key or None):
                yield from map(_info, page)

    def below(self, key: str) -> Iterator[tuple[str, ObjectInfo]]:
        """As `objects`, each with what its key has behind `key/`."""
        skip = len(key) + 1 if key else 0
        return ((found.key[skip:], found) for found in self.objects(key))

    def upload(self, key: str, file: Path) -> str:
        """Put a file; large ones in parts. The new object's tag.

        Raises:
            OSError: the file cannot be read.
        """
        import obstore

        with file.open("rb") as opened, self._asking(key):
            made = obstore.put(self._store, key, opened, chunk_size=_PART)
        return made["e_tag"] or ""

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Put a small object in place of the one with this tag, or where there is none for "".

        Returns the new object's tag; None where another has come before: nothing is changed then.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._asking(key):
                made = obstore.put(self._store, key, data, mode={"e_tag": tag} if tag else "create")
        except ObjectStorageError as error:
            if isinstance(error.__cause__, AlreadyExistsError | PreconditionError):
                return None
            raise
        return made["e_tag"] or ""

    def copy(self, key: str, other: str) -> None:
        """Have an object under another key too, in the place of what was there."""
        import obstore

        with self._asking(key):
            obstore.copy(self._store, key, other)

    def delete(self, keys: list[str]) -> None:
        """Remove objects; some may be gone already."""
        import obstore
        from obstore.exceptions import NotFoundError

        for key in keys:
            try:
                with self._asking(key):
                    obstore.delete(self._store, key)
            except ObjectStorageError as error:
                if not isinstance(error.__cause__, NotFoundError | FileNotFoundError):
                    raise

    @contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        """Turn what a request fails with into one line that names the object."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            yield
        except (BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise ObjectStorageError(
                    f"there is no bucket {self.root}; check its name"
                ) from error
            if isinstance(error, NotFoundError | FileNotFoundError):
                raise ObjectMissingError(
                    f"there is no object {self.root}/{key}; check its name"
                ) from error
            raise ObjectStorageError(f"{self.root}/{key}: {_reason(error)}") from error


@cache
def bucket_of(root: str) -> Bucket:
    """The object store of a root, connected once: `memory://` lasts as long as the process.

    Raises:
        ObjectStorageError: obstore is not installed, or lacks a setting such as an account.
    """
    if find_spec("obstore") is None:
        raise ObjectStorageError(INSTALL)
    from obstore.exceptions import BaseError
    from obstore.store import MemoryStore, from_url

    if is_of_process(root):
        return Bucket(root, MemoryStore())
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    try:
        store = from_url(
            root,
            client_options={
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=120),
                "allow_http": plain,
            },
            retry_config={"max_retries": _TRIES, "retry_timeout": _GIVE_UP},
        )
    except BaseError as error:
        raise ObjectStorageError(f"{root}: {_reason(error)}") from None
    return Bucket(root, store)


def bucket(url: ObjectUrl) -> Bucket:
    """The object store that has this object."""
    return bucket_of(url.root)


def _info(found: Any) -> ObjectInfo:
    return ObjectInfo(found["path"], found["size"], found["e_tag"] or "", found["last_modified"])


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words: no signed URL, no headers, no bodies of answers."""
    from obstore import exceptions

    text = str(error)
    said = re.sub(r"\?\S*", "", text.partition("\n")[0])  # a query may be a signature
    refused = isinstance(error, exceptions.UnauthenticatedError)
    denied = isinstance(error, exceptions.PermissionDeniedError | PermissionError)
    if refused or "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text:
        return "the credentials are not accepted; check the credentials in the environment"
    if denied or "AccessDenied" in text:
        return "access is denied; check the credentials in the environment and their rights"
    if "169.254.169.254" in text or "MissingAccount" in text:
        return "no credentials were found; set those of the service in the environment"
    if "inner: Http(" in text or "HttpError" in text:  # a failure of the transport, not an answer
        return "the server cannot be reached, or broke off"
    return f"the object store refused: {said[:_LONGEST_REASON]}"
