"""Heads that look at evidence: found, weighed, and kept for the model they are of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import ReaderError
from engine.models import evidence_heads
from engine.models.evidence_heads import FORMAT, LEAST, QUESTIONS, TEXT, EvidenceHeads
from engine.models.reader import Reader
from engine.types import ModelIdentity
from tiny_books import read


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))


def heads(identity: ModelIdentity, share: float = 0.1) -> EvidenceHeads:
    table = [[share] * identity.heads for _ in range(identity.layers)]
    table[1][2] = 0.45
    return EvidenceHeads(identity.id, [identity.weights], table)


def test_every_question_has_one_sentence_of_the_text() -> None:
    """So that a reader of the table can trust what was measured."""
    starts = evidence_heads._starts()
    for _, _, begins in QUESTIONS:
        assert TEXT.count(begins) == 1
        assert TEXT.index(begins) in starts
    assert len({begins for _, _, begins in QUESTIONS}) == len(QUESTIONS)


def test_importance_rises_with_the_share_and_leaves_out_heads_near_chance(
    reader: Reader,
) -> None:
    made = replace(heads(reader.identity), share=[[0.01, 0.05, 0.051, 0.25], [0.45, 0, 0, 0]])
    importance = made.importance()
    assert importance.flatten().tolist() == pytest.approx([0, 0, 0, 0.25, 1, 0, 0, 0])
    assert LEAST > (0.001 / 0.4) ** 2


def test_a_model_whose_heads_all_look_everywhere_has_none(reader: Reader) -> None:
    shape = [[0.02] * reader.identity.heads] * reader.identity.layers
    flat = replace(heads(reader.identity), share=shape)
    path = evidence_heads.cached(reader.identity)
    path.parent.mkdir(parents=True)
    flat.save(path)
    assert evidence_heads.find(reader.identity) == flat
    assert evidence_heads.importance_of(reader.identity) is None


def test_measuring_gives_every_head_a_share_and_spares_the_cache(reader: Reader) -> None:
    made = evidence_heads.measure(reader)
    table = torch.tensor(made.share)
    assert table.shape == (reader.layers, reader.identity.heads)
    assert bool(((table >= 0) & (table <= 1)).all())
    assert float(table.max()) > 0
    assert made == evidence_heads.measure(reader)
    assert evidence_heads.find(reader.identity) is None


def test_what_was_measured_once_is_found_again(reader: Reader) -> None:
    made = evidence_heads.ensure(reader)
    assert evidence_heads.find(reader.identity) == made
    other = replace(reader.identity, weights="0" * 32)
    assert evidence_heads.find(other) is None


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "{}", '{"format": "other"}', f'{{"format": "{FORMAT}", "more": 1}}']
)
def test_a_file_that_is_no_table_counts_as_none(body: str, reader: Reader) -> None:
    path = evidence_heads.cached(reader.identity)
    path.parent.mkdir(parents=True)
    path.write_text(body)
    assert evidence_heads.find(reader.identity) is None


def test_a_table_of_another_shape_counts_as_none(reader: Reader) -> None:
    path = evidence_heads.cached(reader.identity)
    path.parent.mkdir(parents=True)
    replace(heads(reader.identity), share=[[0.5]]).save(path)
    assert evidence_heads.find(reader.identity) is None


def test_a_cache_that_cannot_be_written_is_one_line(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "file"))
    with pytest.raises(ReaderError, match="SEKV_CACHE") as caught:
        evidence_heads.ensure(reader)
    assert "\n" not in str(caught.value)


def test_a_model_s_first_document_finds_its_heads_and_no_other_does(
    reader: Reader, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(tmp_path / "first", model, reader=reader)
    assert evidence_heads.find(reader.identity) is not None
    monkeypatch.setattr(evidence_heads, "measure", None)
    read(tmp_path / "second", model, reader=reader)


def test_a_document_is_read_all_the_same_where_nothing_can_be_kept(
    reader: Reader, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "file"))
    assert read(tmp_path / "book", model, reader=reader).is_dir()


def test_the_default_model_s_table_ships() -> None:
    """30 layers of 9 heads; a few of them look at evidence, and these decide."""
    (path,) = evidence_heads.SHIPPED.glob("smollm2.json")
    body = json.loads(path.read_text())
    assert body["model"] == "smollm2"
    assert all(len(fingerprint) == 32 for fingerprint in body["weights"])
    found = evidence_heads._load(path)
    assert found is not None
    table = found.importance()
    assert table.shape == (30, 9)
    assert 0 < int((table > 0).sum()) < 90
    best = table.flatten().topk(4).indices.tolist()
    assert {(i // 9, i % 9) for i in best} == {(18, 7), (18, 6), (17, 4), (17, 3)}
