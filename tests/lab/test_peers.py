"""Peers in our tables: real files, real bytes, the same session, and a row for who is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from engine.answer.session import Session
from engine.errors import BudgetError, ReaderError
from engine.lab.bench import claims, llamacpp, peers
from engine.lab.bench.compare import ComparisonSetting, measure
from engine.lab.bench.log import ANSWERS
from engine.lab.bench.peers import caches, gguf, held, llama, presses
from engine.lab.bench.peers.held import Held, PeerError, allowed_bytes
from engine.lab.bench.suites.types import Ask, Item, Sample
from engine.memory.retrieval import ALL, Retrieval, Retrieved
from engine.models.reader import Reader
from engine.types import Silent
from sekv_cli.main import run
from tiny_books import QUESTION, log, read, session, shelf
from tiny_models import checkpoint

ROW = 3 * 2 * 16 * 2  # numbers of a token: layers, KV heads, head size, keys and values
ABSENT = "no_such_library"


@pytest.fixture(scope="module")
def whole(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the full cache of one window."""
    return read(tmp_path_factory.mktemp("whole"), model, log(12), reader=reader, method="full")


@pytest.fixture(scope="module")
def windowed(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the full cache of several windows."""
    folder = tmp_path_factory.mktemp("windowed")
    return read(folder, model, log(12), reader=reader, method="full", window=400)


def answers(opened: Session) -> list[str]:
    return [opened.ask(question).answer for question in (QUESTION, "Which ship?")]


# ---------------------------------------------------------------------------- the full cache


@pytest.fixture
def everything_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As peers do, our methods see all windows of a document."""

    def choose(self: Retrieval, queries: Any, vote: Any, unread: Any) -> Retrieved:
        return Retrieved(tuple(range(len(self.windows))), ALL)

    monkeypatch.setattr(Retrieval, "choose", choose)


@pytest.mark.usefixtures("everything_seen")
@pytest.mark.parametrize("kind", ["whole", "windowed"])
def test_the_reloaded_cache_is_the_full_one_and_its_bytes_are_the_files(
    kind: str, reader: Reader, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store: Path = request.getfixturevalue(kind)
    with session(store, reader, budget="100%") as opened:
        full, mine = answers(opened), opened.memory.layers
        stored = peers.named("transformers:reload").hold(opened, "", tmp_path)
        tokens = opened.store.manifest.tokens + len(reader.prompt.prefix)
        (file,) = tmp_path.iterdir()
        assert stored == file.stat().st_size
        assert stored == pytest.approx(tokens * ROW * 4, rel=0.02)
        for index, (before, after) in enumerate(zip(mine, opened.memory.layers, strict=True)):
            assert isinstance(after, held.HeldLayer)
            k, v = after.held.rows()
            assert torch.equal(k, before.pinned_k)
            assert torch.equal(v, before.pinned_v)
            assert torch.equal(load_file(file)[f"{index}.k"][0], k)
        assert answers(opened) == full
        resident = opened.ask(QUESTION).memory.device_kv_bytes
        assert resident == tokens * ROW * 4


def test_what_is_held_is_what_is_seen(reader: Reader, whole: Path) -> None:
    """Other rows give another answer, and a hidden row is one that is not there."""
    with session(whole, reader, budget="100%") as opened:
        rows = [(layer.pinned_k, layer.pinned_v) for layer in opened.memory.layers]
        q, live, seen = torch.randn(4, 2, 16), torch.randn(2, 2, 16), torch.ones(2, 2).bool().tril()
        alone = [(k[:, :50], v[:, :50]) for k, v in rows]
        hidden = torch.zeros(rows[0][0].shape[:2], dtype=torch.bool)
        hidden[:, 50:] = True

        def attended(some: list[Any], mask: torch.Tensor | None) -> torch.Tensor:
            held.put(opened, [Held(7, lambda k=k, v=v: (k, v), mask) for k, v in some])  # type: ignore[misc]
            return opened.memory.layers[1].attend(q, live, live, seen)

        assert opened.memory.shared.device_bytes == 3 * opened.memory.layers[0].device_bytes
        full = attended(rows, None)
        torch.testing.assert_close(attended(rows, hidden), attended(alone, None))
        assert not torch.allclose(full, attended(alone, None))
        assert opened.memory.shared.device_bytes == 3 * 7


def test_answers_are_made_of_what_is_held(reader: Reader, whole: Path) -> None:
    """Through the whole session: with a few rows it says something else than with all of them,
    and with all of them what the full cache says."""
    with session(whole, reader, budget="100%") as opened, torch.inference_mode():
        rows = [(layer.pinned_k, layer.pinned_v) for layer in opened.memory.layers]
        prompt = reader.prompt.question(reader.tokenizer, QUESTION)

        def logits() -> torch.Tensor:
            ids = torch.tensor([prompt])
            seen = torch.ones(1, opened.past.length + len(prompt))
            out = reader.model(ids, attention_mask=seen, past_key_values=opened.past.cache())
            return out.logits[0, -1]

        full = logits()

        def read(count: int) -> torch.Tensor:
            some = [(k[:, :count], v[:, :count]) for k, v in rows]
            held.put(opened, [Held.plain(k, v) for k, v in some])
            opened.ask(QUESTION)
            return logits()

        torch.testing.assert_close(read(rows[0][0].shape[1]), full)
        assert float((read(20) - full).abs().max()) > 0.1


# ---------------------------------------------------------------------------- fewer bits


def test_the_eight_bit_cache_takes_eight_bits(reader: Reader, whole: Path, tmp_path: Path) -> None:
    with session(whole, reader, budget="100%") as opened:
        before = opened.memory.layers
        assert peers.named("transformers:fp8").hold(opened, "", tmp_path) == 0
        assert list(tmp_path.iterdir()) == []
        tokens = opened.store.manifest.tokens + len(reader.prompt.prefix)
        resident = opened.ask(QUESTION).memory.device_kv_bytes
        assert tokens * ROW <= resident <= tokens * ROW + 3 * 2 * 8  # and a scale each
        for old, new in zip(before, opened.memory.layers, strict=True):
            assert isinstance(new, held.HeldLayer)
            k, _ = new.held.rows()
            assert not torch.equal(k, old.pinned_k)
            torch.testing.assert_close(k, old.pinned_k, rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
def test_the_four_bit_cache_takes_four_bits(tmp_path: Path) -> None:
    peer = peers.named("transformers:quantized")
    if peer.missing():
        pytest.skip(peer.missing())
    # It codes 64 numbers together, which two heads of 16 do not have for every count of tokens.
    wide = checkpoint("llama", tmp_path / "wide", head_dim=32)
    with session(read(tmp_path, wide, log(12), method="full"), budget="100%") as opened:
        peer.hold(opened, "", tmp_path)
        tokens = opened.store.manifest.tokens + len(opened.reader.prompt.prefix)
        numbers = 2 * tokens * ROW
        resident = opened.ask(QUESTION).memory.device_kv_bytes
        assert numbers / 2 <= resident <= numbers  # and a scale and a zero of every 64


def test_real_bytes_look_into_what_is_packed() -> None:
    packed = (torch.zeros(3, dtype=torch.uint8), {"scale": torch.zeros(2), "axis": 0})
    assert caches.real_bytes([packed, None]) == 3 + 8


# ---------------------------------------------------------------------------- presses


class Keep:
    """The part of a press that shows: keeps the given rows of every head, as kvpress does."""

    def __init__(self, rows: Any, prefix_length: int = -1):
        self.rows, self.prefix_length = rows, prefix_length

    def __call__(self, model: Any) -> Any:
        from contextlib import contextmanager

        def cut(module: Any, _: Any, given: dict[str, Any], __: Any) -> None:
            assert int(given["cache_position"][-1]) + 1 == given["hidden_states"].shape[1]
            layer = given["past_key_values"].layers[module.layer_idx]
            index = self.rows(layer.keys.shape[2])
            layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]

        @contextmanager
        def pressed() -> Any:
            hooks = [
                layer.self_attn.register_forward_hook(cut, with_kwargs=True)
                for layer in model.model.layers
            ]
            yield
            for hook in hooks:
                hook.remove()

        return pressed()


def pressing(make: Any, monkeypatch: pytest.MonkeyPatch, **more: Any) -> presses.Press:
    monkeypatch.setattr(presses, "_library", lambda: None)
    return presses.Press("kvpress:test", lambda _, ratio: make(ratio), "a test", **more)


def test_a_press_sees_the_document_and_no_question(
    reader: Reader, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves of the plain model's cache is held, in 16 bits, within the budget."""
    peer = pressing(lambda r: Keep(lambda n: torch.arange(n)[-int(n * (1 - r)) :]), monkeypatch)
    with session(whole, reader, budget="100%") as opened:
        before = opened.memory.layers
        assert peer.hold(opened, "25%", tmp_path) == 0
        kept = int(0.25 * opened.store.manifest.tokens)
        for old, new in zip(before, opened.memory.layers, strict=True):
            assert isinstance(new, held.HeldLayer)
            k, _ = new.held.rows()
            assert k.shape == (2, kept, 16)
            assert k.dtype == torch.float16
            torch.testing.assert_close(k.float(), old.pinned_k[:, -kept:], atol=2e-3, rtol=2e-3)
        assert opened.ask(QUESTION).memory.device_kv_bytes == kept * ROW * 2
        assert kept * ROW * 2 <= allowed_bytes(opened, "25%")


def test_a_press_that_keeps_too_much_is_asked_for_less(
    reader: Reader, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generous = pressing(
        lambda r: Keep(lambda n: torch.arange(min(n, int(n * (1 - r)) + 30))), monkeypatch
    )
    greedy = pressing(lambda r: Keep(lambda n: torch.arange(n)), monkeypatch)
    with session(whole, reader, budget="100%") as opened:
        generous.hold(opened, "20%", tmp_path)
        assert opened.memory.shared.device_bytes <= 0.2 * opened.store.manifest.tokens * ROW * 2
    with (
        session(whole, reader, budget="100%") as opened,
        pytest.raises(PeerError, match="where the budget is"),
    ):
        greedy.hold(opened, "20%", tmp_path)


@pytest.mark.usefixtures("everything_seen")
def test_of_later_windows_the_prefix_is_not_seen_twice(
    reader: Reader, windowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = pressing(lambda r: Keep(lambda n: torch.arange(n)), monkeypatch, masks=True)
    with session(windowed, reader, budget="100%") as opened:
        full, windows = answers(opened), len(opened.store.manifest.windows)
        before = opened.memory.layers
        everything.hold(opened, "10%", tmp_path)
        assert windows > 1
        for old, new in zip(before, opened.memory.layers, strict=True):
            assert isinstance(new, held.HeldLayer)
            assert new.held.hidden is not None
            prefix = len(reader.prompt.prefix)
            assert new.held.hidden.sum(1).tolist() == [prefix * (windows - 1)] * 2
            k, _ = new.held.rows()
            seen = k[0][~new.held.hidden[0]].float()
            torch.testing.assert_close(seen, old.pinned_k[0], atol=2e-2, rtol=2e-3)
        assert answers(opened) == full


def test_masked_rows_are_hidden_and_still_count(
    reader: Reader, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mask(Keep):
        def __call__(self, model: Any) -> Any:
            for layer in model.model.layers:
                places = (
                    torch.zeros(2, dtype=torch.int64),
                    torch.tensor([0, 1]),
                    torch.tensor([5, 9]),
                )
                layer.self_attn.masked_key_indices = places
            return super().__call__(model)

    peer = pressing(lambda r: Mask(lambda n: torch.arange(n)), monkeypatch, masks=True)
    with session(whole, reader, budget="100%") as opened:
        peer.hold(opened, "10%", tmp_path)
        tokens = opened.store.manifest.tokens + len(reader.prompt.prefix)
        layer = opened.memory.layers[2]
        assert isinstance(layer, held.HeldLayer)
        assert layer.held.hidden is not None
        assert torch.nonzero(layer.held.hidden).tolist() == [[0, 5], [1, 9]]
        assert opened.memory.shared.device_bytes == tokens * (ROW * 2 + 3 * 2)
        assert all(m.self_attn.masked_key_indices is None for m in reader.model.model.layers)


def test_a_library_that_fails_is_one_line(
    reader: Reader, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ratio: float) -> Any:
        raise KeyError("cache_position")

    with session(whole, reader, budget="100%") as opened:
        line = "kvpress:test failed: KeyError: 'cache_position'"
        with pytest.raises(PeerError, match=line):
            pressing(broken, monkeypatch).hold(opened, "10%", tmp_path)


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name.startswith("kvpress:")])
def test_every_press_keeps_its_budget_in_real_bytes(
    name: str, reader: Reader, model: Path, tmp_path: Path
) -> None:
    peer = peers.named(name)
    if peer.missing():
        pytest.skip(peer.missing())
    reader.model.config.name_or_path = str(model)
    store = read(tmp_path, model, log(30), reader=reader, method="full")
    with session(store, reader, budget="100%") as opened:
        peer.hold(opened, "20%", tmp_path)
        share = opened.memory.shared.device_bytes / allowed_bytes(opened, "100%")
        if isinstance(peer, presses.Press) and peer.masks:
            assert share > 1
            assert any(layer.held.hidden is not None for layer in opened.memory.layers)  # type: ignore[attr-defined]
        else:
            assert 0.15 < share <= 0.2
        assert answers(opened)


# ---------------------------------------------------------------------------- llama.cpp


class Plain:
    """The plain model behind the interface of a llama.cpp context."""

    def __init__(self, model: Any):
        self.model, self.n_tokens, self.cache, self.last = model, 0, DynamicCache(), None

    def eval(self, tokens: list[int]) -> None:
        if self.n_tokens < self.cache.get_seq_length():
            self.cache.crop(self.n_tokens - self.cache.get_seq_length())
        out = self.model(input_ids=torch.tensor([tokens]), past_key_values=self.cache)
        self.last = out.logits[0, -1].detach().numpy()
        self.n_tokens += len(tokens)

    def logits(self) -> Any:
        return np.asarray(self.last)


def test_another_engine_answers_in_the_same_session(
    reader: Reader, model: Path, whole: Path
) -> None:
    """Its forward is its own; prompt, greedy decoding and every later question are the same."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    engine = Plain(plain)
    with session(whole, reader, budget="100%") as opened, torch.inference_mode():
        full = answers(opened)
        ids = [*reader.prompt.prefix, *opened.ids.tolist()]
        engine.eval(ids)
        opened.reader = Reader(
            reader.model, reader.tokenizer, reader.identity, reader.prompt, reader.located
        )
        opened.reader.model = llama.Greedy(engine, len(ids), reader.model)
        assert answers(opened) == full
        assert engine.n_tokens > len(ids)


def test_llama_cpp_is_stepped_through_continuations_side_by_side(reader: Reader) -> None:
    """What was read of one is read again where another was read meanwhile, and only then."""
    said: list[list[int]] = []

    class Recorded:
        n_tokens = 40

        def eval(self, tokens: list[int]) -> None:
            said.append([self.n_tokens, *tokens])
            self.n_tokens += len(tokens)

        def logits(self) -> Any:
            return np.arange(5, dtype=np.float32)

    class Cache:
        pass

    model, one, other = llama.Greedy(Recorded(), 40, reader.model), Cache(), Cache()
    for cache, ids in ((one, [1, 2]), (one, [3]), (other, [7]), (one, [4]), (one, [5])):
        logits = model(torch.tensor([ids]), past_key_values=cache).logits
    assert said == [[40, 1, 2], [42, 3], [40, 7], [40, 1, 2, 3, 4], [44, 5]]
    assert logits is not None
    assert logits.tolist() == [[[0.0, 1.0, 2.0, 3.0, 4.0]]]


needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python"
)


@pytest.fixture(scope="module")
def weights(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as GGUF."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    gguf.write(str(model), file)
    return file


@needs_llama
@pytest.mark.parametrize("kind", ["whole", "windowed"])
def test_llama_cpp_answers_from_a_restored_state_as_the_full_cache(
    kind: str, reader: Reader, weights: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Windows of a document stay blind to each other there too; bytes are those of 16 bits."""
    store: Path = request.getfixturevalue(kind)
    with session(store, reader, budget="100%") as opened:
        full = answers(opened)
        stored = peers.named(f"llama.cpp@{weights}").hold(opened, "", tmp_path)
        assert answers(opened) == full
        tokens = opened.store.manifest.tokens + len(reader.prompt.prefix)
        resident = opened.ask(QUESTION).memory.device_kv_bytes
        assert resident == pytest.approx(tokens * ROW * 2, rel=0.1)
        (file,) = tmp_path.iterdir()
        assert stored == file.stat().st_size >= resident


@needs_llama
def test_the_weights_of_another_model_are_refused(
    reader: Reader, whole: Path, tmp_path: Path
) -> None:
    other, file = checkpoint("llama", tmp_path / "other", vocab_size=300), tmp_path / "other.gguf"
    gguf.write(str(other), file)
    with session(whole, reader, budget="100%") as opened:
        with pytest.raises(PeerError, match="300 tokens and the reader 261: it is another model"):
            peers.named(f"llama.cpp@{file}").hold(opened, "", tmp_path)
        file.write_bytes(b"GGUF and no more")
        with pytest.raises(PeerError, match=r"llama\.cpp cannot read"):
            peers.named(f"llama.cpp@{file}").hold(opened, "", tmp_path)


@needs_llama
def test_a_process_of_its_own_says_the_same_first_token(
    reader: Reader, model: Path, weights: Path, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    document, asked = [7 * i % 250 for i in range(90)], [3, 1, 4, 1, 5]
    state = tmp_path / "state"
    context = llamacpp.Context(llamacpp.LlamaWeights(str(weights)), 200, 1)
    context.eval(document)
    context.save(state, document)
    numbers = [len(document), 1, *asked]
    line = [sys.executable, "-m", "engine.lab.bench.llamacpp", str(weights), str(state), "f16"]
    done = subprocess.run([*line, *map(str, numbers)], capture_output=True, text=True, check=True)
    with torch.inference_mode():
        true = plain(torch.tensor([[*document, *asked]])).logits[0, -1].argmax()
    assert int(done.stdout) == int(true)


def test_what_is_no_plain_llama_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match=r"no plain Llama; .* convert_hf_to_gguf\.py"):
        gguf.write(str(checkpoint("qwen3", tmp_path / "qwen")), tmp_path / "none.gguf")
    assert not (tmp_path / "none.gguf").exists()


def test_llama_cpp_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "find_spec", lambda name: None)
    assert "pip install llama-cpp-python" in peers.named("llama.cpp").missing()
    monkeypatch.setattr(llama, "find_spec", lambda name: True)
    assert "llama.cpp@FILE.gguf" in peers.named("llama.cpp").missing()
    assert "there is no file none.gguf" in peers.named("llama.cpp@none.gguf").missing()
    file = tmp_path / "here.gguf"
    file.touch()
    assert peers.named(f"llama.cpp@{file}").missing() == ""
    for name in (f"llama.cpp@{file}", f"llama.cpp:q4_0@{file}"):
        assert peers.named(name).name == name
    with pytest.raises(BudgetError, match=r"unknown peer 'llama\.cpp:q3@.*llama\.cpp:q8_0"):
        peers.named(f"llama.cpp:q3@{file}")


# ---------------------------------------------------------------------------- rows


class Logs:
    """Ship's logs with two questions each."""

    name = "logs"
    items = (Item("log/0", "log", 500, 0.5), Item("log/1", "log", 560, 0.5))

    def draw(self, item: Item, count: Any) -> Sample:
        asks = tuple(Ask(f"What of day {i}?", (" ",), "all_found", 8) for i in range(2))
        return Sample(log(9 + int(item.key[-1])), asks)


def test_a_peer_is_a_row_and_a_missing_one_is_named(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presses, "find_spec", lambda name: None)
    methods = ("full", "transformers:reload", "transformers:fp8", "kvpress:snapkv")
    setting = ComparisonSetting(methods, ("10%",), most=4)
    report = measure(reader, str(model), Logs(), setting, tmp_path, Silent())
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == ["full", "transformers:reload", "transformers:fp8"]
    assert rows["full"]["scores"] == rows["transformers:reload"]["scores"]
    more = rows["full"]["resident_bytes"] - rows["transformers:reload"]["resident_bytes"]
    rows_held = rows["full"]["resident_bytes"] / (3 * 2 * 2 * 16 * 4)
    assert 0 <= more <= 3 * 2 * 4 * rows_held  # the document token of every row
    assert rows["transformers:fp8"]["store_bytes"] == 0
    assert rows["transformers:fp8"]["resident_share"] < 0.27 * rows["full"]["resident_share"]
    (skipped,) = report["skipped"]
    assert skipped["what"] == "kvpress:snapkv"
    assert "needs kvpress, which is not installed: pip install" in skipped["why"]
    written = [json.loads(line) for line in (tmp_path / ANSWERS).read_text().splitlines()[1:]]
    said = {(entry["key"], entry["row"]): entry["answers"] for entry in written}
    for item in Logs.items:
        assert said[item.key, "full"] == said[item.key, "transformers:reload"]
    assert claims.check("transformers:fp8 >= transformers:reload - 1", report).holds
    assert claims.check("transformers:reload:log >= full", report).holds


def test_a_peer_that_fails_on_a_document_is_named_with_its_reason(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(ratio: float) -> Any:
        raise ValueError("no hyperplane")

    peer = pressing(broken, monkeypatch)
    monkeypatch.setitem(peers.PEERS, "kvpress:test", peer)
    monkeypatch.setattr(presses, "find_spec", lambda name: True)
    setting = ComparisonSetting(("kvpress:test",), ("10%",), most=2)
    report = measure(reader, str(model), Logs(), setting, tmp_path, Silent())
    assert report["rows"] == []
    (skipped,) = report["skipped"]
    assert skipped["what"] == "kvpress:test@10%"
    assert "ValueError: no hyperplane (2 of 2 documents)" in skipped["why"]


def test_names_of_families_stand_for_their_members() -> None:
    every = peers.expand(["sekv", "peers"])
    assert every == ("sekv", *(name for name in peers.PEERS if not name.startswith("trial:")))
    assert peers.expand(["transformers", "sekv"]) == (
        "transformers:plain", "transformers:reload", "transformers:quantized",
        "transformers:quantized-2", "transformers:fp8", "sekv",
    )  # fmt: skip
    assert len(peers.expand(["kvpress"])) == len(presses.PRESSES) == 9
    assert peers.expand(["llama.cpp@x.gguf"]) == ("llama.cpp@x.gguf",)
    with pytest.raises(BudgetError, match="unknown peer 'kvpress:none'; known: transformers:plain"):
        peers.named("kvpress:none")


def test_the_engine_never_imports_peers() -> None:
    root = Path(held.__file__).parents[2]
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "bench.peers" in path.read_text() or "bench import peers" in path.read_text()
    }
    assert {user for user in users if not user.startswith("bench/")} == set()


def test_the_command_names_who_is_missing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = shelf(tmp_path / "books")
    line = ["bench", "--suite", "niah", "--text", str(books), "--model", str(model)]
    line += ["--budget", "20%", "--length", "300", "--depth", "50", "--samples", "1"]
    line += ["--device", "cpu", "--out", str(tmp_path / "out")]
    asked = "full,transformers:reload,llama.cpp@nowhere.gguf"
    assert run([*line, "--method", asked]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp@nowhere.gguf" in printed
    assert "transformers:reload" in printed
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["row"] for row in written["rows"]] == ["full", "transformers:reload"]
    why = written["skipped"][0]["why"]
    known = importlib.util.find_spec("llama_cpp") is not None
    assert ("there is no file" in why) if known else ("needs llama-cpp-python" in why)
    assert run([*line, "--method", "kvpress:none"]) == 2
    assert "unknown peer 'kvpress:none'; known:" in capsys.readouterr().err
