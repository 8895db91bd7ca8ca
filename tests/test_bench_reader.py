"""The reader's benchmark: windows and batches change nothing, and counting is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_models
from engine.bench.decode import DOCUMENT, VALUE, Decoder, cut
from engine.bench.reader import (
    CELLS,
    Cell,
    evaluate_reader,
    interval,
    judge,
    markdown,
)
from engine.errors import ReaderError
from engine.quoting import Guide
from engine.train.reader.episodes import Episodes
from engine.train.reader.export import export
from engine.train.reader.model import Shape
from engine.train.reader.names import syllables
from engine.train.reader.tokenizer import train

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "The harbour of Lorne is run by Ana Silva. She keeps two goats and a boat. "
    "Nobody knows why the light went out that night; the keeper was at home. "
) * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random reader in the shape and with the files of a trained one."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("reader")
    shape = Shape(
        vocabulary=320, width=64, layers=3, hidden=96, heads=4, kv_heads=2, head_dim=16, window=64
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(shape.config())
    for name, weights in model.named_parameters():
        if weights.ndim == 2:  # far from uniform attention, so that a wrong row shows
            torch.nn.init.normal_(weights, std=0.35 if "embed" in name else 0.25)
    export(folder, model.state_dict(), shape, train([TEXT], 320), {})
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder(folder)


QUESTIONS = ["Who runs the harbour of Lorne?", "How many goats?", "Why did the light go out?"]


def test_held_answers_quote_the_document_or_refuse(decoder: Decoder) -> None:
    flat = " ".join(TEXT.split())
    for answer in decoder.answer(decoder.read(TEXT), QUESTIONS, 140):
        pointer, mark, rest = answer.partition(DOCUMENT)
        if not mark:
            assert pointer.strip() == "not stated"
            continue
        quote, _, value = rest.partition(VALUE)
        assert " ".join(quote.split()) in flat
        assert " ".join(pointer.split()) in " ".join(quote.split())
        assert value.strip() in quote


def test_what_is_dictated_is_read_at_once_and_changes_nothing(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose quotes differ in length are read together; cut ones are cut alike."""
    read = decoder.read(TEXT)
    together = [decoder.answer(read, QUESTIONS, most) for most in (140, 20)]
    assert any(DOCUMENT in answer for answer in together[0])
    monkeypatch.setattr(Guide, "dictates", property(lambda guide: False))
    assert together == [decoder.answer(read, QUESTIONS, most) for most in (140, 20)]


def test_one_window_answers_as_generate_does(folder: Path) -> None:
    decoder = Decoder(folder, held=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = decoder.answer(decoder.read(TEXT), QUESTIONS, 12)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        prompt = f"<|endoftext|><|document|>{TEXT}<|question|> {question}<|answer|>"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
        assert text.split("<|end|>")[0] == answer
    assert len(set(answers)) > 1


def test_questions_do_not_meet(decoder: Decoder) -> None:
    """The answer to one question must not depend on the others asked with it."""
    read = decoder.read(TEXT, 64)
    assert read.windows > 4
    together = decoder.answer(read, QUESTIONS, 10)
    assert together == [decoder.answer(read, [one], 10)[0] for one in QUESTIONS]


def test_a_window_as_long_as_the_text_is_the_whole_text(decoder: Decoder) -> None:
    whole, one = decoder.read(TEXT), decoder.read(TEXT, 100_000)
    assert one.windows == 1
    assert whole.start == one.start
    for (k, v), (k2, v2) in zip(whole.layers, one.layers, strict=True):
        assert torch.equal(k, k2)
        assert torch.equal(v, v2)


def test_windows_share_positions_and_never_meet(decoder: Decoder) -> None:
    """Each window's rows are those of the window read alone."""
    read = decoder.read(TEXT, 64)
    first = len(decoder.prefix)
    _, offsets = decoder.encode(TEXT)
    spans = cut(TEXT, offsets, 64)
    assert read.windows == len(spans)
    assert read.start == first + max(b - a for a, b in spans)
    assert read.layers[0][0].shape[1] == first + read.tokens
    for a, b in spans:
        characters = slice(offsets[a][0], offsets[b - 1][1])
        alone = decoder.read(TEXT[characters])
        if alone.tokens != b - a:
            continue  # the tokenizer cut the piece otherwise than the whole
        for (k, _), (k2, _) in zip(read.layers, alone.layers, strict=True):
            torch.testing.assert_close(k[:, first + a : first + b], k2[:, first:])


def test_windows_end_with_sentences_and_hold_everything() -> None:
    text = "One two three. Four five six. Seven eight nine ten."
    offsets = [(i, i + 1) for i in range(len(text))]
    spans = cut(text, offsets, 20)
    assert spans[0] == (0, 14)
    assert [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]]
    assert spans[-1][1] == len(text)
    assert cut("", [], 20) == []


@dataclass(frozen=True)
class _Asked:
    text: str
    quote: str
    value: str


