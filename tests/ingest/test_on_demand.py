"""A document that is asked before it is read: what a question needs is read, once, and kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engine.answer import replay
from engine.answer.session import Session
from engine.errors import DocumentError, OptionError, StoppedError, StoreExistsError
from engine.ingest import run
from engine.ingest.asked import check_read_as
from engine.ingest.on_demand import read_windows
from engine.models.reader import Reader
from engine.store import folder
from engine.store.reader import Store, read_manifest
from engine.store.work import places_of
from engine.types import IngestOptions, Silent
from tiny_books import log, report, session
from tiny_documents import make_pdf
from toy_store import leftovers, tree

TEXT = log(20)
WINDOW = 160
QUESTION = "How many whales were seen on day 15?"
OTHER = "What did the crew of the ship see on day 8?"


@pytest.fixture(scope="module")
def begun(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of `TEXT` of which the first of eight windows is read."""
    folder = tmp_path_factory.mktemp("begun")
    source = folder / "log.txt"
    source.write_text(TEXT, encoding="utf-8")
    options = IngestOptions(model=str(model), window=WINDOW)
    run.begin([str(source)], folder / "log.sekv", options, Silent(), reader)
    return folder / "log.sekv"


@pytest.fixture
def partly(begun: Path) -> Path:
    """A place for a copy of it that a test may read on: the same place each time, since a store
    names its source."""
    kept = begun.parent / "kept"
    if not kept.exists():
        shutil.copytree(begun, kept)
    for path in (begun, begun.with_name(f".{begun.name}.work")):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(kept, begun)
    (begun.parent / "log.txt").write_text(TEXT, encoding="utf-8")
    return begun


@pytest.fixture(scope="module")
def whole(begun: Path, model: Path, reader: Reader) -> dict[str, bytes]:
    """The store that one ingest makes of `TEXT`: every file by name."""
    aside = begun.with_name("aside")
    begun.rename(aside)
    report(begun.parent, model, TEXT, reader=reader, window=WINDOW)
    made = tree(begun)
    shutil.rmtree(begun)
    aside.rename(begun)
    return made


def test_a_document_begins_with_its_first_window(partly: Path) -> None:
    with Store.open(partly) as store:
        assert store.manifest.read == (0,)
        assert len(store.manifest.windows) == 8
        assert store.manifest.tokens == len(TEXT)
        assert store.text(0) == TEXT
        assert store.verify() == []
    assert leftovers(partly.parent) == []


def test_a_question_reads_the_windows_it_needs_and_the_next_reads_none(
    partly: Path, reader: Reader
) -> None:
    with session(partly, reader) as book:
        first = book.ask(QUESTION)
        again = book.ask(QUESTION)
        manifest = book.store.manifest
    read = {each.window for each in first.retrieval if each.read_now}
    assert read
    assert {0} | read == set(manifest.read) == set(read_manifest(partly).read)
    assert len(manifest.read) <= 3
    assert not any(each.read_now for each in again.retrieval)
    assert again.answer == first.answer
    for answer in (first, again):
        assert answer.usage.recomputed_document_tokens == 0
        assert answer.stats["tokens_read"] == manifest.tokens_read
    with Store.open(partly) as store:
        assert store.verify() == []


