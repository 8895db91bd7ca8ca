"""Copies that begin before a layer computes, and steps that never wait for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.attention import copies
from engine.attention.copies import Copies, InPlace, OnStream
from engine.attention.layer import LayerMemory
from engine.attention.shares import Limits
from engine.compression.methods import METHODS
from tiny_memory import NO_LIMIT, fixed_spans, layers, rows

HEADS, KV_HEADS, SIZE, TOKENS, LAYERS = 4, 2, 16, 96, 3
CPU = torch.device("cpu")

WAITS = {
    torch.ops.aten._local_scalar_dense.default,  # item, tolist, int, float, bool
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.repeat_interleave.Tensor,  # how long its result is depends on numbers
}


class NeverWaiting(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        picks = func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default
        if func in WAITS or (picks and any(_is_mask(index) for index in args[1])):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


@dataclass
class Recorder:
    """Notes when copies begin and when they are used."""

    seen: list[str] = field(default_factory=list)

    def begin(self, payload: Tensor) -> Callable[[], Tensor]:
        number = self.seen.count("begun")
        self.seen.append("begun")

        def there() -> Tensor:
            self.seen.append(f"used {number}")
            return payload

        return there


def memory_of(limits: Limits, made_with: Copies, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Layers of the default method."""
    monkeypatch.setattr("engine.attention.shared.InPlace", lambda: made_with)
    parts = [[rows(seed, KV_HEADS, TOKENS, SIZE)] for seed in range(LAYERS)]
    made = layers(parts, [fixed_spans(TOKENS, 6)], recipe=METHODS["sekv"], limits=limits)
    made[0].shared.estimates = False
    return made


def shrink(made: list[LayerMemory]) -> None:
    """Allow no layer to hold all its spans."""
    for layer in made:
        least, most = layer.fixed_bytes, layer.most_bytes
        layer.limits = Limits(least + 0.4 * (most - least), 1.0)


def ask(made: list[LayerMemory], seed: int, queries: int, seen: list[str]) -> None:
    """One forward of random queries through all layers; seen: notes when each has attended."""
    noise = torch.Generator().manual_seed(seed)
    q = 3 * torch.randn(LAYERS, HEADS, queries, SIZE, generator=noise)
    live = torch.randn(2, KV_HEADS, 4, SIZE, generator=noise)
    for number, layer in enumerate(made):
        layer.attend(q[number], live[0], live[1], None)
        seen.append(f"attended {number}")


def test_what_is_known_to_be_wanted_is_on_its_way_while_the_layer_before_attends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once for a question, and where all is held nothing more comes for the next one."""
    recorder = Recorder()
    made = memory_of(NO_LIMIT, recorder, monkeypatch)
    seen = recorder.seen
    ask(made, 0, 3, seen)
    assert seen == [
        *("begun", "used 0", "begun", "attended 0"),
        *("used 1", "begun", "attended 1"),
        *("used 2", "attended 2"),
    ]
    for seed in range(1, 4):
        seen.clear()
        if seed == 3:
            for layer in made:
                layer.release()
        ask(made, seed, 1, seen)
        assert seen == [f"attended {number}" for number in range(LAYERS)]
    assert all(layer.zoomed.holds_all for layer in made)


def test_what_is_to_be_chosen_waits_for_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    made = memory_of(NO_LIMIT, recorder, monkeypatch)
    shrink(made)
    seen = recorder.seen
    ask(made, 0, 3, seen)
    assert [what for what in seen if what != "begun"] == [
        *("used 0", "attended 0", "used 1", "attended 1", "used 2", "attended 2")
    ]
    assert seen.index("attended 0") < len(seen) - 1 - seen[::-1].index("begun")


def test_a_copy_that_is_begun_is_not_used_in_other_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the room changes between, the layer fetches anew what its slots then lack."""
    recorder = Recorder()
    made = memory_of(NO_LIMIT, recorder, monkeypatch)
    made[0].attend(torch.ones(HEADS, 1, SIZE), *torch.ones(2, KV_HEADS, 4, SIZE), None)
    shrink(made)
    made[1].attend(torch.ones(HEADS, 1, SIZE), *torch.ones(2, KV_HEADS, 4, SIZE), None)
    assert not made[1].zoomed.holds_all
    assert made[1].zoomed.held.any()
    assert "used 1" not in recorder.seen


def test_a_step_never_waits_for_the_device_where_all_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph could hold it: nothing is read back, and no size depends on a number."""
    made = memory_of(NO_LIMIT, InPlace(), monkeypatch)
    ask(made, 0, 3, [])
    with NeverWaiting():
        ask(made, 1, 1, [])


def test_a_step_that_chooses_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the test above would notice."""
    made = memory_of(NO_LIMIT, InPlace(), monkeypatch)
    shrink(made)
    ask(made, 0, 3, [])
    with pytest.raises(AssertionError, match="waits"), NeverWaiting():
        ask(made, 1, 1, [])


def test_the_stream_of_the_model_waits_where_a_copy_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    payload = torch.arange(3)

    class Event:
        def record(self, stream: Stream) -> None:
            calls.append(f"{stream.name}: done")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Event) -> None:
            calls.append(f"{self.name}: wait")

    class Bytes:
        def to(self, device: torch.device, *, non_blocking: bool) -> Bytes:
            calls.append(f"copy, the host {'goes on' if non_blocking else 'waits'}")
            return self

        def record_stream(self, stream: Stream) -> None:
            calls.append(f"kept for {stream.name}")

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        calls.append(f"into {stream.name}")
        yield
        calls.append(f"out of {stream.name}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("model"))
    given: Any = Bytes()
    there = OnStream(torch.device("cuda", 0)).begin(given)
    assert calls == [
        *("into copies", "copy, the host goes on", "copies: done", "out of copies"),
    ]
    calls.clear()
    assert there() is given
    assert calls == ["model: wait", "kept for model"]
    assert copies.InPlace().begin(payload)() is payload
