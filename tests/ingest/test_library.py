"""A folder in, a library out: what is read, what is not, and what accidents cost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import BudgetError, DocumentError, LibraryError, ReaderError, SekvError
from engine.ingest import claims, library, tasks
from engine.ingest.claims import Claims
from engine.ingest.collect import collect
from engine.ingest.library import ingest_library
from engine.ingest.processes import TRIES
from engine.ingest.run import ingest, load_for
from engine.models.reader import Reader
from engine.store import writer
from engine.store.disk import Disk
from engine.store.folders import CLAIMS, stores_below
from engine.store.work import Places
from engine.types import IngestOptions, LibraryOptions, LibraryReport, LibraryStatus, Silent
from library_command import WINDOW, start
from repository import ROOT, environment
from tiny_books import log
from toy_store import leftovers, tree


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.last: LibraryStatus | None = None

    def status(self, status: LibraryStatus) -> None:
        self.last = status

    def note(self, line: str) -> None:
        self.notes.append(line)


def documents(folder: Path, count: int, days: int = 2) -> Path:
    """So many small documents, each other than all others, some in a folder of their own."""
    for number in range(count):
        place = folder / ("deep" if number % 3 == 2 else "") / f"log{number:03d}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"Ship number {number}.\n" + log(days + number % 2))
    return folder


class Case:
    """A folder of documents, a library, and the tiny model."""

    def __init__(self, folder: Path, model: Path, reader: Reader) -> None:
        self.source, self.library = folder / "documents", folder / "library"
        self.source.mkdir()
        self.options = IngestOptions(model=str(model), window=WINDOW, chunk_tokens=32)
        self.reader: Reader | None = reader
        self.told = Told()

    def run(self, *sources: str | Path, **changes: Any) -> LibraryReport:
        """Ingest; changes of either kind of options."""
        own = {name: changes.pop(name) for name in ("overwrite", "window") if name in changes}
        options = IngestOptions(**{**vars(self.options), **own})
        self.told = Told()
        named = [str(source) for source in sources] or [str(self.source)]
        many = LibraryOptions(**changes)
        return ingest_library(named, self.library, options, many, self.told, self.reader)

    def states(self, *sources: str | Path, **changes: Any) -> dict[str, str]:
        return {each.store: each.state for each in self.run(*sources, **changes).documents}


@pytest.fixture
def case(tmp_path: Path, model: Path, reader: Reader) -> Case:
    return Case(tmp_path, model, reader)


def reasons(report: LibraryReport) -> dict[str, str]:
    return {each.store: each.reason for each in report.of("failed")}


@pytest.mark.usefixtures("instant_disk")
class TestWhatIsRead:
    def test_every_document_gets_the_store_that_it_would_get_alone(self, case: Case) -> None:
        documents(case.source, 3)
        report = case.run()
        assert [each.store for each in report.documents] == [
            "deep/log002.sekv",
            "log000.sekv",
            "log001.sekv",
        ]
        assert {each.state for each in report.documents} == {"read"}
        alone = case.library.parent / "alone" / "log000.sekv"
        alone.parent.mkdir()
        source = str(case.source / "log000.txt")
        ingest([source], alone, case.options, Silent(), None, case.reader)
        assert tree(alone) == tree(case.library / "log000.sekv")
        assert report.tokens == sum(each.tokens for each in report.documents)
        assert case.told.last is not None
        assert (case.told.last.documents, case.told.last.done, case.told.last.failed) == (3, 3, 0)
        assert leftovers(case.library) == [".sekv-library.sqlite"]

    def test_what_did_not_change_is_not_read_again(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        documents(case.source, 3)
        case.run()
        before = tree(case.library / "log000.sekv")
        (case.source / "log000.txt").touch()  # another time, the same content
        monkeypatch.setattr(tasks.Desk, "read", None)
        assert set(case.states().values()) == {"unchanged"}
        assert tree(case.library / "log000.sekv") == before

    def test_a_file_is_hashed_once_for_its_size_and_time(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        documents(case.source, 2)
        for file in case.source.iterdir():
            os.utime(file, ns=(0, 10**18))
        case.run()
        case.run()
        monkeypatch.setattr(library, "digest_of", None)
        assert set(case.states().values()) == {"unchanged"}

    def test_what_changed_is_replaced_and_the_rest_stays(self, case: Case) -> None:
        documents(case.source, 3)
        case.run()
        kept = tree(case.library / "log001.sekv")
        (case.source / "log000.txt").write_text("Another ship.\n" + log(4))
        assert case.states() == {
            "deep/log002.sekv": "unchanged",
            "log000.sekv": "replaced",
            "log001.sekv": "unchanged",
        }
        assert b"Another ship" in tree(case.library / "log000.sekv")["document.safetensors"]
        assert tree(case.library / "log001.sekv") == kept
        assert set(case.states(overwrite=True).values()) == {"replaced"}

    def test_what_is_gone_is_named_and_removed_when_asked(self, case: Case) -> None:
        documents(case.source, 3)
        case.run()
        (case.source / "log000.txt").unlink()
        assert case.states()["log000.sekv"] == "gone"
        assert case.states(prune=True, dry_run=True)["log000.sekv"] == "gone"
        assert (case.library / "log000.sekv").is_dir()
        assert case.states(prune=True)["log000.sekv"] == "pruned"
        assert not (case.library / "log000.sekv").exists()
        assert "log000.sekv" not in case.states()

    def test_what_a_killed_run_left_beside_whole_stores_goes_and_unfinished_work_stays(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        documents(case.source, 2)

        def died(places: Places, disk: Disk) -> None:
            raise InterruptedError

        with monkeypatch.context() as patch:
            patch.setattr(writer, "clear_work", died)
            patch.setattr(library, "tidy", lambda _: None)
            case.run()
        assert ".log000.sekv.work" in leftovers(case.library)
        for name in (".log001.sekv.done", ".log001.sekv.work"):
            (case.library / name).mkdir(exist_ok=True)
        (case.library / ".log001.sekv.work" / "job.json").write_text("{}")
        assert set(case.states().values()) == {"unchanged"}
        assert leftovers(case.library) == [".log001.sekv.work", ".sekv-library.sqlite"]

    def test_a_dry_run_says_what_would_be_done_and_does_nothing(self, case: Case) -> None:
        documents(case.source, 2)
        assert set(case.states(dry_run=True).values()) == {"read"}
        assert list(stores_below(case.library)) == []

    def test_patterns_choose_and_other_files_are_named_once(self, case: Case) -> None:
        documents(case.source, 3)
        (case.source / "picture.jpg").write_bytes(b"\xff\xd8")
        (case.source / "LOGBOOK").write_text(log(2))
        report = case.run(exclude=("deep",))
        assert [each.store for each in report.documents] == ["log000.sekv", "log001.sekv"]
        (line,) = [note for note in case.told.notes if "left out" in note]
        assert "picture.jpg" in line
        assert "LOGBOOK" in line
        assert set(report.left_out) == {
            str(case.source / "LOGBOOK"),
            str(case.source / "picture.jpg"),
        }
        assert case.states(include=("LOG*", "deep/*")) == {
            "LOGBOOK.sekv": "read",
            "deep/log002.sekv": "read",
        }


@pytest.mark.usefixtures("instant_disk")
class TestBadInput:
    def test_one_failure_stops_no_other_and_says_why(self, case: Case) -> None:
        documents(case.source, 2)
        (case.source / "empty.txt").write_text("")
        (case.source / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
        (case.source / "lost.txt").symlink_to(case.source / "nowhere.txt")
        os.mkfifo(case.source / "pipe.txt")
        report = case.run()
        why = reasons(report)
        assert set(why) == {"empty.sekv", "broken.sekv", "lost.sekv", "pipe.sekv"}
        assert "is empty" in why["empty.sekv"]
        assert "No such file" in why["lost.sekv"]
        assert "is no file" in why["pipe.sekv"]
        assert all("\n" not in reason for reason in why.values())
        assert len(report.of("read")) == 2

    def test_what_holds_no_document_is_refused(self, case: Case) -> None:
        with pytest.raises(DocumentError, match="there is no document in"):
            case.run()
        (case.source / "a.jpg").write_bytes(b"x")
        with pytest.raises(DocumentError, match="1 files are left out"):
            case.run()
        with pytest.raises(DocumentError, match="does not exist"):
            case.run(case.source / "nothing")
        with pytest.raises(DocumentError, match="stdin"):
            case.run("-")

    def test_a_store_is_no_library(self, case: Case) -> None:
        documents(case.source, 1)
        case.run()
        case.library /= "log000.sekv"
        with pytest.raises(LibraryError, match="is a store"):
            case.run()

    def test_names_that_clash_get_their_endings_or_are_refused(self, case: Case) -> None:
        documents(case.source, 1)
        (case.source / "log000.md").write_text("# Another\n\n" + log(2))
        other = case.library.parent / "other"
        documents(other, 1)
        report = case.run(case.source, other)
        states = {(each.source, each.store): each.state for each in report.documents}
        assert states[str(case.source / "log000.md"), "log000.md.sekv"] == "read"
        assert list(states.values()).count("failed") == 1
        assert "rename one of them" in next(iter(reasons(report).values()))

    def test_a_store_of_another_source_is_not_replaced(self, case: Case) -> None:
        documents(case.source, 1)
        case.run()
        other = documents(case.library.parent / "other", 1, days=5)
        report = case.run(other)
        assert "is the store of" in reasons(report)["log000.sekv"]
        assert case.states()["log000.sekv"] == "unchanged"

    def test_links_in_a_circle_are_followed_once(self, case: Case) -> None:
        documents(case.source, 1)
        (case.source / "round").symlink_to(case.source)
        assert case.states() == {"log000.sekv": "read"}
        (line,) = [note for note in case.told.notes if "leads back" in note]
        assert "round" in line

    def test_a_full_disk_is_said_of_each_document_and_the_next_run_goes_on(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        documents(case.source, 3)
        case.run(case.source / "log000.txt")
        kept = tree(case.library / "log000.sekv")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(Disk, "write", full)
            report = case.run()
        why = reasons(report)
        assert set(why) == {"log001.sekv", "deep/log002.sekv"}
        assert all("No space left on device; free some" in reason for reason in why.values())
        assert all("\n" not in reason for reason in why.values())
        assert tree(case.library / "log000.sekv") == kept
        assert list(stores_below(case.library)) == [case.library / "log000.sekv"]
        assert sorted(case.states().values()) == ["read", "read", "unchanged"]

    def test_a_damaged_store_is_left_as_it_is_unless_it_is_to_be_read_anew(
        self, case: Case
    ) -> None:
        documents(case.source, 2)
        case.run()
        (case.library / "log000.sekv" / "manifest.json").write_text("{}")
        assert "--overwrite reads it anew" in reasons(case.run())["log000.sekv"]
        assert set(case.states(overwrite=True).values()) == {"replaced"}
        assert set(case.states().values()) == {"unchanged"}


def test_names_in_a_list_are_told_apart_by_the_folder_they_share(tmp_path: Path) -> None:
    for name in ("x/a/book.txt", "x/b/book.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("text")
    named = [str(tmp_path / "x/a/book.txt"), str(tmp_path / "x/b/book.txt")]
    found = collect([*named, named[0]])
    assert [wanted.name for wanted in found.documents] == ["a/book.sekv", "b/book.sekv"]


class TestClaims:
    def test_one_of_two_has_a_claim_until_it_gives_it_back(self, tmp_path: Path) -> None:
        with Claims(tmp_path) as one, Claims(tmp_path) as other:
            assert one.take("deep/a.sekv")
            assert not other.take("deep/a.sekv")
            assert other.is_taken("deep/a.sekv")
            assert other.take("deep%2Fa.sekv")
            one.give_back("deep/a.sekv")
            assert other.take("deep/a.sekv")
        assert list(tmp_path.iterdir()) == []

    def test_a_sweep_takes_what_a_killed_process_left(self, tmp_path: Path) -> None:
        with Claims(tmp_path) as mine:
            assert mine.take("a.sekv")
            (folder,) = tmp_path.iterdir()
            for name in ("0f.dead", "1e.now"):
                (folder / name).touch()
            mine.sweep()
            assert [path.name for path in folder.iterdir()] == ["a.sekv.claim"]
        assert list(tmp_path.iterdir()) == []

    def test_a_claim_of_another_host_is_dead_when_its_lease_is_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Claims(tmp_path, lease=1000) as mine:
            monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
            theirs = Claims(tmp_path, lease=1000)  # renews nothing: it is not entered
            monkeypatch.undo()
            assert theirs.take("a.sekv")
            assert not mine.take("a.sekv")
            (claim,) = (tmp_path / CLAIMS).glob("*.claim")
            os.utime(claim, (time.time() - 2000,) * 2)
            assert mine.take("a.sekv")
            theirs.give_back("a.sekv")  # it is not theirs any more
            assert theirs.is_taken("a.sekv")

    def test_a_claim_of_a_dead_process_of_this_host_is_dead_at_once(self, tmp_path: Path) -> None:
        program = (
            "import sys, os; from pathlib import Path; from engine.ingest.claims import Claims\n"
            "assert Claims(Path(sys.argv[1])).take('a.sekv'); os._exit(0)"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        subprocess.run(command, check=True, cwd=ROOT, env=environment())
        with Claims(tmp_path) as mine:
            assert mine.take("a.sekv")


# -- real processes


@pytest.fixture
def apart(case: Case) -> Iterator[Case]:
    """The same, its documents read by processes of their own."""
    case.reader = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        yield case


@pytest.mark.timeout(300)
def test_a_model_that_is_not_there_is_one_line(apart: Case) -> None:
    documents(apart.source, 2)
    apart.options = IngestOptions(model=str(apart.source / "nothing"))
    with pytest.raises(ReaderError, match="there is no such folder"):
        apart.run()
    apart.options = IngestOptions(model=str(apart.library.parent), window=99999)
    with pytest.raises(SekvError):
        apart.run()


KILLER = """
import os, signal, sys
from pathlib import Path
from engine.store.writer import StoreWriter
put = StoreWriter.put_window
def once(self, index, *rest):
    put(self, index, *rest)
    mark = Path(os.environ["KILL_MARK"])
    if index == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
