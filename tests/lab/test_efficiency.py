"""The efficiency benchmark: every contender takes part, bytes are counted, ratios are ratios."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from engine.errors import SekvError
from engine.lab.bench import processes
from engine.lab.bench.budgets import ALL
from engine.lab.bench.efficiency import rounds, windows
from engine.lab.bench.efficiency.asking import programs
from engine.lab.bench.efficiency.rivals import reprefill
from engine.lab.bench.efficiency.rounds import measure
from engine.lab.bench.efficiency.setting import QUESTION, EfficiencySetting
from engine.lab.bench.efficiency.table import LONE, markdown
from engine.lab.bench.llamacpp import KINDS
from engine.lab.bench.peers import caches, gguf
from engine.models.reader import Reader, load_reader
from engine.types import Silent
from json_schemas import valid
from tiny_books import log, session
from tiny_books import report as ingested
from tiny_models import checkpoint

SETTING = EfficiencySetting(
    lengths=(300, 700), budget="30%", budgets=("30%", ALL), rounds=2, window=400, processes=0
)
TEXT = log(16)
POSITIONS = 512
"""Of a model that 700 tokens are too many for."""


@dataclass
class RecordedProgress(Silent):
    done: int = 0
    total: int = 0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.total = total

    def advance(self, done: int) -> None:
        self.done += done


@pytest.fixture(scope="module")
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture(scope="module")
def report(
    model: Path,
    reader: Reader,
    progress: RecordedProgress,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    return measure(reader, str(model), TEXT, SETTING, tmp_path_factory.mktemp("run"), progress)


def test_the_report_keeps_to_its_schema(report: dict[str, Any]) -> None:
    valid("bench", json.dumps(report))


def test_every_contender_is_timed_in_every_round(
    report: dict[str, Any], progress: RecordedProgress
) -> None:
    assert progress.done == progress.total == 6
    assert [row["asked_tokens"] for row in report["lengths"]] == [300, 700]
    for row in report["lengths"]:
        assert row["tokens"] == row["asked_tokens"]
        assert {"prefill", "read", "fold", "write", "reprefill", "open"} <= set(row["all_s"])
        assert {"reload", "reload_cold", "open_cold", "ingest", "token"} <= set(row["all_s"])
        for name, times in row["all_s"].items():
            assert len(times) == SETTING.rounds
            assert all(seconds > 0 for seconds in times)
            assert row["median_s"][name] == statistics.median(times)
    assert [row["windows"] for row in report["lengths"]] == [1, 2]


def test_an_interrupted_run_goes_on_with_the_next_length(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not measured again, and of other settings it is refused."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    setting = replace(SETTING, lengths=(300, 700), rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr(windows, "pace_by_length", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(reader, str(model), TEXT, setting, tmp_path, Silent())
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_one_length", stopped)
        progress = RecordedProgress()
        made = measure(reader, str(model), TEXT, setting, tmp_path, progress)
    assert [row["tokens"] for row in made["lengths"]] == [300, 700]
    assert progress.done == progress.total
    assert set(made["pace_by_length"]) == {"300", "700"}
    with pytest.raises(SekvError, match="another setting"):
        measure(reader, str(model), TEXT, replace(setting, budget="20%"), tmp_path, Silent())


def test_ratios_are_those_of_the_medians(report: dict[str, Any]) -> None:
    for row in report["lengths"]:
        median = row["median_s"]
        assert row["fold_and_write_over_prefill"] == pytest.approx(
            (median["fold"] + median["write"]) / median["prefill"]
        )
        for ratio, over, under in (
            ("reprefill_over_open", "reprefill", "open"),
            ("reload_over_open", "reload", "open"),
            ("cold_reload_over_open", "reload_cold", "open_cold"),
            ("ingest_over_reprefill", "ingest", "reprefill"),
            ("token_over_full", "token", "reload_token"),
        ):
            assert row[ratio] == pytest.approx(median[over] / median[under])
        even, saved = row["break_even_questions"], median["reprefill"] - median["open"]
        assert even is None if saved <= 0 else even == pytest.approx(median["ingest"] / saved)


def test_bytes_are_those_of_a_real_ingest_and_answer(
    report: dict[str, Any], model: Path, reader: Reader, tmp_path: Path
) -> None:
    row = report["lengths"][0]
    made = ingested(tmp_path, model, TEXT[:300], reader=reader, window=400)
    # The manifest tells the path of the source, and nothing else differs.
    assert row["store_bytes"] == pytest.approx(made.store_bytes, abs=400)
    with session(Path(made.store), reader, budget="30%", max_new_tokens=1) as opened:
        resident = opened.ask(QUESTION).memory.device_kv_bytes
    assert row["resident_bytes"] == resident
    cache = 2 * 3 * 2 * 16 * 300 * 2
    assert row["resident_over_16_bit_cache"] == pytest.approx(resident / cache)
    assert row["resident_over_16_bit_cache"] <= 0.3
    assert row["store_over_16_bit_cache"] == pytest.approx(row["store_bytes"] / cache)


def test_the_contender_is_the_plain_full_cache(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks, at the right positions: its last logits are those of one plain forward."""
    seen: list[Any] = []
    forward = type(reader.model).forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append((kwargs["input_ids"], out.logits))
        return out

    monkeypatch.setattr(type(reader.model), "forward", watch)
    text = log(20)
    seconds, cache = reprefill(reader, text)
    assert seconds > 0
    assert len(seen) == 2
    monkeypatch.undo()
    ids = torch.cat([piece for piece, _ in seen], 1)
    prompt = reader.prompt.question(reader.tokenizer, QUESTION)
    assert cache.get_seq_length() == ids.shape[1] - len(prompt)
    assert ids[0].tolist()[-len(prompt) :] == prompt
    assert ids.shape[1] == 1 + len(text) + len(prompt)
    with torch.inference_mode():
        whole = reader.model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(seen[-1][1][0, -1], whole, atol=1e-4, rtol=1e-4)


