"""Streams that are closed or full, and bytes that are no text, in real processes.

Every case was a defect (code 70) once. None of them loads a model: what cannot be read or written
is refused before.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy_store
from engine.errors import StreamError
from repository import environment
from sekv_cli import streams

CLOSED = "stdin is closed; there is nothing to read from it"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a document."""
    place = tmp_path_factory.mktemp("streams")
    toy_store.ingest(place / "toy.sekv")
    (place / "minutes.md").write_text("# Minutes\n\nMarta Lund brings the keys.\n")
    return place


def shell(place: Path, line: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of a line in which `sekv` is this sekv."""
    program = f'sekv() {{ "{sys.executable}" -P -m sekv_cli "$@"; }}\n{line}\n'
    env = environment(PYTHONUTF8="1")
    return subprocess.run(
        ["bash", "-c", program], input=given, capture_output=True, check=False, cwd=place, env=env
    )


@pytest.mark.parametrize(
    "line",
    [
        "sekv ask toy.sekv - <&-",
        "sekv ask toy.sekv -f - <&-",
        "sekv ask toy.sekv 'Who?' - <&-",
        "sekv ingest - -o new.sekv <&-",
        "sekv ingest minutes.md --password-stdin <&-",
        "sekv chat toy.sekv <&-",
        "sekv chat toy.sekv <&- >&-",
    ],
)
def test_a_closed_stdin_is_one_line(place: Path, line: str) -> None:
    done = shell(place, line)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"sekv: {CLOSED}\n"
    assert not (place / "new.sekv").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("sekv list >&-", 2),
        ("sekv list --json >&-", 2),
        ("sekv verify toy.sekv >&-", 2),
        ("sekv list <&- >&-", 2),
        ("sekv --version >&-", 2),
        ("sekv models >&-", 2),
        ("sekv ask --help >&-", 2),
        ("sekv verify toy.sekv --json <&- >&-", 2),
        ("sekv ask none.sekv Q >&-", 2),
    ],
)
def test_a_closed_stdout_is_one_line(place: Path, line: str, code: int) -> None:
    done = shell(place, line)
    assert done.returncode == code
    assert done.stderr.count(b"\n") == 1
    assert b"defect" not in done.stderr
    assert b"closed" in done.stderr or b"no store" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "sekv list > /dev/full",
        "sekv list --json > /dev/full",
        "sekv --help > /dev/full",
        "sekv verify toy.sekv > /dev/full",
    ],
)
def test_a_full_stdout_is_one_line(place: Path, line: str) -> None:
    done = shell(place, line)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("sekv list 2>&-", 0),
        ("sekv verify toy.sekv 2>&-", 0),
        ("sekv ask none.sekv Q 2>&-", 2),
        ("sekv ask none.sekv Q 2> /dev/full", 2),
        ("sekv list <&- >&- 2>&-", 2),
    ],
)
def test_a_closed_stderr_changes_no_outcome(place: Path, line: str, code: int) -> None:
    """What would have been said is lost, and never ends up on stdout."""
    done = shell(place, line)
    assert done.returncode == code
    assert done.stderr == b""
    assert b"sekv: " not in done.stdout


WRITE_ONLY = [
    "sekv ask toy.sekv - 0> file",
    "sekv ingest - -o new.sekv 0> file",
    "sekv ingest minutes.md --password-stdin 0> file",
]


def test_a_stdin_that_cannot_be_read_is_one_line(place: Path, subtests: pytest.Subtests) -> None:
    for line in WRITE_ONLY:
        with subtests.test(line=line):
            done = shell(place, line)
            assert (done.returncode, done.stdout) == (2, b"")
            assert done.stderr.decode() == "sekv: stdin cannot be read: Bad file descriptor\n"


UNHEARD = ["2> /dev/full", "2>&-", "2< minutes.md"]


def test_remarks_that_nobody_can_read_stop_nothing(place: Path, subtests: pytest.Subtests) -> None:
    for where in UNHEARD:
        with subtests.test(where=where):
            program = (
                "from sekv_cli import streams\nstreams.secure()\n"
                "from sekv_cli import progress\n"
                "with progress.on_stderr() as shown: shown.note('loading')\n"
                "print('done')\n"
            )
            (place / "remarks.py").write_text(program)
            done = shell(place, f'"{sys.executable}" remarks.py {where}')
            assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_no_file_gets_the_number_of_a_closed_stream(place: Path) -> None:
    """Else what is printed would be written into whatever is opened first."""
    program = (
        "import os\nfrom sekv_cli import streams\nstreams.secure()\n"
        "assert os.open('minutes.md', os.O_RDWR) > 2\n"
    )
    (place / "program.py").write_text(program)
    done = shell(place, f'"{sys.executable}" program.py <&- >&- 2>&-')
    assert done.returncode == 0


# ---------------------------------------------------------------------------- no text


@pytest.mark.parametrize(
    "line",
    [
        r"sekv ask toy.sekv $'Who brings \xff the keys?'",
        r"sekv ask toy.sekv 'Who?' $'\xed\xa0\x80'",
        r"sekv inspect toy.sekv -q $'Who \xff?'",
        r"sekv ask toy.sekv $'Who \xff?' --json",
    ],
)
def test_a_question_that_is_no_text_is_one_line(place: Path, line: str) -> None:
    done = shell(place, line)
    assert (done.returncode, done.stdout) == (2, b"")
    printed = done.stderr.decode()
    if "--json" in line:
        printed = json.loads(printed)["error"]
        assert printed == {
            "code": "question",
            "message": "the question is not UTF-8 text; save it as UTF-8",
        }
    else:
        assert printed == "sekv: the question is not UTF-8 text; save it as UTF-8\n"


def test_a_question_in_utf16_is_not_read_as_one_in_utf8(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What some shells pipe; without a mark it is UTF-8 full of NULs."""
    from sekv_cli.main import run

    monkeypatch.chdir(place)
    (place / "asked.txt").write_bytes("Who?\n".encode("utf-16-le"))
    (place / "marked.txt").write_bytes("Who?\n".encode("utf-16"))
    assert run(["ask", "toy.sekv", "-f", "asked.txt"]) == 2
    assert "the question holds NUL characters; is it UTF-16?" in capsys.readouterr().err
    assert run(["ask", "toy.sekv", "-f", "marked.txt"]) == 2
    assert "marked.txt is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "number"), [("sekv ask toy.sekv -", 1), ("sekv ask toy.sekv -f -", 1)]
)
@pytest.mark.parametrize("utf8", ["0", "1"])
def test_a_line_of_stdin_that_is_no_text_is_named(
    place: Path, line: str, number: int, utf8: str
) -> None:
    """In every locale, the C locale included, where Python would let the bytes pass."""
    done = shell(place, f"PYTHONUTF8={utf8} LC_ALL=C {line}", b"Who \xff?\n")
    assert done.returncode == 2
    assert done.stderr.decode() == f"sekv: line {number} of stdin is not UTF-8 text\n"