def test_answers_are_those_of_the_whole_store(
    partly: Path, whole: dict[str, bytes], reader: Reader, tmp_path: Path
) -> None:
    """To the bit: everything zoomed, the same passages, the same positions."""
    for name, data in whole.items():
        (tmp_path / "whole.sekv" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole.sekv" / name).write_bytes(data)
    with (
        session(partly, reader, full=True, trace=True) as asked,
        session(tmp_path / "whole.sekv", reader, full=True, trace=True) as read,
    ):
        for question in (QUESTION, OTHER):
            one, other = asked.ask(question), read.ask(question)
            assert (one.answer, one.citations) == (other.answer, other.citations)
            seen = [[(w.window, w.page, w.lexical) for w in a.retrieval] for a in (one, other)]
            assert seen[0] == seen[1]
            assert one.support == other.support


@pytest.mark.parametrize("order", [[7, 2], [2, 7], [1, 2, 3, 4, 5, 6, 7]])
def test_ingest_reads_what_is_missing_to_the_same_bytes(
    order: list[int], partly: Path, whole: dict[str, bytes], model: Path, reader: Reader
) -> None:
    """Whatever was read before, in whatever order: no store depends on a question."""
    for window in order:
        read_windows(partly, [window], reader, Silent())
    begun = read_manifest(partly)
    assert set(begun.read) == {0, *order}
    if begun.unread:
        done = report(partly.parent, model, TEXT, reader=reader, window=WINDOW)
        assert (done.resumed_tokens, done.tokens) == (begun.tokens_read, len(TEXT))
        assert done.store_bytes == sum(map(len, whole.values()))
    assert tree(partly) == whole
    assert leftovers(partly.parent) == []


def test_without_reading_only_what_is_there_answers(partly: Path, reader: Reader) -> None:
    before = tree(partly)
    with session(partly, reader, read=False) as book:
        answer = book.ask(QUESTION)
    assert [(each.window, each.read_now) for each in answer.retrieval] == [(0, False)]
    assert tree(partly) == before


def test_a_question_without_a_word_to_look_for_reads_nothing(partly: Path, reader: Reader) -> None:
    before = tree(partly)
    with session(partly, reader) as book:
        answer = book.ask("Who?")
        assert [each.window for each in answer.retrieval] == [0]
        book.ask(QUESTION)
        voted = book.ask("Who?")
    assert set(before) < set(tree(partly))
    assert {each.window for each in voted.retrieval} <= set(read_manifest(partly).read)


def test_what_another_session_read_is_not_read_again(partly: Path, reader: Reader) -> None:
    with session(partly, reader) as one, session(partly, reader) as other:
        first = one.ask(QUESTION)
        found = tree(partly)
        second = other.ask(QUESTION)
        assert tree(partly) == found
        assert second.answer == first.answer
        assert not any(each.read_now for each in second.retrieval)
        other.ask(OTHER)
        assert one.ask(QUESTION).answer == first.answer


def test_a_reading_that_is_stopped_leaves_the_store_and_goes_on_later(
    partly: Path, reader: Reader
) -> None:
    """Of a window of five chunks two are read when it is stopped, and not read again."""
    before, asked = tree(partly), iter([False, False, True])
    with pytest.raises(StoppedError):
        read_windows(partly, [3], reader, Silent(), chunk_tokens=32, stop=lambda: next(asked, True))
    assert tree(partly) == before
    work = read_windows(partly, [3], reader, Silent(), chunk_tokens=32)
    assert work is not None
    assert work.resumed == 2 * 32
    assert read_manifest(partly).read == (0, 3)
    assert read_windows(partly, [0, 3], reader, Silent()) is None
    assert leftovers(partly.parent) == []
    with session(partly, reader) as book, pytest.raises(StoppedError):
        book.ask(QUESTION, stop=lambda: True)


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"text": TEXT.replace("whales", "eagles")}, "--update"),
    ({"window": 200}, "in other windows: choose another name with -o, or pass --overwrite"),
    ({"method": "sekv-paper"}, "by another method"),
]


def test_an_ingest_that_would_make_another_store_is_refused(
    partly: Path, model: Path, reader: Reader, subtests: pytest.Subtests
) -> None:
    before = tree(partly)
    for changes, said in OTHERS:
        with subtests.test(said), pytest.raises(StoreExistsError) as caught:
            report(
                partly.parent, model, reader=reader, **{"text": TEXT, "window": WINDOW, **changes}
            )
        assert said in str(caught.value)
        assert tree(partly) == before


