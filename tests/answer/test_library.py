"""Questions to a library: the right document answers, whatever state the others are in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.answer.library import LibrarySession
from engine.answer.open_stores import OpenStores
from engine.answer.session import Session
from engine.api import open_library
from engine.errors import LibraryError, QuestionError, StoreError
from engine.models.reader import Reader, load_reader
from engine.store.catalogue import Catalogue
from engine.types import AskOptions, Silent, Turn
from tiny_books import log, read
from tiny_models import checkpoint
from toy_store import flip, tree

TEXTS = {
    "vineyard": "The vineyard was sold for eleven crowns.\n" + log(3),
    "organ": "The organ in the church was paid for by a baker.\n" + log(4),
    "comet": "A comet stood over the harbour for nine nights.\n" + log(14),
}


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, model: Path, reader: Reader) -> Path:
    """Three stores, one of them of several windows and in a folder."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, text in TEXTS.items():
        made = read(folder / name, model, text, reader=reader, window=160)
        place = folder / "library" / ("deep" if name == "comet" else "") / f"{name}.sekv"
        place.parent.mkdir(parents=True, exist_ok=True)
        made.rename(place)
    return folder / "library"


@pytest.fixture
def library(shelf: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(shelf, tmp_path / "library"))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def session(library: Path, reader: Reader, told: Told) -> Iterator[LibrarySession]:
    options = AskOptions(max_new_tokens=4)
    with LibrarySession(library, options, told, reader=reader) as opened:
        yield opened


def test_the_document_with_the_words_answers_as_it_would_alone(
    session: LibrarySession, library: Path, reader: Reader
) -> None:
    for question, name in (
        ("Who paid for the organ?", "organ.sekv"),
        ("What was the vineyard sold for?", "vineyard.sekv"),
        ("Where did the comet stand?", "deep/comet.sekv"),
    ):
        answer = session.ask(question)
        assert answer.store == name
        with Session(library / name, session.options, Silent(), reader) as alone:
            same = alone.ask(question)
        assert answer.answer == same.answer
        own = [citation for citation in answer.citations if citation.store == name]
        assert [citation.text for citation in own] == [c.text for c in same.citations]
        assert answer.usage.recomputed_document_tokens == 0


def test_the_next_documents_are_cited_with_the_sentence_that_shares_most(
    session: LibrarySession,
) -> None:
    answer = session.ask("Who paid for the organ, and who saw the comet?")
    others = [citation for citation in answer.citations if citation.store != answer.store]
    assert [citation.store for citation in others] == ["deep/comet.sekv", "vineyard.sekv"]
    assert "comet" in others[0].text
    assert others[0].weight == 0


def test_an_earlier_turn_says_which_document_is_meant(session: LibrarySession) -> None:
    turns = [Turn("Who paid for the organ in the church?", "A baker.")]
    assert session.ask("And why did he?", turns=turns).store == "organ.sekv"


def test_words_that_no_document_has_are_one_line(session: LibrarySession) -> None:
    with pytest.raises(QuestionError, match=r"no document of .* has any word"):
        session.ask("Zeppelin?")


def test_a_damaged_store_is_left_out_with_a_line_and_the_others_answer(
    session: LibrarySession, library: Path, told: Told
) -> None:
    question = "What did the organ and the vineyard cost, the vineyard sold?"
    assert session.ask(question).store == "vineyard.sekv"
    flip(library / "vineyard.sekv" / "manifest.json", 40, 1)
    for _ in range(2):
        assert session.ask(question).store == "organ.sekv"
    (line,) = told.notes
    assert "vineyard.sekv" in line
    assert "damaged" in line


def test_a_store_whose_codes_are_damaged_is_left_out_when_it_is_opened(
    library: Path, reader: Reader, told: Told
) -> None:
    for file in (library / "vineyard.sekv" / "windows").glob("*.device.safetensors"):
        flip(file, file.stat().st_size - 1, 1)
    with LibrarySession(library, AskOptions(max_new_tokens=2), told, reader=reader) as session:
        question = "What did the organ and the vineyard cost, the vineyard sold?"
        assert session.ask(question).store == "organ.sekv"
    assert any("vineyard.sekv is left out" in line for line in told.notes)


