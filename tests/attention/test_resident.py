"""Who lives where: what is fetched, reused, given back, and counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.host_records import Host
from engine.attention.resident import Needs, ResidentSpans, Room, row_scores
from engine.attention.view import View
from engine.compression.choose_spans import choose
from engine.compression.code_space import from_basis
from engine.compression.codecs.base import Codec, Records
from engine.compression.codecs.raw import Raw
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.params import needed
from engine.compression.ranges import gather_ranges
from tiny_memory import Section, rows

HEADS = 3
WINDOWS = (4, 1, 5)
SPANS = sum(WINDOWS)
CPU = torch.device("cpu")


def record(span: int, head: int) -> list[int]:
    """The record of a span and head: its length tells who it is, and so does each byte."""
    return [(17 * span + 5 * head + place) % 256 for place in range(1 + (3 * span + head) % 7)]


def host() -> tuple[Host, list[Section]]:
    sections, first = [], 0
    for spans in WINDOWS:
        parts = [record(first + s, h) for s in range(spans) for h in range(HEADS)]
        sizes = torch.tensor([len(part) for part in parts])
        payload = torch.tensor([byte for part in parts for byte in part], dtype=torch.uint8)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        sections.append(Section(Records(payload, offsets), HEADS))
        first += spans
    given_sections: list[Any] = list(sections)
    return Host(0, given_sections, list(WINDOWS), HEADS), sections


def test_sizes_are_those_of_the_records_of_all_windows() -> None:
    made, _ = host()
    assert made.sizes.tolist() == [
        [len(record(span, head)) for span in range(SPANS)] for head in range(HEADS)
    ]


@pytest.mark.parametrize("spans", [[], [0], [4], [3, 4, 5], list(range(SPANS)), [0, 9]])
def test_fetch_reads_the_records_asked_for_and_no_other(spans: list[int]) -> None:
    """All heads of a span together, over the borders of windows."""
    made, sections = host()
    payload, starts = made.fetch(torch.tensor(spans, dtype=torch.int64))
    assert starts.shape == (len(spans), HEADS)
    for place, span in enumerate(spans):
        for head in range(HEADS):
            at, expected = int(starts[place, head]), record(span, head)
            assert payload[at : at + len(expected)].tolist() == expected
    assert len(payload) == sum(len(record(s, h)) for s in spans for h in range(HEADS))
    first, read = 0, []
    for section, count in zip(sections, WINDOWS, strict=True):
        read += [first + span for span in section.reads]
        first += count
    assert read == spans


# ---------------------------------------------------------------------------- slots


SIZE, LENGTHS = 16, (3, 1, 6, 2, 5, 4, 1, 7, 2, 3)
CODECS = {
    "rows": Raw(),
    "codes": SharedBasis(bits=3.0),
    "codes, residuals and rows": SharedBasis(bits=3.0, outlier=1.2, residual=12.0),
    "factors": SpanSVD(),
}


@dataclass
class Layer:
    """Ten spans of three heads in one window, as a codec has them, and slots for them."""

    codec: Codec
    resident: ResidentSpans
    needs: Needs
    host: Host
    section: Section
    true: list[tuple[torch.Tensor, torch.Tensor]]


def slots(name: str, room: float = math.inf) -> Layer:
    codec = CODECS[name]
    k, v = rows(3, HEADS, sum(LENGTHS), SIZE)
    k[:, 4:9] *= 4  # what steps do not reach
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    params = codec.fit(k, v)
    records = codec.encode(k, v, bounds, params)
    section = Section(records, HEADS)
    given_section: Any = section
    made = Host(0, [given_section], [SPANS], HEADS)
    view = View.of(torch.arange(SPANS), bounds, torch.zeros(SPANS, dtype=torch.int64))
    pinned = torch.full((HEADS, 2, SIZE), 0.5), torch.zeros(HEADS, 2, SIZE), torch.tensor([-1, -1])
    resident = ResidentSpans(codec, params, pinned, view)
    needs = Needs.of(codec, made.sizes.long(), view, params, codec.layout(params), pinned[0])
    resident.allocate(needs.most if room == math.inf else needs.fit(room), needs.cost)
    true = []
    for head in range(HEADS):
        size = made.sizes[head].long()
        places = gather_ranges(records.offsets[:-1][head::HEADS], size)
        offsets = torch.cat([size.new_zeros(1), size.cumsum(0)])
        true.append(codec.decode(head, records.payload[places], offsets, bounds.diff(), params))
    return Layer(codec, resident, needs, made, section, true)


def mask(*heads: set[int]) -> torch.Tensor:
    return torch.stack([torch.isin(torch.arange(SPANS), torch.tensor(sorted(h))) for h in heads])


def check(layer: Layer, *heads: set[int]) -> None:
    """Slots hold these spans and nothing else: attention over them is that over their rows."""
    resident = layer.resident
    assert [spans.tolist() for spans in resident.spans] == [sorted(ids) for ids in heads]
    bounds = resident.view.bounds
    q = torch.randn(HEADS, 4, SIZE, generator=torch.Generator().manual_seed(5))
    codes = resident.products()
    pinned = row_scores(q, resident.pinned_k)
    scores = resident.scores(q, pinned, codes)
    weight = scores.softmax(-1)
    out, coefs, total = resident.outputs(weight, codes)
    if coefs is not None:
        out = out + from_basis(coefs, total, needed(resident.params.values))
    for head, ids in enumerate(heads):
        k, v = layer.true[head]
        tokens = [t for s in sorted(ids) for t in range(int(bounds[s]), int(bounds[s + 1]))]
        assert sorted(resident.tokens[head][resident.tokens[head] >= 0].tolist()) == tokens
        whole_k = torch.cat([k[tokens], resident.pinned_k[head]])
        whole_v = torch.cat([v[tokens], resident.pinned_v[head]])
        share = (q[head] @ whole_k.T / math.sqrt(SIZE)).softmax(-1)
        torch.testing.assert_close(out[head], share @ whole_v, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_what_is_coded_how(name: str) -> None:
    """The codecs here do what their names say: else the tests below would show less."""
    cost = slots(name).needs.cost
    assert bool(cost[0].any()) == name.startswith("codes")
    assert bool(cost[1].any()) == (name != "codes")
    assert bool(cost[2].any()) == ("residuals" in name)
    assert torch.equal(cost[:2].sum(0)[0].long(), torch.tensor(LENGTHS))


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(CODECS)),
    steps=st.lists(
        st.tuples(*[st.sets(st.integers(0, SPANS - 1))] * HEADS), min_size=1, max_size=5
    ),
)
def test_any_sequence_leaves_exactly_the_last_wish(
    name: str, steps: list[tuple[set[int], set[int], set[int]]]
) -> None:
    """Rows, reads and traffic held against plain sets; bytes never change."""
    layer = slots(name)
    resident, before = layer.resident, [set(), set(), set()]
    size = resident.nbytes
    for step in steps:
        moved = replace(resident.traffic)
        layer.section.reads.clear()
        resident.sync(mask(*step), layer.host)
        check(layer, *step)
        new = [ids - old for ids, old in zip(step, before, strict=True)]
        assert sorted(layer.section.reads) == sorted(set().union(*new))
        assert resident.traffic.fetched_spans - moved.fetched_spans == sum(map(len, new))
        reused = sum(len(ids & old) for ids, old in zip(step, before, strict=True))
        assert resident.traffic.reused_spans - moved.reused_spans == reused
        assert resident.nbytes == size
        before = list(step)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_set_that_stays_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, unpacked into slots or moved."""
    layer = slots(name)
    resident = layer.resident
    resident.sync(mask({1, 2}, {2}, {5, 7}), layer.host)
    before = (resident.tokens, resident.codes, resident.k)
    monkeypatch.delattr(ResidentSpans, "_expand")
    monkeypatch.delattr(ResidentSpans, "_drop")
    layer.section.reads.clear()
    resident.sync(mask({1, 2}, {2}, {5, 7}), layer.host)
    assert not layer.section.reads
    assert resident.traffic.reused_spans == 5
    after = (resident.tokens, resident.codes, resident.k)
    assert all(a is b for a, b in zip(before, after, strict=True))


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(CODECS)), room=st.integers(0, 40_000))
def test_slots_never_take_more_than_their_room(name: str, room: int) -> None:
    """What is allocated is what is promised, and a set that fits is held whole."""
    layer = slots(name, room)
    needs, resident = layer.needs, layer.resident
    assert resident.nbytes == needs.nbytes(resident.room) <= max(room, 0)
    tensors = (resident.codes, resident.tokens, resident.k, resident.v)
    pinned = 2 * resident.pinned_k.nbytes + 4 * HEADS * resident.pinned
    residuals = 6 * sum(resident.room.residuals)
    allocated = sum(t.untyped_storage().nbytes() for t in tensors)
    assert allocated + residuals - pinned == resident.nbytes
    if room >= needs.nbytes(needs.most):
        assert resident.room == needs.most
    scores = torch.rand(HEADS, SPANS, generator=torch.Generator().manual_seed(room))
    wanted = choose(scores, needs.cost, resident.room.caps(CPU), 0.0)
    resident.sync(wanted, layer.host)
    check(layer, *({int(s) for s in spans} for spans in resident.spans))
    assert sum(len(some.place) for some in resident.residuals) <= sum(resident.room.residuals)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_room_is_used(name: str) -> None:
    """From none to all of it: what is left is less than a slot of each kind, and residuals."""
    needs = slots(name).needs
    whole = needs.nbytes(needs.most)
    assert needs.fit(0.0) == needs.fit(-1e9) == Room(0, 0, (0,) * HEADS)
    assert needs.fit(whole) == needs.fit(1e9) == needs.most
    for room in range(whole // 4, whole, 97):
        left = room - needs.nbytes(needs.fit(room))
        assert 0 <= left <= 0.1 * whole + needs.coded_bytes + needs.exact_bytes


def test_damage_is_told_and_nothing_changes() -> None:
    """A record that does not match its checksum stops the step; what was held is still held."""
    from engine.errors import StoreError

    class Broken(Section):
        def read(self, layer: int, spans: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
            raise StoreError("damaged")

    layer = slots("codes")
    layer.resident.sync(mask({0}, {1}, set()), layer.host)
    layer.host._windows[0] = Broken(layer.section.records, HEADS)  # type: ignore[call-overload]
    with pytest.raises(StoreError, match="damaged"):
        layer.resident.sync(mask({0, 9}, {1}, set()), layer.host)
    check(layer, {0}, {1}, set())
