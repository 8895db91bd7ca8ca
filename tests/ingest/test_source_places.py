"""Which file a source is: found from any folder, told apart from its namesakes, taken once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.models.reader import load_reader
from engine.store.reader import read_manifest
from fake_model import replace_loading
from sekv_cli import names
from sekv_cli.main import run
from tiny_books import log

MINUTES = "# Minutes\n\n## Next meeting\n\nMarta Lund brings the keys.\n"


@pytest.fixture
def sekv(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    instant_disk: None,
) -> Callable[..., Any]:
    """Run a command in a folder; its code, its JSON and what it says on stderr."""
    loaded = load_reader(str(model), device="cpu")
    replace_loading(monkeypatch, lambda *_, **__: loaded)

    def command(folder: Path, line: str) -> tuple[int, Any, str]:
        monkeypatch.chdir(folder)
        words = line.split()
        if words[0] == "ingest":
            words += ["--model", str(model), "--device", "cpu"]
        capsys.readouterr()
        code = run([*words, "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return command


@pytest.fixture
def places(tmp_path: Path, sekv: Any) -> tuple[Path, Path]:
    """Two folders with a minutes.md each; the first one's is in a store beside it."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, text in ((here, MINUTES), (there, "Something else.\n")):
        folder.mkdir()
        (folder / "minutes.md").write_text(text)
    assert sekv(here, "ingest minutes.md")[0] == 0
    return here, there


def changed(sekv: Any, folder: Path, store: str) -> list[str]:
    """What `verify` and `inspect` say of the sources, which is the same."""
    code, printed, _ = sekv(folder, f"verify {store}")
    assert code == 0
    assert sekv(folder, f"inspect {store}")[1]["changed"] == printed["sources"]
    lines: list[str] = printed["sources"]
    return lines


def test_a_source_is_found_from_any_folder(places: tuple[Path, Path], sekv: Any) -> None:
    """Also where another file has its name."""
    here, there = places
    for folder, store in ((here, "minutes.sekv"), (there, "../here/minutes.sekv")):
        assert changed(sekv, folder, store) == []
    assert changed(sekv, Path("/"), str(here / "minutes.sekv")) == []


def test_a_change_is_told_from_any_folder(places: tuple[Path, Path], sekv: Any) -> None:
    here, there = places
    (here / "minutes.md").write_text("New.\n")
    for folder, store in ((here, "minutes.sekv"), (there, "../here/minutes.sekv")):
        (line,) = changed(sekv, folder, store)
        assert line.startswith(f"minutes.md ({here / 'minutes.md'}) is not what was read")
    (here / "minutes.md").unlink()
    (line,) = changed(sekv, there, "../here/minutes.sekv")
    assert line.startswith("minutes.md is no longer there")


def test_store_and_source_may_be_moved_together(places: tuple[Path, Path], sekv: Any) -> None:
    here, there = places
    here.rename(here.with_name("elsewhere"))
    assert changed(sekv, there, "../elsewhere/minutes.sekv") == []


def test_a_source_is_found_by_every_name_of_its_store(places: tuple[Path, Path], sekv: Any) -> None:
    """Through links, from within, with a slash behind it."""
    here, there = places
    (there / "link.sekv").symlink_to(here / "minutes.sekv")
    (there / "folder").symlink_to(here)
    for folder, store in (
        (there, "link.sekv"),
        (there, "folder/minutes.sekv/"),
        (here / "minutes.sekv", "."),
        (here, "./minutes.sekv/."),
    ):
        assert changed(sekv, folder, store) == []


