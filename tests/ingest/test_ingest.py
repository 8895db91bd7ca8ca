"""Sources become a store: windows, resumption, plans and refusals."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from engine.documents.tokens import Tokens
from engine.documents.types import HEADERS_KEPT, Document, Source
from engine.errors import (
    BudgetError,
    DocumentError,
    ReaderError,
    RouterError,
    SekvError,
    StoreError,
)
from engine.ingest.run import append, default_target, ingest, plan
from engine.ingest.windows import cut_windows, longest_window
from engine.models.reader import Reader
from engine.store.manifest import NAME
from engine.store.reader import Store
from engine.store.writer import StoreWriter
from engine.types import IngestOptions, IngestReport, Silent
from tiny_books import QUESTION, TEXT, log, report, session
from tiny_documents import painted, said

# ---------------------------------------------------------------------------- windows


def document(*texts: str, words: bool = False) -> tuple[Document, Tokens]:
    """Texts as a document whose tokens are characters, or words with the space before them."""
    starts, ends, source = [], [], []
    for index, text in enumerate(texts):
        edges = list(range(len(text) + 1))
        if words:
            edges = [0, *(i for i in range(1, len(text)) if text[i].isspace()), len(text)]
        for a, b in pairwise(edges):
            starts.append(a)
            ends.append(b)
            source.append(index)
    columns = (np.array(column, dtype=np.int32) for column in (starts, starts, ends, source))
    sources = tuple(Source(f"{i}.txt", "text", text, (), "") for i, text in enumerate(texts))
    return Document(sources), Tokens(*columns, "test")


prose = st.lists(
    st.lists(st.sampled_from(["One two.", "Three four five!", "“Six.”", "Seven eight, nine."]))
    .map(" ".join)
    .filter(len),
    min_size=1,
    max_size=8,
).map("\n\n".join)


@settings(max_examples=100)
@given(
    texts=st.lists(prose | st.text(min_size=1, max_size=80), min_size=1, max_size=3),
    most=st.integers(1, 120),
    words=st.booleans(),
)
def test_windows_hold_every_token_once_and_none_is_longer_than_asked(
    texts: list[str], most: int, words: bool
) -> None:
    made, tokens = document(*texts, words=words)
    windows = cut_windows(made, tokens, most)
    assert windows.bounds[0] == 0
    assert windows.bounds[-1] == len(tokens)
    assert len(windows) == len(windows.bounds) - 1
    lengths = np.diff(windows.bounds)
    assert lengths.max() <= most
    assert lengths.min() >= 1
    assert len(windows) <= 2 * -(-len(tokens) // most)
    if len(tokens) <= most:
        assert len(windows) == 1


def test_windows_end_where_paragraphs_end() -> None:
    text = "\n\n".join(f"Paragraph {i}. It has two sentences, no more." for i in range(40))
    made, tokens = document(text)
    windows = cut_windows(made, tokens, 400)
    assert len(windows) > 3
    for cut in windows.bounds[1:-1]:
        assert text[:cut].endswith("\n\n") or text[cut:].startswith("\n\n")


def test_without_paragraphs_windows_end_where_sentences_end() -> None:
    text = " ".join(f"Sentence {i} says little." for i in range(80))
    made, tokens = document(text)
    windows = cut_windows(made, tokens, 400)
    assert len(windows) > 3
    for cut in windows.bounds[1:-1]:
        assert text[:cut].rstrip().endswith(".")


def test_a_window_does_not_reach_over_two_sources_if_it_need_not() -> None:
    made, tokens = document("x" * 190, "y" * 190)
    assert cut_windows(made, tokens, 200).bounds == (0, 190, 380)


def test_windows_are_of_nearly_equal_length() -> None:
    """Just too long for one window: two halves, not one and a crumb."""
    made, tokens = document("word " * 210)
    lengths = np.diff(cut_windows(made, tokens, 1000).bounds)
    assert len(lengths) == 2
    assert lengths.min() > 400


@pytest.mark.parametrize(
    ("positions", "well", "asked", "window"),
    [
        (4096, 0, 0, 3072),
        (4096, 1024, 0, 1024),
        (4096, 9999, 0, 3072),
        (4096, 1024, 2000, 2000),
        (512, 0, 0, 384),
        (131072, 0, 0, 130048),
    ],
)
def test_the_window_is_what_was_asked_or_what_the_reader_reads_well(
    positions: int, well: int, asked: int, window: int
) -> None:
    assert longest_window(positions, asked, well) == window


@pytest.mark.parametrize("asked", [-1, 3073, 10**9])
def test_a_window_that_cannot_be_is_one_line(asked: int) -> None:
    with pytest.raises(BudgetError, match=r"--window .* at most 3072"):
        longest_window(4096, asked, 0)


# ---------------------------------------------------------------------------- a run


@dataclass
class RecordedProgress(Silent):
    """A Progress that remembers."""

    stages: list[tuple[str, int, str]] = field(default_factory=list)
    done: int = 0
    notes: list[str] = field(default_factory=list)

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append((stage, total, unit))

    def advance(self, done: int) -> None:
        self.done += done

    def note(self, line: str) -> None:
        self.notes.append(line)


def tree(store: Path) -> dict[str, bytes]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def write(folder: Path, text: str, name: str = "log.txt") -> str:
    source = folder / name
    source.write_text(text, encoding="utf-8")
    return str(source)


def test_a_report_tells_what_was_made(model: Path, reader: Reader, tmp_path: Path) -> None:
    progress = RecordedProgress()
    source = write(tmp_path, TEXT)
    store = tmp_path / "log.sekv"
    made = ingest([source], store, IngestOptions(model=str(model)), progress, None, reader)
    plain = json.loads(json.dumps(made.to_json()))
    assert set(plain) == {
        "store",
        "sources",
        "model",
        "method",
        "tokens",
        "windows",
        "window_tokens",
        "unchanged",
        "spans",
        "anchors",
        "store_bytes",
        "full_kv_bytes",
        "timing",
        "resumed_tokens",
    }
    assert set(plain["sources"][0]) == {"path", "pages", "chars", "sha256", "notes"}
    stages = ("read_s", "tokenize_s", "prefill_s", "compress_s", "write_s", "total_s")
    assert set(plain["timing"]) == set(stages)
    assert all(plain["timing"][name] > 0 for name in stages)
    assert plain["tokens"] == plain["sources"][0]["chars"] == len(TEXT)
    assert plain["full_kv_bytes"] == 2 * 3 * 2 * 16 * len(TEXT) * 4
    assert plain["store_bytes"] == sum(map(len, tree(store).values()))
    assert plain["resumed_tokens"] == 0
    with Store.open(store) as opened:
        assert opened.manifest.tokens == len(TEXT)
        assert opened.manifest.spans == plain["spans"]
        assert opened.manifest.anchors == plain["anchors"]
        assert opened.verify() == []
    assert progress.stages[-1:] == [("reading", len(TEXT), "tokens")]
    assert progress.done == len(TEXT)


def test_spans_partition_every_window(model: Path, reader: Reader, tmp_path: Path) -> None:
    made = report(tmp_path, model, reader=reader, window=160)
    with Store.open(Path(made.store)) as opened:
        for index, window in enumerate(opened.manifest.windows):
            tables = opened.device(index)
            bounds = tables["bounds"].tolist()
            assert bounds[0] == 0
            assert bounds[-1] == window.end - window.start
            assert bounds == sorted(set(bounds))
            assert len(tables["kind"]) == window.spans
            assert int((tables["kind"] == 1).sum()) == window.anchors


@pytest.mark.parametrize(
    ("method", "count"),
    [
        *(("sekv", count) for count in (2, 3, 9, 13, 30)),
        *((method, count) for method in ("sekv-paper", "full") for count in (2, 13)),
    ],
)
def test_a_document_of_a_few_tokens_is_read_and_answers(
    count: int, method: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    """Shorter than sinks, local window and every span."""
    made = report(tmp_path, model, TEXT[:count], reader=reader, method=method)
    assert made.tokens == count
    with session(Path(made.store), reader, max_new_tokens=2) as opened:
        assert opened.ask(QUESTION).usage.answer_tokens == 2


@pytest.mark.parametrize("text", ["aaaaaaaa" * 40, "\n" * 50 + "x" + "\n" * 50, "é" * 100])
def test_a_document_that_repeats_itself_is_read_and_answers(
    text: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    for method in ("sekv", "sekv-paper"):
        made = report(tmp_path, model, text, reader=reader, method=method, overwrite=True)
        with session(Path(made.store), reader, max_new_tokens=2) as opened:
            assert opened.ask(QUESTION).usage.answer_tokens == 2


def test_several_sources_are_one_document(model: Path, reader: Reader, tmp_path: Path) -> None:
    """One after another, each with its own text; a citation names its source."""
    texts = [log(3), "It never rained again. " * 6]
    sources = [write(tmp_path, text, f"{i}.txt") for i, text in enumerate(texts)]
    store = tmp_path / "both.sekv"
    made = ingest(sources, store, IngestOptions(model=str(model)), Silent(), None, reader)
    assert [s.path for s in made.sources] == sources
    assert made.tokens == sum(map(len, texts))
    with session(store, reader) as opened:
        assert [opened.store.text(i) for i in range(2)] == texts
        weight = torch.zeros(made.tokens)
        weight[len(texts[0]) + 4] = 1.0
        (citation,) = opened.book.citations(weight)
        assert (citation.source, citation.text) == (sources[1], "It never rained again.")


def test_standard_input_is_a_source(model: Path, reader: Reader, tmp_path: Path) -> None:
    store = tmp_path / "stdin.sekv"
    options = IngestOptions(model=str(model))
    made = ingest(["-"], store, options, Silent(), io.BytesIO(TEXT.encode()), reader)
    assert made.sources[0].path == "-"
    assert made.tokens == len(TEXT)


def test_a_store_is_named_after_its_first_source() -> None:
    assert default_target(["a/b.pdf", "c.txt"]) == Path("b.sekv")
    assert default_target(["-"]) == Path("stdin.sekv")
    with pytest.raises(DocumentError, match="no source given"):
        default_target([])


# ---------------------------------------------------------------------------- interruptions


def interrupted(patch: pytest.MonkeyPatch, what: str, at: int, *args: Any, **kwargs: Any) -> None:
    """Run an ingest whose `at`-th call of a writer's method is a Ctrl-C."""
    calls = 0
    real = getattr(StoreWriter, what)

    def method(writer: StoreWriter, *given_args: Any, **given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return real(writer, *given_args, **given)

    patch.setattr(StoreWriter, what, method)
    with pytest.raises(KeyboardInterrupt):
        report(*args, **kwargs)
    patch.undo()
    assert calls == at


PIECES: dict[str, Any] = {"window": 160, "chunk_tokens": 48}


@pytest.fixture(scope="module")
def uninterrupted(
    model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a run that nothing stopped, but for the manifest, which tells where the source
    is."""
    made = report(tmp_path_factory.mktemp("whole"), model, reader=reader, **PIECES)
    return {name: data for name, data in tree(Path(made.store)).items() if name != NAME}


@pytest.mark.parametrize(
    ("what", "at"),
    [("put_window", 1), ("put_window", 2), ("put_window", 4), ("put_chunk", 2), ("put_shared", 1)],
)
def test_an_interrupted_run_is_finished_by_the_next_to_the_same_bytes(
    what: str,
    at: int,
    model: Path,
    reader: Reader,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted(monkeypatch, what, at, tmp_path, model, reader=reader, **PIECES)
    store = tmp_path / "log.sekv"
    assert not store.exists()
    progress = RecordedProgress()
    options = IngestOptions(model=str(model), **PIECES)
    made = ingest([str(tmp_path / "log.txt")], store, options, progress, None, reader)
    assert 0 < made.resumed_tokens < made.tokens
    assert progress.done == made.tokens
    files = tree(store)
    del files[NAME]
    assert files == uninterrupted
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "log.sekv"}


@pytest.mark.parametrize(
    "changed", [{"chunk_tokens": 64}, {"window": 240}, {"method": "sekv-paper"}]
)
def test_another_job_does_not_continue_it(
    changed: dict[str, Any],
    model: Path,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted(monkeypatch, "put_window", 2, tmp_path, model, reader=reader, **PIECES)
    made = report(tmp_path, model, reader=reader, **PIECES | changed)
    assert made.resumed_tokens == 0
    with Store.open(Path(made.store)) as opened:
        assert opened.verify() == []


def test_an_overwritten_store_stays_until_the_new_one_is_complete(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = report(tmp_path, model, log(3), reader=reader)
    before = tree(Path(old.store))
    interrupted(
        monkeypatch, "put_window", 1, tmp_path, model, log(4), reader=reader, overwrite=True
    )
    assert tree(Path(old.store)) == before
    made = report(tmp_path, model, log(4), reader=reader, overwrite=True)
    assert made.tokens == len(log(4))


# ---------------------------------------------------------------------------- refusals


def test_an_existing_name_is_refused_before_anything_is_read(model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "log.sekv"
    taken.mkdir()
    with pytest.raises(StoreError, match="--overwrite"):
        ingest([str(tmp_path / "missing.txt")], taken, IngestOptions(), Silent())
    with pytest.raises(StoreError, match="no store, so it is not overwritten"):
        report(tmp_path, model, overwrite=True)
    assert list(taken.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (
            {"method": "nonsense"},
            BudgetError,
            r"unknown method 'nonsense'; known: sekv, sekv-paper",
        ),
        ({"router": "r.safetensors"}, RouterError, "there is no router file r.safetensors"),
        ({"window": -5}, BudgetError, "--window"),
        ({"window": 4096}, BudgetError, "--window"),
        ({"chunk_tokens": 0}, BudgetError, "--chunk-tokens"),
        ({"device": "tpu"}, ReaderError, "unknown device"),
        ({"dtype": "int8"}, ReaderError, "unknown dtype"),
        ({"model": "no/such-model"}, ReaderError, "is not here"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    options: dict[str, Any], kind: type[SekvError], said: str, model: Path, tmp_path: Path
) -> None:
    source = write(tmp_path, TEXT)
    target = tmp_path / "log.sekv"
    with pytest.raises(kind, match=said) as caught:
        ingest([source], target, IngestOptions(**{"model": str(model), **options}), Silent())
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


@pytest.mark.parametrize(("text", "said"), [("x", "hardly any text"), ("", "empty")])
def test_hardly_any_text_is_one_line(
    text: str, said: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    with pytest.raises(DocumentError, match=said):
        report(tmp_path, model, text, reader=reader)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


# ---------------------------------------------------------------------------- plans


def test_a_plan_looks_at_the_router(model: Path, tmp_path: Path) -> None:
    """What ingest would refuse without any weights, the plan refuses too."""
    source, missing = write(tmp_path, TEXT), str(tmp_path / "r.safetensors")
    with pytest.raises(RouterError, match="there is no router file"):
        plan([source], IngestOptions(model=str(model), router=missing), Silent())
    assert plan([source], IngestOptions(model=str(model), router="none"), Silent()).tokens > 0


@pytest.mark.parametrize("method", ["sekv", "sekv-paper", "full"])
def test_a_plan_is_near_what_is_made_and_loads_no_weights(
    method: str,
    model: Path,
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = log(50)
    options = {"method": method, "window": 1000}
    made = report(tmp_path, model, text, reader=reader, **options)
    with session(Path(made.store), reader, budget="1000%") as opened:
        resident = sum(layer.fixed_bytes for layer in opened.memory.layers)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    source = str(tmp_path / "log.txt")
    planned = plan([source], IngestOptions(model=str(model), **options), Silent())  # type: ignore[arg-type]
    for name in ("sources", "model", "method", "tokens", "windows", "window_tokens"):
        assert getattr(planned, name) == getattr(made, name)
    assert planned.full_kv_bytes == made.full_kv_bytes
    assert planned.estimated_store_bytes == pytest.approx(made.store_bytes, rel=0.6)
    # Of methods other than the default, whose spans have another length: about half or twice.
    assert 0.4 * resident < planned.estimated_device_bytes < 2 * resident
    assert planned.to_json()["dry_run"] is True


def test_a_plan_refuses_what_a_run_would(tmp_path: Path, model: Path) -> None:
    source = write(tmp_path, TEXT)
    for options in ({"method": "nonsense"}, {"window": -1}, {"model": "no/such-model"}):
        with pytest.raises(SekvError):
            plan([source], IngestOptions(**{"model": str(model), **options}), Silent())


# ---------------------------------------------------------------------------- what is left out


def headed(folder: Path, name: str, thing: str = "Ship") -> str:
    pages = [
        said(72, 760, "The Harbour") + said(72, 690, "It lay still.", f"{thing} {at} came.")
        for at in range(4)
    ]
    (folder / name).write_bytes(
        painted(pages, catalog="/PageLabels << /Nums [0 << /S /r >> 2 << /S /D >>] >>")
    )
    return str(folder / name)


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_left_out_is_told_and_an_append_does_the_same(
    keep: bool, model: Path, reader: Reader, tmp_path: Path
) -> None:
    store = tmp_path / "a.sekv"
    options = IngestOptions(model=str(model), keep_headers=keep)
    made = ingest([headed(tmp_path, "a.pdf")], store, options, Silent(), None, reader)
    append([headed(tmp_path, "b.pdf", "Boat")], store, IngestOptions(), Silent(), None, reader)
    with Store.open(store) as opened:
        assert opened.verify() == []
        for entry, text in zip(opened.manifest.sources, opened.texts(), strict=True):
            assert text.count("The Harbour") == (4 if keep else 1)
            assert [label for label, _ in entry.pages] == ["i", "ii", "1", "2"]
            assert entry.sheets == (1, 2, 3, 4)
            assert entry.printed == ()
            assert entry.notes == made.sources[0].notes
    assert made.sources[0].notes == (
        (HEADERS_KEPT,)
        if keep
        else (
            "left out at the head of 3 pages, said once: The Harbour",
            "--keep-headers keeps what was left out",
        )
    )


# ---------------------------------------------------------------------------- appending


def appended(
    store: Path, folder: Path, reader: Reader, text: str = "The ship went home. " * 9
) -> IngestReport:
    return append([write(folder, text, "more.txt")], store, IngestOptions(), Silent(), None, reader)


def test_appended_sources_are_new_windows_and_the_old_ones_stay(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    first = report(tmp_path, model, reader=reader, window=160)
    before = tree(Path(first.store))
    made = appended(Path(first.store), tmp_path, reader)
    after = tree(Path(first.store))
    for name, data in before.items():
        if name.startswith("windows/") or name.startswith("shared"):
            assert after[name] == data
    assert made.tokens == first.tokens + 180
    assert made.windows > first.windows
    assert [Path(s.path).name for s in made.sources] == ["log.txt", "more.txt"]
    with session(Path(first.store), reader, budget="60%") as opened:
        assert opened.store.verify() == []
        last = set(range(made.tokens - 8, made.tokens))
        for layer in opened.memory.layers:
            assert last <= set(layer.pinned_token.tolist())
        assert opened.ask(QUESTION).usage.document_tokens == made.tokens


def test_an_interrupted_append_leaves_the_store_as_it_was(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = report(tmp_path, model, reader=reader, window=160)
    before = tree(Path(first.store))

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "put_window", stop)
    with pytest.raises(KeyboardInterrupt):
        appended(Path(first.store), tmp_path, reader)
    monkeypatch.undo()
    assert tree(Path(first.store)) == before
    assert appended(Path(first.store), tmp_path, reader).windows > first.windows


def test_an_append_by_another_reader_is_refused(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    first = report(tmp_path, model, reader=reader)
    before = tree(Path(first.store))
    other = Reader(
        reader.model,
        reader.tokenizer,
        replace(reader.identity, weights="00"),
        reader.prompt,
        reader.located,
    )
    with pytest.raises(StoreError, match="weights"):
        appended(Path(first.store), tmp_path, other)
    assert tree(Path(first.store)) == before
