"""Documents and stores in object storage, through the functions that users call."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from engine import api
from engine.errors import DocumentError, ObjectMissingError, SekvError, StoreExistsError
from engine.models.reader import Reader
from engine.object_storage import ObjectUrl, address, bucket
from engine.store.library import check_sources
from engine.store.reader import Store, read_manifest
from engine.types import AskOptions, IngestOptions
from tiny_books import QUESTION, TEXT, log

ASKED = AskOptions(budget="20%", max_new_tokens=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant_disk: None) -> ObjectUrl:
    """A place in an object store with a document in it."""
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    place = address(f"memory:///{uuid.uuid4().hex}")
    assert isinstance(place, ObjectUrl)
    (tmp_path / "log.txt").write_text(TEXT, encoding="utf-8")
    bucket(place).upload(f"{place.key}/log.txt", tmp_path / "log.txt")
    return place


def test_a_document_and_its_store_may_both_be_objects(
    folder: ObjectUrl, tmp_path: Path, model: Path, reader: Reader
) -> None:
    """Read from one URL, kept at another, asked, appended to: the answers are those on disk."""
    options = IngestOptions(model=str(model), window=80)
    source, far, near = f"{folder}/log.txt", f"{folder}/log.sekv", tmp_path / "log.sekv"
    made = api.ingest(source, far, options, reader=reader)
    assert made.store == far
    api.ingest(tmp_path / "log.txt", near, options, reader=reader)
    with api.open_store(far, ASKED, reader=reader) as there:
        answer = there.ask(QUESTION)
        assert answer.usage.recomputed_document_tokens == 0
        assert answer.stats["received_bytes"] > 0
    with api.open_store(near, ASKED, reader=reader) as here:
        assert here.ask(QUESTION).answer == answer.answer
        assert here.ask(QUESTION).stats["received_bytes"] == 0
    manifest = read_manifest(address(far))
    assert manifest.sources[0].path == source
    assert made.store_bytes == Store.open(address(far)).size()

    (tmp_path / "more.txt").write_text(log(14)[len(TEXT) :], encoding="utf-8")
    for store in (far, str(near)):
        api.append(tmp_path / "more.txt", store, reader=reader)
    longer = read_manifest(address(far))
    assert longer.files == read_manifest(near).files
    assert (len(longer.sources), longer.sources[1].near) == (2, "")
    with Store.open(address(far)) as store:
        assert store.verify() == []


def test_the_second_question_fetches_only_what_the_first_did_not(
    folder: ObjectUrl, model: Path, reader: Reader
) -> None:
    far = f"{folder}/log.sekv"
    api.ingest(f"{folder}/log.txt", far, IngestOptions(model=str(model)), reader=reader)
    with api.open_store(far, ASKED, reader=reader) as first:
        once = first.ask(QUESTION).stats
    with api.open_store(far, ASKED, reader=reader) as again:
        twice = again.ask(QUESTION).stats
    manifest = len(read_manifest(address(far)).to_bytes())
    assert once["received_bytes"] > twice["received_bytes"] == manifest
    assert twice["requests"] == 2


def test_what_is_in_the_way_is_said_before_a_model_is_loaded(
    folder: ObjectUrl, tmp_path: Path, model: Path, reader: Reader
) -> None:
    far, options = f"{folder}/log.sekv", IngestOptions(model=str(model))
    with pytest.raises(ObjectMissingError, match=r"nosuch\.txt"):
        api.ingest(f"{folder}/nosuch.txt", far, options)
    with pytest.raises(SekvError, match="there is no store at memory"):
        api.open_store(far)
    with pytest.raises(DocumentError, match="named twice"):
        api.ingest([f"{folder}/log.txt", f"{folder}/log.txt"], far, options)
    api.ingest(f"{folder}/log.txt", far, options, reader=reader)
    with pytest.raises(StoreExistsError, match="as it is"):
        api.ingest(f"{folder}/log.txt", far, options)


def test_a_source_that_changed_is_named_and_read_anew(
    folder: ObjectUrl, tmp_path: Path, model: Path, reader: Reader
) -> None:
    source, far = f"{folder}/log.txt", f"{folder}/log.sekv"
    options = IngestOptions(model=str(model), update=True)
    api.ingest(source, far, options, reader=reader)
    assert api.ingest(source, far, options, reader=reader).unchanged
    assert check_sources(read_manifest(address(far)), address(far)) == []
    (tmp_path / "log.txt").write_text(log(8), encoding="utf-8")
    bucket(folder).upload(f"{folder.key}/log.txt", tmp_path / "log.txt")
    (line,) = check_sources(read_manifest(address(far)), address(far))
    assert "changed" in line
    assert not api.ingest(source, far, options, reader=reader).unchanged
    assert check_sources(read_manifest(address(far)), address(far)) == []
    bucket(folder).delete([f"{folder.key}/log.txt"])
    (line,) = check_sources(read_manifest(address(far)), address(far))
    assert "no longer there" in line