def test_a_password_that_is_no_text_is_one_line(place: Path) -> None:
    done = shell(place, "sekv ingest minutes.md --password-stdin", b"\xff\n")
    assert done.returncode == 2
    assert done.stderr == b"sekv: line 1 of stdin is not UTF-8 text\n"


def test_questions_in_a_file_that_is_no_text_are_one_line(place: Path) -> None:
    (place / "latin.txt").write_bytes("Wer hat die Schlüssel?".encode("latin-1"))
    for line in ("ask toy.sekv -f latin.txt", "bench --questions latin.txt --documents ."):
        done = shell(place, f"sekv {line}")
        assert done.returncode == 2
        assert done.stderr == b"sekv: latin.txt is not UTF-8 text; save the questions as UTF-8\n"


@pytest.mark.parametrize(
    "line",
    [
        r"sekv list $'\xff'",
        r"sekv verify $'\xff.sekv'",
        r"sekv ask $'\xff.sekv' Q",
        r"sekv ingest $'\xff.txt'",
        r"sekv ingest minutes.md --append $'\xff.sekv' --json",
        r"sekv inspect toy.sekv --html $'no\xff/page.html'",
    ],
)
def test_a_name_that_is_no_text_is_a_name_like_any_other(place: Path, line: str) -> None:
    """File systems take any bytes; that nothing has the name is one line."""
    done = shell(place, line)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"defect" not in done.stderr


# ---------------------------------------------------------------------------- numbers


OUT_OF_RANGE = [
    ("--seed 18446744073709551616", "--seed"),
    ("--seed 99999999999999999999999999999999999999999", "--seed"),
    ("--seed -1", "--seed"),
    ("--temperature 1e-42", "--temperature"),
    ("--temperature 1e400", "--temperature"),
    ("--temperature nan", "--temperature"),
    ("--budget 1000%", "--budget"),
    ("--budget 99999999999999999999", "--budget"),
    ("--budget ١٢%", "--budget"),
    ("--widen 1e300", "--widen"),
    ("--max-new-tokens 18446744073709551616", "--max-new-tokens"),
    ("--top-p 0", "--top-p"),
    ("--device cuda:99999999999999999999", "--device"),
    ("--device cuda:٣", "--device"),
    ("--device cuda:01", "--device"),
    ("--coverage nan", "--coverage"),
    ("--coverage -0", "--coverage"),
    ("--budget 1e2%", "--budget"),
    ("--budget 10,5%", "--budget"),
    ("--seed 1e3", "--seed"),
    ("--widen inf", "--widen"),
]


def test_a_number_out_of_range_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, subtests: pytest.Subtests
) -> None:
    from sekv_cli.main import run

    monkeypatch.chdir(place)
    for option, said in OUT_OF_RANGE:
        with subtests.test(option=option):
            assert run(["ask", "toy.sekv", "Who?", *option.split()]) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            assert f"Invalid value for '{said}'" in captured.err


def test_a_server_s_time_limit_is_a_number(place: Path, capsys: Any) -> None:
    from sekv_cli.main import run

    for value in ("nan", "inf"):
        assert run(["serve", str(place / "toy.sekv"), "--timeout", value]) == 2
        assert f"--timeout: {value} is not a number of seconds" in capsys.readouterr().err


# ---------------------------------------------------------------------------- the functions


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))

    return give


def test_lines_come_one_by_one_without_ends_and_marks(stdin: Callable[[bytes], None]) -> None:
    """Whatever the locale says; those before a wrong one have been given by then."""
    stdin("\ufeffWär\r\nb\n\n".encode() + b"\xff\nd\n")
    found = streams.lines()
    assert [next(found), next(found), next(found)] == ["Wär", "b", ""]
    with pytest.raises(StreamError, match="line 4 of stdin"):
        next(found)