StoreWriter.put_window = once
"""


@pytest.mark.timeout(300)
def test_two_processes_make_the_stores_that_one_makes_though_one_of_them_is_killed(
    apart: Case, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document's second window is written when its process dies; the next one reads the rest."""
    documents(apart.source, 4, days=5)
    (apart.source / "empty.txt").write_text("")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("KILL_MARK", str(tmp_path / "mark"))
    path = os.pathsep.join([str(tmp_path / "site"), environment()["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)
    report = apart.run(jobs=2)
    assert (tmp_path / "mark").exists()
    assert set(reasons(report)) == {"empty.sekv"}
    assert len(report.of("read")) == 4
    two, apart.library = apart.library, tmp_path / "whole"
    apart.reader = reader
    apart.run()
    names = [path_of_store.relative_to(two) for path_of_store in stores_below(two)]
    assert len(names) == 4
    for name in names:
        assert tree(two / name) == tree(apart.library / name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_document_that_kills_every_worker_fails_and_the_others_are_read(
    apart: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents(apart.source, 2)
    always = (
        "import os, signal\nfrom engine.ingest import run\nreal = run.ingest\n"
        "def ingest(paths, *rest):\n"
        "    if paths[0].endswith('log000.txt'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(paths, *rest)\n"
        "run.ingest = ingest\n"
    )
    (tmp_path / "sitecustomize.py").write_text(always)
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)
    report = apart.run()
    assert f"ended {TRIES} times (signal 9)" in reasons(report)["log000.sekv"]
    assert len(report.of("read")) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_run_survives_its_death_and_goes_on(apart: Case, reader: Reader) -> None:
    """Killed while it reads, three times; the workers die with it."""
    documents(apart.source, 6, days=6)
    for tokens in (100, 500, 900):
        with start(apart.source, apart.library, apart.options.model, jobs=2) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if line.startswith("states") or int(line.split()[0]) > tokens:
                    break
            running.kill()
    report = apart.run(jobs=2)
    assert not report.of("failed")
    whole, apart.library = apart.library, apart.library.parent / "whole"
    apart.reader = reader
    apart.run()
    for store in stores_below(whole):
        name = store.relative_to(whole)
        assert tree(store) == tree(apart.library / name)
        assert leftovers(store.parent) in ([], [".sekv-library.sqlite"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_commands_at_once_share_the_work(apart: Case) -> None:
    """As two hosts do: every document is read once, and both end when all are."""
    documents(apart.source, 6, days=5)
    both = [start(apart.source, apart.library, apart.options.model) for _ in range(2)]
    ended = [process.communicate()[0] for process in both]
    tokens = []
    for said in ended:
        *status, states = said.splitlines()
        assert set(states.split()[1:]) <= {"read", "unchanged"}
        assert len(states.split()) == 7
        tokens.append(int(status[-1].split()[0]) if status else 0)
    total = sum(len(path.read_text()) for path in apart.source.rglob("*.txt"))
    assert sum(tokens) == total  # a byte a token


def test_a_model_is_loaded_for_many_documents_as_ingest_loads_it(
    model: Path, reader: Reader
) -> None:
    """What every worker does first."""
    loaded = load_for(IngestOptions(model=str(model)), Silent())
    assert loaded.identity == reader.identity
    with pytest.raises(BudgetError, match="--window 99999"):
        load_for(IngestOptions(model=str(model), window=99999), Silent())
