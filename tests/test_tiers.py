"""Who lives where: what is fetched, reused, given back, and counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.residency import Host, ResidentSpans
from engine.compression.codecs.base import Records
from tiny_memory import Section

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


def held(zoomed: ResidentSpans) -> list[dict[int, list[int]]]:
    """Per head what is on the device: span -> bytes of its record."""
    return [
        {
            int(span): payload[a:b].tolist()
            for span, a, b in zip(spans, offsets[:-1], offsets[1:], strict=True)
        }
        for spans, offsets, payload in zip(
            zoomed.spans, zoomed.offsets, zoomed.payload, strict=True
        )
    ]


def wanted(*heads: set[int]) -> list[torch.Tensor]:
    return [torch.tensor(sorted(ids), dtype=torch.int64) for ids in heads]


def bytes_of(*heads: set[int]) -> int:
    """What these records and their tables take: an id and an offset each, one offset more."""
    return sum(
        8 + sum(len(record(span, head)) + 16 for span in ids) for head, ids in enumerate(heads)
    )


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


def test_only_what_is_new_is_fetched() -> None:
    made, sections = host()
    zoomed = ResidentSpans(HEADS, CPU)
    zoomed.sync(wanted({0, 2, 5}, {2}, set()), made)
    assert [sorted(section.reads) for section in sections] == [[0, 2], [], [0]]
    for section in sections:
        section.reads.clear()
    zoomed.sync(wanted({0, 5, 6}, {2, 5}, {0}), made)
    # Head 0 needs 6, head 1 needs 5, head 2 needs 0; 0, 2 and 5 of the others are there.
    assert [sorted(section.reads) for section in sections] == [[0], [], [0, 1]]
    assert zoomed.traffic.fetched_spans == 4 + 3
    assert zoomed.traffic.reused_spans == 3
    for section in sections:
        section.reads.clear()
    zoomed.sync(wanted({0}, set(), {0}), made)
    zoomed.sync(wanted({0}, set(), {0}), made)
    assert not any(section.reads for section in sections)
    assert zoomed.traffic.fetched_spans == 4 + 3
    assert zoomed.traffic.reused_spans == 3 + 2 + 2


def test_a_span_that_leaves_gives_its_bytes_back_at_once() -> None:
    """To the byte, and down to nothing."""
    made, _ = host()
    zoomed = ResidentSpans(HEADS, CPU)
    empty = zoomed.nbytes
    assert empty == bytes_of(set(), set(), set())
    steps: list[tuple[set[int], set[int], set[int]]] = [
        ({0, 1, 2}, {3, 4}, {9}),
        ({1, 2}, {3, 4}, {9}),
        ({1, 2, 7}, set(), {9, 0}),
        (set(), set(), {0}),
    ]
    for step in steps:
        zoomed.sync(wanted(*step), made)
        assert zoomed.nbytes == bytes_of(*step)
        real = [*zoomed.spans, *zoomed.offsets, *zoomed.payload]
        assert sum(t.untyped_storage().nbytes() for t in real) == zoomed.nbytes
    zoomed.sync(wanted(set(), set(), set()), made)
    assert zoomed.nbytes == empty


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(*[st.sets(st.integers(0, SPANS - 1))] * HEADS), min_size=1, max_size=6)
)
def test_any_sequence_leaves_exactly_the_last_wish(
    steps: list[tuple[set[int], set[int], set[int]]],
) -> None:
    """Held against a plain dictionary: records, bytes, and traffic that adds up."""
    made, _ = host()
    zoomed = ResidentSpans(HEADS, CPU)
    before: tuple[set[int], ...] = (set(), set(), set())
    for step in steps:
        traffic = (zoomed.traffic.fetched_bytes, zoomed.traffic.fetched_spans)
        zoomed.sync(wanted(*step), made)
        assert held(zoomed) == [
            {span: record(span, head) for span in sorted(ids)} for head, ids in enumerate(step)
        ]
        new = [ids - old for ids, old in zip(step, before, strict=True)]
        read = set().union(*new)
        moved = sum(len(record(span, head)) for span in read for head in range(HEADS))
        assert zoomed.traffic.fetched_bytes - traffic[0] == moved
        assert zoomed.traffic.fetched_spans - traffic[1] == sum(map(len, new))
        assert zoomed.nbytes == bytes_of(*step)
        before = step


def test_damage_is_told_and_nothing_changes() -> None:
    """A record that does not match its checksum stops the step; what was held is still held."""
    from engine.errors import StoreError

    class Broken(Section):
        def read(self, layer: int, spans: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
            raise StoreError("damaged")

    made, sections = host()
    zoomed = ResidentSpans(HEADS, CPU)
    zoomed.sync(wanted({0}, {1}, set()), made)
    before = held(zoomed)
    made._windows[2] = Broken(sections[2].records, HEADS)  # type: ignore[call-overload]
    with pytest.raises(StoreError, match="damaged"):
        zoomed.sync(wanted({0, 9}, {1}, set()), made)
    assert held(zoomed) == before
