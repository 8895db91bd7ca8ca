"""sekv from Python: what `engine.api` promises, and the README's example as it stands there."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from engine import api, errors
from engine.models.locate import Located
from engine.models.reader import Reader
from fake_model import replace_loading
from repository import ROOT
from tiny_books import QUESTION, TEXT


def test_the_example_of_the_readme_runs_as_it_stands_there(
    smollm2: Located,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With the sample book and the default model; the answer and the first passage are right."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    answer, first, *_ = capfd.readouterr().out.splitlines()
    assert "crucifix" in answer
    assert first.startswith("p. 5: She then rose")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With log.txt, whose text is `TEXT`."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "log.txt").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, model: Path, reader: Reader) -> Path:
    """Of log.txt."""
    options = api.IngestOptions(model=str(model))
    return Path(api.ingest(folder / "log.txt", folder / "log.sekv", options, reader=reader).store)


def test_sources_are_one_name_or_several_and_paths_or_texts(
    folder: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a stream, which is named "-"."""
    monkeypatch.chdir(folder)
    options = api.IngestOptions(model=str(model))
    one = api.plan("log.txt", options)
    assert one == api.plan(Path("log.txt"), options) == api.plan(["log.txt"], options)
    stream = io.BytesIO(b"And then it snowed on all of them.")
    two = api.plan([Path("log.txt"), "-"], options, stdin=stream)
    assert [source.path for source in two.sources] == ["log.txt", "-"]
    assert two.tokens > one.tokens


def test_a_store_answers_and_grows_with_a_model_that_is_loaded(
    store: Path, tmp_path: Path, reader: Reader
) -> None:
    options = api.AskOptions(budget="50%", max_new_tokens=4)
    with api.open_store(store, options, reader=reader) as opened:
        before = opened.ask(QUESTION)
    more = tmp_path / "more.txt"
    more.write_text("In the tenth week the crew saw no whales at all.", encoding="utf-8")
    report = api.append(more, store, reader=reader)
    assert [Path(source.path).name for source in report.sources] == ["log.txt", "more.txt"]
    with api.open_store(str(store), options, reader=reader) as opened:
        assert opened.ask(QUESTION).usage.document_tokens > before.usage.document_tokens


def test_what_is_wrong_is_an_error_of_its_kind_and_loads_no_model(
    store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the code that `sekv --json` prints."""

    def load(*_: object, **__: object) -> None:
        pytest.fail("a model is loaded")

    replace_loading(monkeypatch, load)
    for kind, code, call in (
        (errors.DocumentError, "document", lambda: api.ingest("gone.pdf", folder / "new.sekv")),
        (errors.DocumentError, "document", lambda: api.ingest([], folder / "new.sekv")),
        (errors.StoreExistsError, "store_exists", lambda: api.ingest(folder / "log.txt", store)),
        (errors.StoreMissingError, "store_missing", lambda: api.open_store(folder / "gone")),
        (errors.StoreMissingError, "store_missing", lambda: api.append("-", folder / "log.txt")),
        (errors.OptionError, "option", lambda: api.open_store(store, api.AskOptions("120%"))),
    ):
        with pytest.raises(kind) as raised:
            call()
        assert raised.value.code == code
    assert not (folder / "new.sekv").exists()