def test_a_store_copied_elsewhere_does_not_say_that_its_source_is_gone(
    places: tuple[Path, Path], sekv: Any
) -> None:
    here, there = places
    (there / "minutes.md").unlink()
    shutil.copytree(here / "minutes.sekv", there / "copy.sekv")
    (line,) = changed(sekv, there, "copy.sekv")
    assert "or the store was moved away from it" in line


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_took_the_place_of_a_source_is_none(
    kind: str, places: tuple[Path, Path], sekv: Any
) -> None:
    here, _ = places
    source = here / "minutes.md"
    source.unlink()
    if kind == "folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)
    else:
        source.symlink_to("minutes.md")
    (line,) = changed(sekv, here, "minutes.sekv")
    assert line.startswith("minutes.md is no longer there")


def test_a_store_moved_to_a_namesake_does_not_say_that_this_changed(
    places: tuple[Path, Path], sekv: Any
) -> None:
    here, there = places
    shutil.move(here / "minutes.sekv", there / "minutes.sekv")
    (line,) = changed(sekv, there, "minutes.sekv")
    assert "or the store was moved away from it" in line
    (there / "minutes.md").unlink()
    (line,) = changed(sekv, there, "minutes.sekv")
    assert "no longer there" in line


@pytest.mark.parametrize("store", ["minutes.sekv", "stores/minutes.sekv", "../far/minutes.sekv"])
@pytest.mark.parametrize("source", ["minutes.md", "./docs/../minutes.md", "docs/minutes.md"])
def test_a_source_may_lie_anywhere_beside_its_store(
    tmp_path: Path, sekv: Any, store: str, source: str
) -> None:
    here = tmp_path / "here"
    for folder in (here / "docs", here / "stores", tmp_path / "far"):
        folder.mkdir(parents=True)
    for name in ("minutes.md", "docs/minutes.md"):
        (here / name).write_text(MINUTES + name)
    assert sekv(here, f"ingest {source} -o {store}")[0] == 0
    assert changed(sekv, here, store) == []
    assert changed(sekv, tmp_path, str(here / store)) == []
    assert str(tmp_path) not in (here / store / "manifest.json").read_text().replace("model", "")


def test_an_appended_source_is_found_where_it_lay_then(
    places: tuple[Path, Path], sekv: Any
) -> None:
    """The first source keeps its place though the command runs in another folder."""
    here, there = places
    assert sekv(there, "ingest minutes.md --append ../here/minutes.sekv")[0] == 0
    assert changed(sekv, Path("/"), str(here / "minutes.sekv")) == []
    (there / "minutes.md").write_text("New.\n")
    (line,) = changed(sekv, Path("/"), str(here / "minutes.sekv"))
    assert str(there) in line


def test_a_whole_path_stays_as_it_was_given(places: tuple[Path, Path], sekv: Any) -> None:
    here, there = places
    assert sekv(there, f"ingest {here / 'minutes.md'} -o new.sekv")[0] == 0
    (entry,) = read_manifest(there / "new.sekv").sources
    assert (entry.path, entry.near) == (str(here / "minutes.md"), "")
    assert changed(sekv, there, "new.sekv") == []


# ---------------------------------------------------------------------------- taken once


@pytest.mark.parametrize(
    "again", ["minutes.md", "./minutes.md", "../here/minutes.md", "link.md", "hard.md"]
)
def test_a_file_is_taken_once(places: tuple[Path, Path], sekv: Any, again: str) -> None:
    here, _ = places
    (here / "link.md").symlink_to("minutes.md")
    (here / "hard.md").hardlink_to(here / "minutes.md")
    code, _, err = sekv(here, f"ingest minutes.md {again} -o two.sekv")
    assert code == 2
    assert json.loads(err)["error"]["message"].startswith(f"{again} is named twice")
    assert not (here / "two.sekv").exists()
    before = (here / "minutes.sekv" / "manifest.json").read_bytes()
    code, _, err = sekv(here, f"ingest {again} --append minutes.sekv")
    assert code == 2
    assert f"{again} is in the store already" in json.loads(err)["error"]["message"]
    assert (here / "minutes.sekv" / "manifest.json").read_bytes() == before