def test_judging() -> None:
    document = "The mayor of Lorne is Ana Silva. It rained."
    right = judge(
        f" Lorne{DOCUMENT} The mayor of\nLorne is Ana Silva.{VALUE} Ana Silva",
        "The mayor of Lorne is Ana Silva.",
        ["Ana Silva"],
        document,
    )
    assert (right.exact, right.contained, right.quoted, right.grounded) == (True,) * 4
    assert not right.refused
    loose = judge(
        f" Ana{DOCUMENT}Ana Silva is mayor.{VALUE} the ana silva.", "x", ["Ana Silva"], document
    )
    assert (loose.exact, loose.contained, loose.quoted, loose.grounded) == (
        True,
        True,
        False,
        False,
    )
    assert not judge(f" A{DOCUMENT}Ana Silva{VALUE} Silva", "x", ["Ana Silva"], document).exact
    refused = judge("not stated", "x", ["Ana Silva"], document)
    assert refused.refused
    assert not refused.contained
    assert judge("not stated", "", [], document).exact
    assert not judge(f" It{DOCUMENT}It rained.{VALUE} rained", "", [], document).exact


def test_intervals() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    low, high = interval(190, 200)
    assert 0.90 < low < 0.95 < high < 0.98
    assert interval(200, 200)[1] == 1.0
    assert interval(0, 50)[0] == 0.0


SMALL = (
    Cell("one", 120, 1, 2, asked=2),
    Cell("windows", 400, 1, 2, whole=False, asked=2, unseen=True),
    Cell("familiar", 120, 1, 1, names="train", asked=1),
    Cell("refusals", 120, 2, unanswerable=1.0, asked=3),
    Cell("prose", 300, 0, kind="natural", asked=3),
    Cell("magic", 200, 3, kind="ruler", asked=3),
)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    books = tmp_path_factory.mktemp("books")
    rng = Random(0)
    prose = "\n\n".join(
        f"Captain {syllables(rng).title()} took the {syllables(rng)} stores to Hut {n} on May {n}. "
        f"The cook, Mr. Brandt, burned soup {n} near the {syllables(rng)}. "
        f"The {syllables(rng)} wind fell, and {n + 20} {syllables(rng)} men slept at the quay."
        for n in range(1, 29)
    )
    (books / "shackleton-south.txt").write_text(prose, encoding="utf-8")
    return books


def test_every_cell_is_measured_kept_and_not_repeated(
    folder: Path, books: Path, tmp_path: Path
) -> None:
    sources = {
        "eval": Episodes(books, "eval", 0),
        "train": Episodes(books, "eval", 0, names="train"),
    }
    results = tmp_path / "results.json"
    said: list[str] = []

    def run(cells: tuple[Cell, ...]) -> dict[str, object]:
        return evaluate_reader(
            folder, sources, results, questions=4, cells=cells, most=8, say=said.append
        )

    run(SMALL[:2])
    report = run(SMALL)
    assert [line.split(":")[0] for line in said] == [cell.name for cell in SMALL]
    assert json.loads(results.read_text()) == report
    cells = report["cells"]
    assert isinstance(cells, dict)
    for cell in SMALL:
        tally = cells[cell.name]
        assert 1 <= tally["questions"] <= 4
        assert tally["stated"] == (0 if cell.unanswerable else tally["questions"])
    assert cells["windows"]["windows"] > cells["windows"]["documents"]
    assert cells["one"]["windows"] == cells["one"]["documents"]
    table = markdown(report)
    assert all(f"| {cell.name} |" in table for cell in SMALL)
    with pytest.raises(ReaderError, match="another seed"):
        evaluate_reader(folder, sources, results, questions=4, seed=1)


def test_questions_of_a_file_are_asked_on_whole_books(
    folder: Path, books: Path, tmp_path: Path
) -> None:
    file = tmp_path / "questions.jsonl"
    lines = [
        {
            "doc": "books/shackleton-south.txt",
            "doc_type": "txt",
            "question": "Who burned soup 3?",
            "answer": "Mr. Brandt",
            "aliases": ["Brandt"],
        },
        {"doc": "pdfs/other.pdf", "doc_type": "pdf", "question": "Who?", "answer": "Nobody"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    report = evaluate_reader(
        folder, {}, tmp_path / "r.json", cells=(), file=file, texts=books, most=8
    )
    (tally,) = report["cells"].values()
    assert tally["questions"] == 1
    assert tally["windows"] > 5
    with pytest.raises(ReaderError, match="not in"):
        evaluate_reader(folder, {}, tmp_path / "s.json", cells=(), file=file, texts=tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.checkpoint("llama", tmp_path / "plain")
    with pytest.raises(ReaderError, match="no look-up reader"):
        Decoder(folder)


def test_cells_have_names_of_their_own() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert {cell.names for cell in CELLS} == {"eval", "train"}


def test_cells_draw_what_they_are_named_for(books: Path) -> None:
    source = Episodes(books, "eval", 0)
    for cell in CELLS:
        if cell.tokens > 4096 or cell.kind == "natural":  # the prose here repeats itself
            continue
        drawn = source.sample(
            cell.tokens,
            rng=Random(1),
            facts=cell.facts,
            same_type=cell.same,
            unseen_wording=cell.unseen,
            questions=cell.asked,
            unanswerable=cell.unanswerable,
            kind=cell.kind,
            groups=cell.groups,
        )
        assert drawn.questions, cell.name
        refusals = [q for q in drawn.questions if not q.quote]
        assert len(refusals) == (len(drawn.questions) if cell.unanswerable else 0)
