"""Libraries in object storage: filled from objects or files, asked, kept in order."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from engine import api
from engine.errors import LibraryError, ObjectStorageError, StoreExistsError, StoreMissingError
from engine.ingest import claims, tasks
from engine.ingest.claims import Claims
from engine.ingest.collect import collect
from engine.models.reader import Reader
from engine.object_storage import ObjectUrl, address, bucket
from engine.store import object_upkeep
from engine.store.catalogue import Catalogue
from engine.store.folders import is_library
from engine.store.library import list_stores
from engine.store.reader import Store
from engine.store.upkeep import clear, leftovers, move_store, remove_store
from engine.types import AskOptions, IngestOptions, LibraryOptions, LibraryReport
from sekv_cli.main import run as sekv
from sekv_cli.serve import _stores_of
from tiny_books import log

ASKED = AskOptions(budget="20%", max_new_tokens=2)
WALRUS = "A walrus slept on the ice all winter, and nobody woke it.\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant_disk: None) -> ObjectUrl:
    """A place in an object store of this process."""
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    place = address(f"memory:///{uuid.uuid4().hex}")
    assert isinstance(place, ObjectUrl)
    return place


def put(url: ObjectUrl, text: str) -> None:
    there = bucket(url)
    try:
        tag = there.head(url.key).tag
    except ObjectStorageError:
        tag = ""
    assert there.replace(url.key, text.encode(), tag) is not None


class Case:
    """Documents at one URL, a library at another."""

    def __init__(self, root: ObjectUrl, model: Path, reader: Reader) -> None:
        self.documents, self.library = root / "documents", root / "library"
        self.model, self.reader = model, reader
        put(self.documents / "log.txt", log(4))
        put(self.documents / "deep" / "walrus.md", WALRUS + log(2))
        put(self.documents / "picture.bin", "no document")

    def ingest(self, *sources: str, **changes: Any) -> LibraryReport:
        options = IngestOptions(model=str(self.model), window=160)
        named = sources or (f"{self.documents}/",)
        many = LibraryOptions(**changes)
        return api.ingest_library(named, self.library, options, many, reader=self.reader)

    def states(self, **changes: Any) -> dict[str, str]:
        return {each.store: each.state for each in self.ingest(**changes).documents}


@pytest.fixture
def case(root: ObjectUrl, model: Path, reader: Reader) -> Case:
    return Case(root, model, reader)


def names(library: ObjectUrl) -> list[str]:
    with Catalogue(library) as catalogue:
        catalogue.refresh()
        return [entry.name for entry in catalogue.entries()]


def test_objects_become_a_library_that_follows_them(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_library(case.library)
    report = case.ingest()
    assert [each.store for each in report.documents] == ["deep/walrus.sekv", "log.sekv"]
    assert {each.state for each in report.documents} == {"read"}
    assert report.left_out == (f"{case.documents}/picture.bin",)
    assert is_library(case.library)
    with Store.open(case.library / "log.sekv") as store:
        assert store.verify() == []

    with monkeypatch.context() as patch:
        patch.setattr(tasks.Desk, "read", None)
        assert set(case.states().values()) == {"unchanged"}
    put(case.documents / "log.txt", log(5))
    assert case.states() == {"deep/walrus.sekv": "unchanged", "log.sekv": "replaced"}
    bucket(case.documents).delete([f"{case.documents.key}/log.txt"])
    assert case.states()["log.sekv"] == "gone"
    assert case.states(prune=True)["log.sekv"] == "pruned"
    assert names(case.library) == ["deep/walrus.sekv"]
    keys = [found.key for found in bucket(case.library).objects(case.library.key)]
    assert all("/deep/walrus.sekv/" in key for key in keys)  # no claim is left


def test_files_become_a_library_of_objects_that_no_other_host_takes_for_orphans(
    case: Case, tmp_path: Path
) -> None:
    (tmp_path / "near.txt").write_text(log(3))
    case.ingest(str(tmp_path / "near.txt"))
    (tmp_path / "near.txt").rename(tmp_path / "other.txt")
    report = case.ingest(str(tmp_path / "other.txt"), prune=True)
    assert [(each.store, each.state) for each in report.documents] == [("other.sekv", "read")]
    assert names(case.library) == ["near.sekv", "other.sekv"]


def test_a_question_to_a_library_of_objects_is_answered_by_the_right_document(case: Case) -> None:
    case.ingest()
    with api.open_library(str(case.library), ASKED, reader=case.reader) as library:
        answer = library.ask("Where did the walrus sleep?")
        assert answer.store == "deep/walrus.sekv"
        assert answer.citations[0].store == "deep/walrus.sekv"
        remove_store(case.library / "deep" / "walrus.sekv")
        assert library.ask("How many whales on day 3?").store == "log.sekv"
    with pytest.raises(LibraryError, match="no folder of stores"):
        api.open_library(str(case.documents), ASKED)


def test_a_library_lists_moves_and_removes_its_stores(case: Case) -> None:
    case.ingest()
    store = case.library / "log.sekv"
    sizes = {each.path: each.bytes for each in list_stores(case.library)}
    assert list(sizes) == [f"{case.library}/deep/walrus.sekv", str(store)]
    with pytest.raises(StoreExistsError):
        move_store(store, case.library / "deep" / "walrus.sekv")
    moved = move_store(store, case.library / "deep" / "ship.sekv")
    assert moved == case.library / "deep" / "ship.sekv"
    with Store.open(moved) as opened:
        assert opened.verify() == []
    assert names(case.library) == ["deep/ship.sekv", "deep/walrus.sekv"]
    assert remove_store(moved) == sizes[str(store)]
    assert names(case.library) == ["deep/walrus.sekv"]
    with pytest.raises(LibraryError, match="is a store"):
        api.ingest_library(str(case.documents), case.library / "deep" / "walrus.sekv")


def test_the_commands_take_urls(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.ingest()
    capsys.readouterr()
    assert sekv(["list", str(case.library), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stores"]) == 2
    assert sekv(["rm", str(case.library)]) == 2
    assert "name the stores themselves" in capsys.readouterr().err
    asked = ["ask", str(case.library), "Where did the walrus sleep?", "--max-new-tokens", "2"]
    assert sekv(asked) == 0  # for people, with names of sources beside the citations
    assert "[1] deep/walrus.md" in capsys.readouterr().out
    assert sekv(["mv", f"{case.library}/log.sekv", f"{case.library}/ship.sekv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"store": f"{case.library}/ship.sekv"}
    assert sekv(["rm", f"{case.library}/ship.sekv", "--json"]) == 0
    capsys.readouterr()
    assert sekv(["gc", str(case.library), "--older-than", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert names(case.library) == ["deep/walrus.sekv"]
    elsewhere = f"{case.documents.root}/{case.documents.key}-more/"  # a folder by its slash
    assert sekv(["mv", f"{case.library}/deep/walrus.sekv", elsewhere, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"store": f"{elsewhere}walrus.sekv"}


def test_stores_below_a_url_are_served_but_for_those_that_are_named(case: Case) -> None:
    case.ingest()
    walrus, ship = case.library / "deep" / "walrus.sekv", case.library / "log.sekv"
    assert _stores_of(case.library, []) == [walrus, ship]
    assert _stores_of(case.library, [ship]) == [walrus]
    with pytest.raises(StoreMissingError, match="no store below"):
        _stores_of(case.documents, [])


def test_an_upload_that_never_ended_is_a_leftover(case: Case) -> None:
    case.ingest()
    torn = case.library / "torn.sekv"
    put(torn / "blocks" / "ab", "half a store")
    (found,) = leftovers(case.library)
    assert (found.path, found.kind, found.bytes) == (str(torn), "work", 12)
    put(torn / "manifest.json", "{}")  # its upload came to an end
    assert not clear(found)
    bucket(torn).delete([f"{torn.key}/manifest.json"])
    assert clear(found)
    assert leftovers(case.library) == []
    assert names(case.library) == ["deep/walrus.sekv", "log.sekv"]


def test_names_of_objects_are_told_apart_by_what_they_share(root: ObjectUrl) -> None:
    named = [f"{root}/a/book.txt", f"{root}/b/book.txt"]
    assert [wanted.name for wanted in collect(named).documents] == ["a/book.sekv", "b/book.sekv"]
    with pytest.raises(ObjectStorageError, match="nothing below"):
        collect([f"{root}/nowhere/"])


class TestClaims:
    def test_one_of_two_has_a_claim_until_it_gives_it_back(self, root: ObjectUrl) -> None:
        with Claims(root) as one, Claims(root) as other:
            assert one.take("deep/a.sekv")
            assert not other.take("deep/a.sekv")
            assert other.is_taken("deep/a.sekv")
            one.give_back("deep/a.sekv")
            assert other.take("deep/a.sekv")
        assert list(bucket(root).objects(root.key)) == []

    def test_a_claim_is_dead_when_its_lease_is_over_unless_it_is_renewed(
        self, root: ObjectUrl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Claims(root, lease=0.4) as mine:
            monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
            with Claims(root, lease=0.4) as living:
                theirs = Claims(root, lease=0.4)  # renews nothing: it is not entered
                monkeypatch.undo()
                assert living.take("a.sekv")
                assert theirs.take("b.sekv")
                claims.threading.Event().wait(1)
                assert not mine.take("a.sekv")
                assert mine.take("b.sekv")
                theirs.give_back("b.sekv")  # it is not theirs any more
                assert theirs.is_taken("b.sekv")

    def test_of_two_who_find_a_dead_claim_one_buries_it(self, root: ObjectUrl) -> None:
        dead = Claims(root)
        assert dead.take("a.sekv")
        place = claims.place_of_claims(root)
        found = place.find("a.sekv")
        assert found is not None
        assert place.bury("a.sekv", found)
        assert place.create("a.sekv", "the next one")
        assert not place.bury("a.sekv", found)
        assert place.names() == ["a.sekv"]
        assert object_upkeep.leftovers(root) == []  # it is young