def test_a_document_is_asked_again_as_it_was_read_and_in_no_other_way(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    source, store = tmp_path / "log.pdf", tmp_path / "log.sekv"
    lines = log(9).splitlines()
    source.write_bytes(make_pdf([lines[:3], lines[3:6], lines[6:]]))
    options = IngestOptions(model=str(model), window=WINDOW, pages="2-3")
    run.begin([str(source)], store, options, Silent(), reader)
    check_read_as(source, store)
    check_read_as(source, store, pages="2-3", window=WINDOW, method="sekv")
    check_read_as(source, store, pages="2,#3")
    for how, said in (
        ({"pages": "1-2"}, "was read with pages 2 to 3, not --pages 1-2; leave --pages out"),
        ({"window": 100}, "was read in windows of 160, not 100 tokens; leave --window out"),
        ({"method": "full"}, "was read by the method sekv, not full; leave --method out"),
    ):
        with pytest.raises(StoreExistsError, match=said):
            check_read_as(source, store, **how)
    with pytest.raises(DocumentError, match="has 3 pages; --pages asks for page 4"):
        check_read_as(source, store, pages="2-4")


def test_an_update_of_a_changed_document_reads_all_of_it(
    partly: Path, model: Path, reader: Reader
) -> None:
    changed = TEXT.replace("whales", "eagles")
    report(partly.parent, model, changed, reader=reader, window=WINDOW, update=True)
    with Store.open(partly) as store:
        assert store.manifest.unread == ()
        assert store.text(0) == changed


def test_an_update_of_a_partly_read_document_reads_the_rest(
    partly: Path, whole: dict[str, bytes], model: Path, reader: Reader
) -> None:
    done = report(partly.parent, model, TEXT, reader=reader, window=WINDOW, update=True)
    assert done.resumed_tokens > 0
    assert tree(partly) == whole


def test_overwrite_reads_everything_anew(
    partly: Path, whole: dict[str, bytes], model: Path, reader: Reader
) -> None:
    done = report(partly.parent, model, TEXT, reader=reader, window=WINDOW, overwrite=True)
    assert done.resumed_tokens == 0
    assert tree(partly) == whole


def test_windows_are_read_in_the_numbers_of_the_store(partly: Path, model: Path) -> None:
    """Another dtype would make another store; what is there can still be asked in it."""
    from engine.models.reader import load_reader

    other = load_reader(str(model), device="cpu", dtype="bfloat16")
    with Session(partly, session_options(read=True), Silent(), other) as book:
        with pytest.raises(OptionError) as caught:
            book.ask(QUESTION)
        assert "float32" in str(caught.value)
    with Session(partly, session_options(read=False), Silent(), other) as book:
        book.ask(QUESTION)


def session_options(**more: Any) -> Any:
    from engine.types import AskOptions

    return AskOptions(max_new_tokens=4, **more)


def test_a_trace_is_of_a_store_as_far_as_it_was_read_then(partly: Path, reader: Reader) -> None:
    """Spans are numbered over what is read: another number of spans gives them other meanings."""
    with session(partly, reader, trace=True) as book:
        book.ask(QUESTION)
        trace = book.trace()
        assert replay.parse(trace, book.store.manifest).question == QUESTION
        book.ask(OTHER)
        with pytest.raises(ValueError, match="more of the document was read since"):
            replay.parse(trace, book.store.manifest)


def test_sources_can_be_added_to_a_partly_read_store(
    partly: Path, model: Path, reader: Reader
) -> None:
    """What is not read stays unread, what is added is read."""
    more = partly.parent / "more.txt"
    more.write_text("And then it snowed on all of them, day after day, until spring.")
    run.append([str(more)], partly, IngestOptions(model=str(model)), Silent(), None, reader)
    with Store.open(partly) as store:
        assert store.manifest.unread == tuple(range(1, 8))
        assert store.manifest.read == (0, 8)
        assert store.verify() == []
    with session(partly, reader) as book:
        assert {each.window for each in book.ask(QUESTION).retrieval} <= set(range(9))
        assert any(each.window == 8 for each in book.ask("When did it snow?").retrieval)


def test_a_store_that_is_read_on_before_any_file_of_it_is_opened_is_followed(
    partly: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """Another process may replace the store by a fuller one, whose predecessor's files go, at any
    moment but while this one writes."""
    kept, fuller, lock = partly.parent / "kept", partly.parent / "fuller", places_of(partly).lock
    read_windows(partly, [7], reader, Silent())
    shutil.copytree(partly, fuller)
    open_below = folder.open_below

    def ask(replaced_at: int | None) -> tuple[str, list[int]]:
        """The answer with the store replaced before this file is opened; which may be such."""
        shutil.rmtree(partly)
        shutil.copytree(kept, partly)
        at, free = count(), []

        def opened(*args: Any) -> int:
            step = next(at)
            if step == replaced_at:
                shutil.rmtree(partly)
                shutil.copytree(fuller, partly)
            if not lock.exists():
                free.append(step)
            return open_below(*args)

        monkeypatch.setattr(folder, "open_below", opened)
        with session(partly, reader, max_new_tokens=1) as book:
            return book.ask(QUESTION).answer, free

    stated, steps = ask(None)
    assert len(steps) > 9
    for step in steps:
        with subtests.test(step):
            assert ask(step)[0] == stated


class Stages(Silent):
    """What was begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.begun.append(stage)


def test_reading_says_how_many_windows_of_how_many(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    (tmp_path / "log.txt").write_text(TEXT, encoding="utf-8")
    source, store = [str(tmp_path / "log.txt")], tmp_path / "log.sekv"
    options, told = IngestOptions(model=str(model), window=WINDOW), Stages()
    run.begin(source, store, options, told, reader)
    assert told.begun[-1] == "reading the first of 8 windows"
    read_windows(store, [2, 5], reader, told)
    assert told.begun[-1] == "reading 2 of 8 windows"
    run.ingest(source, store, replace(options, overwrite=True), told, None, reader)
    assert told.begun[-1] == "reading 8 windows"
