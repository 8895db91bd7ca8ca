"""Looking into a store: spans, bytes, text, and what a question zoomed into."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answer.inspect import around, excerpts, inspect, text
from engine.errors import DocumentError, SekvError, StoreError
from engine.ingest.run import append, ingest
from engine.models.reader import Reader
from engine.store.manifest import DOCUMENT, NAME
from engine.store.reader import Store
from engine.types import AskOptions, Citation, IngestOptions, InspectReport, Silent
from repository import ROOT
from sekv_cli import page
from sekv_cli.main import run
from tiny_books import QUESTION, log, read, session
from toy_store import rewrite

TEXTS = [
    "Zoë saw 3 whales. “Rain!” she cried…\n\nÅse saw 🐋🐋. 雨が降った。\n" * 5,
    log(4),
]


@pytest.fixture(scope="module")
def stores(
    model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two sources in several windows, by every method."""
    place = tmp_path_factory.mktemp("stores")
    sources = []
    for name, content in zip(("a.txt", "b.txt"), TEXTS, strict=True):
        (place / name).write_text(content, encoding="utf-8")
        sources.append(str(place / name))
    made = {}
    for method in ("sekv", "sekv-paper", "full"):
        made[method] = place / f"{method}.sekv"
        options = IngestOptions(model=str(model), method=method, window=200)
        ingest(sources, made[method], options, Silent(), None, reader)
    return made


def look(store: Path, **options: Any) -> InspectReport:
    return inspect(
        store, options=AskOptions(budget="20%", device="cpu"), progress=Silent(), **options
    )


# ---------------------------------------------------------------------------- spans


@pytest.mark.parametrize("method", ["sekv", "sekv-paper", "full"])
def test_spans_partition_the_document(method: str, stores: dict[str, Path]) -> None:
    report = look(stores[method])
    spans = report.spans
    assert [span.id for span in spans] == list(range(len(spans)))
    assert spans[0].start_token == 0
    assert spans[-1].end_token == report.manifest["tokens"]
    assert all(a.end_token == b.start_token for a, b in pairwise(spans))
    assert all(span.start < span.end for span in spans)
    assert sum(w["spans"] for w in report.manifest["windows"]) == len(spans)
    assert sum(w["anchors"] for w in report.manifest["windows"]) == sum(s.anchor for s in spans)
    own = [[s for s in spans if s.source.endswith(name)] for name in ("a.txt", "b.txt")]
    assert own[0][0].start == 0
    assert [part[-1].end for part in own] == [len(content) for content in TEXTS]
    # Tokens are bytes here. A span over two sources is shown in the first of them.
    second = len(TEXTS[0].encode())
    assert own[0][-1].start_token < second <= own[0][-1].end_token == own[1][0].start_token
    assert own[1][0].start == own[1][0].start_token - second
    assert json.loads(json.dumps(report.to_json()))["spans"][0]["id"] == 0


def test_a_span_s_bytes_are_those_on_disk(stores: dict[str, Path]) -> None:
    """Of one layer or of all; codes and nothing else."""
    for method in ("sekv", "sekv-paper"):
        with Store.open(stores[method]) as opened:
            count = range(len(opened.manifest.windows))
            each = [
                sum(int(opened.host(w).offsets(layer)[-1]) for w in count) for layer in range(3)
            ]
        for layer in range(3):
            assert sum(s.bytes for s in look(stores[method], layer=layer).spans) == each[layer]
        assert sum(s.bytes for s in look(stores[method]).spans) == sum(each)


def test_ranks_are_what_the_codec_keeps(stores: dict[str, Path]) -> None:
    """The same for all where the basis is shared, each span's own for the published codec, and
    all of a head for the reference."""
    shared = {(s.rank_k, s.rank_v) for s in look(stores["sekv"]).spans}
    assert len(shared) == 1
    assert all(8 <= rank <= 16 for pair in shared for rank in pair)
    own = look(stores["sekv-paper"], layer=1, head=1).spans
    assert all(1 <= s.rank_k <= 16 for s in own)
    assert {(s.rank_k, s.rank_v) for s in look(stores["full"]).spans} == {(16, 16)}