def test_the_reloaded_cache_answers_as_the_plain_model(reader: Reader, tmp_path: Path) -> None:
    """The rival of R2 and R3: what the file holds is the cache that was read."""
    text = log(20)
    _, cache = reprefill(reader, text)
    assert caches.write(cache, tmp_path / "full.safetensors") > 0
    back = DynamicCache(caches.load(tmp_path / "full.safetensors"))
    prompt = reader.prompt.question(reader.tokenizer, QUESTION)
    ids = [*reader.prompt.prefix, *reader.tokenizer.encode(text, add_special_tokens=False)]
    with torch.inference_mode():
        whole = reader.model(input_ids=torch.tensor([[*ids, *prompt]])).logits[0, -1]
        mine = reader.model(input_ids=torch.tensor([prompt]), past_key_values=back).logits[0, -1]
    torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


def test_what_is_read_and_saved_is_counted(report: dict[str, Any]) -> None:
    for row in report["lengths"]:
        assert 0 < row["first_token_bytes"] < 1.1 * row["store_bytes"]  # a small table twice
        assert row["reload_bytes"] == pytest.approx(row["full_16_bit_bytes"] * 2, rel=0.05)


def test_processes_are_timed_and_their_memory_is_their_own() -> None:
    small = [sys.executable, "-S", "-c", "pass"]
    large = [sys.executable, "-S", "-c", "b = bytearray(90_000_000)"]
    progress = processes.measure({"small": small, "large": large, "again": small}, 2)
    assert list(progress) == ["small", "large", "again"]
    assert all(len(one["all_s"]) == 2 for one in progress.values())
    assert progress["large"]["peak_bytes"] > progress["small"]["peak_bytes"] + 80_000_000
    assert progress["again"]["peak_bytes"] < progress["large"]["peak_bytes"] - 80_000_000
    with pytest.raises(SekvError, match="bad failed with exit code 1: ValueError: no"):
        processes.measure({"bad": [*small[:2], "-c", "raise ValueError('no')"]}, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reader]:
    """A model of few positions: its folder, and loaded."""
    folder = checkpoint(
        "llama", tmp_path_factory.mktemp("small"), max_position_embeddings=POSITIONS
    )
    return folder, load_reader(str(folder), device="cpu")


@pytest.mark.slow
def test_every_program_of_the_suite_runs(small: tuple[Path, Reader], tmp_path: Path) -> None:
    model, reader = small
    setting = replace(SETTING, window=0, rounds=1, processes=1)
    made = measure(reader, str(model), TEXT, setting, tmp_path, Silent())
    short, long = made["lengths"]
    ours = [*programs("", Path(), setting), "ingest"]
    assert list(short["processes"]) == [*ours, "reload"]
    assert list(long["processes"]) == ours
    for row in made["lengths"]:
        assert all(one["wall_s"] > 0 for one in row["processes"].values())
        assert row["processes"]["ask"]["peak_bytes"] > 50_000_000