def test_the_same_content_under_two_names_is_remarked(places: tuple[Path, Path], sekv: Any) -> None:
    here, _ = places
    (here / "copy.md").write_text(MINUTES)
    code, printed, err = sekv(here, "ingest minutes.md copy.md -o two.sekv")
    assert (code, len(printed["sources"])) == (0, 2)
    assert "copy.md has the same content as minutes.md" in err


def test_a_changed_source_may_be_added_and_is_remarked(
    places: tuple[Path, Path], sekv: Any
) -> None:
    here, _ = places
    (here / "minutes.md").write_text(log(2))
    code, printed, err = sekv(here, "ingest minutes.md --append minutes.sekv")
    assert (code, len(printed["sources"])) == (0, 2)
    assert "minutes.md changed since it was added; both contents are kept" in err


# ---------------------------------------------------------------------------- told apart


@pytest.mark.parametrize(
    ("paths", "called"),
    [
        (["y2023/minutes.md", "y2024/minutes.md"], ["y2023/minutes.md", "y2024/minutes.md"]),
        (["a/b/c.md", "/x/b/c.md", "d.md"], ["a/b/c.md", "x/b/c.md", "d.md"]),
        (["minutes.md", "old/minutes.md"], ["minutes.md", "old/minutes.md"]),
        (["a/b.md", "./a/c.md"], ["b.md", "c.md"]),
        (["-"], ["-"]),
        (["/a.md", "b/a.md"], ["/a.md", "b/a.md"]),
        (["/home/u/docs/book.pdf"], ["book.pdf"]),
        (["a/m.md", "A/m.md"], ["a/m.md", "A/m.md"]),
        (["a/m.md", "m.md/m.md"], ["a/m.md", "m.md/m.md"]),
        (["-", "x/-"], ["-", "x/-"]),
    ],
)
def test_names_are_as_short_as_tells_sources_apart(paths: list[str], called: list[str]) -> None:
    assert list(names.shortest(paths).values()) == called


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1, max_size=6))
def test_two_paths_never_have_one_name(parts: list[list[str]]) -> None:
    paths = {"/".join(each) for each in parts}
    called = names.shortest(paths)
    assert len(set(called.values())) == len(paths)
    assert all(path.endswith(name) for path, name in called.items())


def test_citations_and_lists_tell_namesakes_apart(
    tmp_path: Path,
    sekv: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the report's two minutes; by `ask`, `inspect`, `list` and the page alike."""
    for year in ("y2023", "y2024"):
        (tmp_path / year).mkdir()
        (tmp_path / year / "minutes.md").write_text(f"{MINUTES}\nOf {year}.\n")
    line = "ingest y2023/minutes.md y2024/minutes.md -o both.sekv"
    assert sekv(tmp_path, line)[0] == 0
    assert run(["list"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "y2023/minutes.md, y2024/minutes.md" in shown
    answer = ["ask", "both.sekv", "Who brings the keys?", "--max-new-tokens", "4", "--no-server"]
    assert run([*answer, "--json"]) == 0
    cited = [c["source"] for c in json.loads(capsys.readouterr().out)["citations"]]
    assert cited
    assert run(answer) == 0
    heads = [row for row in capsys.readouterr().out.splitlines() if row.startswith("  [")]
    assert len(heads) == len(cited)
    for head, source in zip(heads, cited, strict=True):
        assert source in head
    assert run(["inspect", "both.sekv", "--html", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert '"name":"y2023/minutes.md"' in page
    assert '"name":"y2024/minutes.md"' in page


def test_a_source_that_is_there_twice_is_listed_once_with_a_count(
    places: tuple[Path, Path], sekv: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = places
    (here / "minutes.md").write_text(log(2))
    assert sekv(here, "ingest minutes.md --append minutes.sekv")[0] == 0
    assert run(["list"]) == 0
    assert "minutes.md (2 times)" in " ".join(capsys.readouterr().out.split())