def test_tiers_add_up_to_the_files(stores: dict[str, Path]) -> None:
    for store in stores.values():
        report = look(store)
        files = {f.name: f.stat().st_size for f in store.rglob("*") if f.is_file()}
        parts = [report.tiers[name] for name in ("device", "host", "document", "manifest")]
        assert sum(parts) == sum(files.values())
        assert report.tiers["manifest"] == files[NAME]
        assert report.tiers["full"] == 2 * 3 * 2 * 16 * 4 * report.manifest["tokens"]


def test_text_narrows_to_the_spans_it_touches(stores: dict[str, Path]) -> None:
    spans = look(stores["sekv"], text=(10, 20)).spans
    assert spans[0].start <= 10 < spans[0].end
    assert spans[-1].start < 20 <= spans[-1].end
    assert all(span.source.endswith("a.txt") for span in spans)
    assert look(stores["sekv"], text=(10**6, 10**6 + 1)).spans == ()


@pytest.mark.parametrize(
    ("narrowed", "said"),
    [
        ({"layer": 3}, "no layer 3; the model has 0 to 2"),
        ({"layer": -1}, "no layer -1"),
        ({"head": 2}, "no KV head 2; the model has 0 to 1"),
        ({"head": -1}, "no KV head -1"),
    ],
)
def test_a_layer_or_head_that_is_not_there_is_one_line(
    narrowed: dict[str, int], said: str, stores: dict[str, Path]
) -> None:
    with pytest.raises(SekvError, match=said):
        look(stores["sekv"], **narrowed)


# ---------------------------------------------------------------------------- text


@settings(max_examples=60)
@given(source=st.integers(0, 1), a=st.integers(-5, 400), b=st.integers(0, 400))
def test_pieces_join_to_the_slice(source: int, a: int, b: int, stores: dict[str, Path]) -> None:
    """Every character once, also where one character is several tokens in two spans."""
    words = TEXTS[source]
    start, end = max(0, a), min(b, len(words))
    if start >= end:
        with pytest.raises(DocumentError, match="characters 0 to"):
            text(stores["sekv"], source, a, b)
        return
    pieces = text(stores["sekv"], source, a, b)
    assert "".join(piece.text for piece in pieces) == words[start:end]
    assert all(piece.text for piece in pieces)
    spans = [piece.span for piece in pieces]
    assert spans == sorted(set(spans))


def test_pieces_know_their_span(stores: dict[str, Path]) -> None:
    spans = {span.id: span for span in look(stores["sekv"]).spans}
    at = 0
    for piece in text(stores["sekv"], 1, 0, 10**9):
        if piece.span < 0:  # the rest of a span that begins in the source before
            assert at == 0
            at = len(piece.text)
            continue
        span = spans[piece.span]
        assert span.source.endswith("b.txt")
        assert span.start <= at < at + len(piece.text) <= span.end
        assert piece.anchor == span.anchor
        at += len(piece.text)
    assert at == len(TEXTS[1])


@pytest.mark.parametrize("source", [-1, 2])
def test_a_source_that_is_not_there_is_one_line(source: int, stores: dict[str, Path]) -> None:
    with pytest.raises(DocumentError, match=f"no source {source + 1}; .* has 1 to 2"):
        text(stores["sekv"], source, 0, 5)


# ---------------------------------------------------------------------------- zoom