def test_a_document_longer_than_the_positions_is_read_in_windows_without_rivals(
    small: tuple[Path, Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ingested once: a second run with the same folder takes the store that is there."""
    model, reader = small
    setting = replace(SETTING, window=0, rounds=1, budgets=("30%",))
    made = measure(reader, str(model), TEXT, setting, tmp_path, Silent())
    short, long = made["lengths"]
    assert short["windows"] == 1
    assert long["tokens"] == long["asked_tokens"] == 700
    assert long["windows"] == 2
    assert long["window_tokens"] == POSITIONS - 128
    assert set(long["all_s"]) == {
        "prefill", "read", "fold", "write", "ingest", "reprefill", "open", "open_cold", "token",
        "token@30%",
    }  # fmt: skip
    assert long["median_s"]["reprefill"] == long["median_s"]["prefill"]
    assert long["reload_over_open"] is None
    assert long["resident_over_16_bit_cache"] <= 0.3
    assert [len(one["all_s"]) for one in made["pace_by_length"].values()] == [1, 1]
    table = markdown(made)
    ratio = made["pace_by_length"]["700"]["median_s"]
    ratio /= made["pace_by_length"]["300"]["median_s"]
    assert f"| {ratio:.2f} |" in table
    assert table.count(f"| {LONE} |") >= 5
    (place,) = (tmp_path / "stores").iterdir()
    note = json.loads((place / "read.json").read_text())
    monkeypatch.setattr("engine.lab.bench.efficiency.windows.ingest", None)
    long_alone = replace(setting, lengths=(700,))
    (again,) = measure(reader, str(model), TEXT, long_alone, tmp_path, Silent())["lengths"]
    assert again["median_s"]["prefill"] == note["report"]["timing"]["prefill_s"]
    assert again["store_bytes"] == long["store_bytes"]


@pytest.mark.parametrize("size", [16, 32])
def test_llama_cpp_takes_part_where_it_is_installed(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is saved once, restored and asked in the same rounds, and by a process of its own;
    of the kinds of cache that it has for a head of that size. One run starts our programs too."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    model, file = checkpoint("llama", tmp_path / "model", head_dim=size), tmp_path / "tiny.gguf"
    reader = load_reader(str(model), device="cpu")
    gguf.write(str(model), file)
    setting = replace(SETTING, lengths=(300,), processes=1, peer=f"llama.cpp@{file}", budgets=())
    if size == 32:  # once is enough for our own programs, which load libraries for long
        real, idle = processes.measure, [sys.executable, "-S", "-c", "pass"]
        theirs = lambda all_: {k: p if k.startswith("llama") else idle for k, p in all_.items()}  # noqa: E731
        monkeypatch.setattr(processes, "measure", lambda programs, n: real(theirs(programs), n))
    made = measure(reader, str(model), TEXT, setting, tmp_path, Silent())
    (row,) = made["lengths"]
    once, every = ("reprefill", "save"), ("open", "open_cold", "token")
    bytes_of = row["llama_state_bytes"]
    assert bytes_of["f16"] == pytest.approx(row["full_16_bit_bytes"], rel=0.2)
    kinds = KINDS if size == 32 else KINDS[:1]
    assert [*bytes_of] == [*kinds]
    assert [one["what"] for one in made["skipped"]] == [
        f"llama.cpp:{x}" for x in KINDS[len(kinds) :]
    ]
    assert [*sorted(bytes_of.values(), reverse=True)] == [*bytes_of.values()]
    for kind in kinds:
        runs = {name: len(row["all_s"][f"llama_{kind}_{name}"]) for name in once + every}
        assert runs == dict.fromkeys(once, 1) | dict.fromkeys(every, 2)
        assert kind in str(row["processes"])
    assert f"| R2 | llama.cpp, {kinds[-1]}: state restored / open, files warm |" in markdown(made)


def test_a_missing_peer_is_named(model: Path, reader: Reader, tmp_path: Path) -> None:
    setting = replace(SETTING, lengths=(300,), rounds=1, peer="llama.cpp@nowhere.gguf", budgets=())
    made = measure(reader, str(model), TEXT, setting, tmp_path, Silent())
    assert "`llama.cpp@nowhere.gguf` skipped: " in markdown(made)
    assert "state restored" not in markdown(made)


def test_a_report_says_how_it_was_made(report: dict[str, Any], model: Path) -> None:
    plain = json.loads(json.dumps(report))
    assert plain["model"] == str(model)
    assert plain["setting"]["lengths"] == list(SETTING.lengths)
    assert plain["threads"] == torch.get_num_threads()


def test_the_table_has_a_row_for_every_length(report: dict[str, Any]) -> None:
    lines = markdown(report).splitlines()
    rows = [line for line in lines[: lines.index("300 tokens:")] if line.startswith("| ")]
    assert len(rows) == 1 + 2
    for name in (f"| R{i} |" for i in range(1, 13)):
        assert sum(line.startswith(name) for line in lines) >= 2
    assert len({row.count("|") for row in rows}) == 1
    assert rows[1].startswith("| 300 | 1 |")
    assert rows[2].startswith("| 700 | 2 |")