def test_where_no_store_can_be_opened_the_reason_is_said(
    session: LibrarySession, library: Path
) -> None:
    for file in library.rglob("*.device.safetensors"):
        file.unlink()
    with pytest.raises(StoreError, match="missing"):
        session.ask("Who paid for the organ?")


def test_stores_come_and_go_while_it_is_open(
    session: LibrarySession, library: Path, told: Told
) -> None:
    assert session.ask("Who paid for the organ?").store == "organ.sekv"
    (library / "organ.sekv").rename(library / "deep" / "church.sekv")
    assert session.ask("Who paid for the organ?").store == "deep/church.sekv"
    shutil.rmtree(library / "deep" / "church.sekv")
    with pytest.raises(QuestionError):
        session.ask("organ church baker")


def test_a_store_of_another_model_is_answered_by_its_own(
    session: LibrarySession, library: Path, tmp_path: Path
) -> None:
    other = checkpoint("qwen2", tmp_path / "other")
    made = read(tmp_path / "mule", other, "A mule carried the letters uphill.\n" + log(2))
    made.rename(library / "mule.sekv")
    answer = session.ask("What did the mule carry?")
    assert answer.store == "mule.sekv"
    with Session(library / "mule.sekv", session.options, Silent(), load_reader(str(other))) as own:
        assert own.ask("What did the mule carry?").answer == answer.answer
    assert session.ask("Who paid for the organ?").store == "organ.sekv"


def test_a_store_whose_model_is_gone_is_left_out(
    session: LibrarySession, library: Path, tmp_path: Path, told: Told
) -> None:
    other = checkpoint("qwen2", tmp_path / "other")
    text = "A mule carried the organ uphill, the organ of the church.\n" + log(2)
    read(tmp_path / "mule", other, text).rename(library / "mule.sekv")
    shutil.rmtree(other)
    assert session.ask("organ uphill by mule").store == "organ.sekv"
    assert any("mule.sekv is left out" in line for line in told.notes)


def test_stores_are_kept_open_within_their_memory(
    library: Path, reader: Reader, told: Told
) -> None:
    options = AskOptions(max_new_tokens=2)
    names = ["vineyard.sekv", "organ.sekv", "deep/comet.sekv"]
    stores = OpenStores(options, told, 10**12, reader)
    sizes = [stores.session(library / name).held_bytes for name in names]
    assert (stores.hits, stores.misses, len(stores)) == (0, 3, 3)
    assert stores.bytes == sum(sizes)
    stores.close()
    stores = OpenStores(options, told, sizes[0] + sizes[1], reader)
    for name in names[:2]:
        stores.session(library / name)
    assert len(stores) == 2
    stores.session(library / names[0])
    stores.session(library / names[2])  # the largest: the one used longest ago goes first
    assert library / names[2] in stores
    assert library / names[1] not in stores
    assert stores.bytes <= sizes[0] + sizes[1] or len(stores) == 1
    stores.close()
    assert len(stores) == 0


def test_asking_writes_nothing_into_a_store(session: LibrarySession, library: Path) -> None:
    before = {name: tree(library / name) for name in ("organ.sekv", "vineyard.sekv")}
    session.ask("Who paid for the organ?")
    assert {name: tree(library / name) for name in before} == before


def test_a_library_that_cannot_be_written_has_its_catalogue_elsewhere(
    library: Path, reader: Reader, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.catalogue.os.access", lambda *_: False)
    with LibrarySession(library, AskOptions(max_new_tokens=2), told, reader=reader) as session:
        assert session.ask("Who paid for the organ?").store == "organ.sekv"
    assert [path.name for path in library.iterdir() if path.name.startswith(".")] == []


def test_a_folder_without_stores_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no folder of stores"):
        open_library(tmp_path)


def test_the_catalogue_is_refreshed_and_not_made_anew_by_a_question(
    session: LibrarySession, library: Path
) -> None:
    session.ask("Who paid for the organ?")
    with Catalogue(library) as catalogue:
        assert len(catalogue.entries()) == 3