@pytest.fixture(scope="module")
def trace(
    stores: dict[str, Path], reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """A trace file of two questions, and the decisions of the last."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    with session(stores["sekv"], reader, trace=True, max_new_tokens=3) as opened:
        lines = []
        for question in ("Who cried?", QUESTION):
            opened.ask(question)
            lines.append(json.dumps(opened.trace()))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path, opened.trace()["zoom"]


def test_a_trace_shows_the_last_question_s_decisions(
    trace: tuple[Path, list[Any]], stores: dict[str, Path]
) -> None:
    path, zoom = trace
    report = look(stores["sekv"], trace=path)
    assert report.question == QUESTION
    assert len(report.said) == 3
    assert "".join(report.said).strip() == report.answer
    assert {(m.layer, m.step) for m in report.moves} == {(n, s) for n in range(3) for s in range(3)}
    assert sum(m.fetched_bytes for m in report.moves) > 0
    assert report.citations
    assert {window.window for window in report.retrieval} < set(
        range(len(report.manifest["windows"]))
    )
    assert list(report.to_json()["zoom"]) == zoom
    assert zoom
    narrowed = look(stores["sekv"], trace=path, layer=1, head=0)
    assert list(narrowed.to_json()["zoom"]) == [
        z for z in zoom if z["layer"] == 1 and z["kv_head"] == 0
    ]


def test_a_trace_tells_what_was_in_memory_by_kind(stores: dict[str, Path]) -> None:
    """To the byte what the answer says was resident; every kind has its part."""
    with session(
        stores["sekv"], budget="20%", max_new_tokens=3, device="cpu", trace=True
    ) as opened:
        answer = opened.ask(QUESTION)
        resident = opened.trace()["resident"]
        look_back = look(stores["sekv"], trace=opened.trace()).resident
    assert sum(resident.values()) == answer.memory.device_kv_bytes
    held = {kind for kind, size in resident.items() if size}
    assert held == {"exact_rows", "sketches", "summaries", "parameters", "zoomed_rows"}
    assert look_back == resident


def test_a_question_shows_what_it_zooms_into(stores: dict[str, Path]) -> None:
    options = AskOptions(budget="20%", device="cpu", max_new_tokens=2)
    report = inspect(stores["sekv"], question=QUESTION, options=options, progress=Silent())
    assert {z.step for z in report.zoom} == {0, 1}
    assert look(stores["sekv"]).zoom == ()


def _change(trace: Any, path: list[Any], value: Any) -> str:
    copy = json.loads(trace.read_text(encoding="utf-8").splitlines()[-1])
    at = copy
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return json.dumps(copy)


WRONG_TRACES = [
    (["weights"], "00", "of another store: its sources or model"),
    (["sources"], ["00"], "of another store: its sources or model"),
    (["zoom", 0, "span"], 10**6, "of another store: it names spans"),
    (["zoom", 0, "span"], -1, "of another store: it names spans"),
    (["zoom", 0, "span"], "one", "is not a trace"),
    (["zoom", 0, "span"], float("inf"), "is not a trace"),
    (["zoom", 0], {}, "is not a trace"),
    (["zoom"], 5, "is not a trace"),
    (["zoom", 0, "weight"], None, "is not a trace"),
    (["zoom", 0, "layer"], 3, "of another store: it names layers or heads"),
    (["zoom", 0, "kv_head"], -1, "of another store: it names layers or heads"),
    (["zoom", 0, "step"], 99, "is not a trace"),
    (["said"], None, "is not a trace"),
    (["moves", 0, "fetched_bytes"], "much", "is not a trace"),
    (["citations", 0], {}, "is not a trace"),
    (["retrieval", 0, "window"], 10**6, "of another store: it names windows"),
    (["retrieval", 0, "lexical"], "much", "is not a trace"),
    (["retrieval", 0], {}, "is not a trace"),
    (["resident"], 5, "is not a trace"),
    (["resident", "sketches"], "much", "is not a trace"),
]


def test_another_trace_is_one_line(
    trace: tuple[Path, list[Any]],
    stores: dict[str, Path],
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    changed = tmp_path / "trace.json"
    for path, value, said in WRONG_TRACES:
        with subtests.test(path=path, value=value):
            changed.write_text(_change(trace[0], path, value), encoding="utf-8")
            with pytest.raises(SekvError, match=said) as caught:
                look(stores["sekv"], trace=changed)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"\n", "Expecting value"),
        (b"nonsense", "Expecting value"),
        (b"[]", "must be integers"),
        (b"3", "not subscriptable"),
        (b'{"zoom": []}', "it has no 'question'"),
        (b"\xff\xfe", "decode"),
        (b"[" * 9999, "recursion"),
    ],
)
def test_what_is_no_trace_is_one_line(
    content: bytes, why: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(SekvError, match=f"is not a trace.*{why}") as caught:
        look(stores["sekv"], trace=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SekvError, match="is not a trace"):
        look(stores["sekv"], trace=tmp_path / "missing.json")


def test_a_trace_of_a_store_of_the_same_text_and_model_is_its_own(
    model: Path, reader: Reader, trace: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    other = read(tmp_path, model, log(2), reader=reader)
    with pytest.raises(SekvError, match="another store"):
        look(other, trace=trace[0])


def test_a_store_without_text_can_still_be_looked_into(
    stores: dict[str, Path],
    trace: tuple[Path, list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Spans, bytes and the decisions of a trace need no words; only the text itself is one line."""
    bare = tmp_path / "bare.sekv"
    shutil.copytree(stores["sekv"], bare)
    rewrite(bare, DOCUMENT, lambda t: [t.pop(name) for name in list(t) if name.startswith("text")])
    assert look(bare).spans == look(stores["sekv"]).spans
    for line in ([], ["--trace", str(trace[0])], ["--html", str(tmp_path / "bare.html")]):
        assert run(["inspect", str(bare), *line]) == 0
    assert "[span 0, tokens 0 to" in (tmp_path / "bare.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert run(["inspect", str(bare), "--text", "0:20"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_a_store_without_text_is_not_asked(stores: dict[str, Path], tmp_path: Path) -> None:
    """Answers quote the text: one clear line instead, before anything is said."""
    bare = tmp_path / "bare.sekv"
    shutil.copytree(stores["sekv"], bare)
    rewrite(bare, DOCUMENT, lambda tensors: tensors.pop("text.1"))
    with pytest.raises(StoreError, match=r"keeps no text of .*b\.txt, .*: ingest again"):
        session(bare)


def test_a_file_that_was_appended_again_shows_both_its_texts(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    """The path says nothing of which; the words at the place do."""
    store = read(tmp_path, model, log(2), reader=reader)
    first = len(inspect(store, options=AskOptions(), progress=Silent()).spans)
    source = tmp_path / "log.txt"
    source.write_text(log(2).upper(), encoding="utf-8")
    append([str(source)], store, IngestOptions(model=str(model)), Silent(), None, reader)
    words = excerpts(store, {0, first})
    assert words[first] == words[0].upper() != words[0]
    for said in (log(2), log(2).upper()):
        cited = Citation(str(source), "", 10, 20, said[10:20], 1.0)
        assert around(store, cited, len(said)) == (said[:10], said[20:])
        report = replace(look(store), question="Who?", citations=(cited,))
        (place,) = page.contents("s", report, [log(2), log(2).upper()])["asked"]["citations"]
        assert place == [int(said.isupper()), 10, 20, ""]
    with pytest.raises(DocumentError, match="made anew"):
        around(store, replace(cited, text="nowhere"), 5)


def test_what_stands_around_a_passage_is_whole_words(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    store = read(tmp_path, model, log(2), reader=reader)
    said, source = log(2), str(tmp_path / "log.txt")
    start = said.index(" ", 60) + 1
    end = said.index(" ", start + 20)
    cited = Citation(source, "", start, end, said[start:end], 1.0)
    for width in range(1, 60):
        before, after = around(store, cited, width)
        assert said[start - len(before) : start] == before
        assert said[end : end + len(after)] == after
        assert max(len(before), len(after)) <= width
        assert set(before.split()) <= set(said.split())
        assert set(after.split()) <= set(said.split())
    assert before
    assert after


# ---------------------------------------------------------------------------- weight


@pytest.mark.parametrize("call", ["inspect", "text"])
def test_looking_without_a_question_needs_no_torch(call: str, stores: dict[str, Path]) -> None:
    """Modules, not milliseconds."""
    store = str(stores["sekv"])
    line = {
        "inspect": "view.inspect(Path(store), options=AskOptions(), progress=Silent())",
        "text": "view.text(Path(store), 0, 0, 40)",
    }[call]
    code = (
        "import sys; from pathlib import Path; from engine.answer import inspect as view;"
        f"from engine.types import AskOptions, Silent; store = {store!r}; {line};"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_what_codes_lost_is_said_span_by_span(stores: dict[str, Path]) -> None:
    """A share of what varies; narrowed to a head it is that head's, and codes without loss lose
    nothing."""
    lossy = [span.error for span in look(stores["sekv"]).spans]
    assert all(0 <= error < 1 for error in lossy)
    assert sum(error > 0 for error in lossy) > len(lossy) / 2
    heads = [
        [span.error for span in look(stores["sekv"], layer=layer, head=head).spans]
        for layer in range(3)
        for head in range(2)
    ]
    assert len({tuple(errors) for errors in heads}) > 1
    means = [sum(errors) / len(errors) for errors in zip(*heads, strict=True)]
    assert lossy == pytest.approx(means, abs=1e-3)
    assert {span.error for span in look(stores["full"]).spans} == {0}
