"""The comparison: the full method is the plain model, rows differ, runs go on, claims are held."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.compression import methods as recipes
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.observation import Observe
from engine.compression.params import TrainedLayer
from engine.compression.routers import router_file
from engine.errors import BudgetError, RouterError, SekvError
from engine.lab.bench import claims, page, results
from engine.lab.bench.compare import ComparisonSetting, Run, measure
from engine.lab.bench.log import ANSWERS, Log
from engine.lab.bench.peers import caches
from engine.lab.bench.peers.held import PeerError
from engine.lab.bench.read_once import ReadOnce
from engine.lab.bench.suites.official import Official
from engine.lab.bench.suites.ruler import Library, ManyQuestions, NeedleGrid, Ruler
from engine.lab.bench.suites.types import Ask, Item, Sample, Suite
from engine.models.reader import Reader
from engine.types import Silent
from repository import ROOT
from sekv_cli.main import run
from tiny_books import log, shelf

LIBRARY = Library([line.strip() for line in log(40).splitlines()])
METHODS = ("full", "sekv", "snapkv")
SETTING = ComparisonSetting(METHODS, ("10%", "40%"), most=4)


def suites(folder: Path) -> dict[str, Suite]:
    line = {"context": log(6), "input": "Who?", "answers": ["Ann"]}
    (folder / "hotpotqa.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "passkey.jsonl").write_text(json.dumps({**line, "answer": "7"}) + "\n")
    return {
        "niah": NeedleGrid(LIBRARY, (500,), (0.5,), 1, 1),
        "ruler": Ruler(LIBRARY, (900,), 1, 1, ("vt", "qa_1")),
        "multi": ManyQuestions(LIBRARY, (900,), 1, 1, questions=3),
        "longbench": Official("longbench", folder, 1),
        "infinitebench": Official("infinitebench", folder, 1),
    }


def plain_answer(reader: Reader, model: Path, document: str, question: str, most: int) -> str:
    """The library's own greedy answer to prefix, document and question in one piece."""
    plain = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    )
    prompt, encode = reader.prompt, reader.tokenizer.encode
    ids = [*prompt.prefix, *encode(document, add_special_tokens=False)]
    ids += prompt.question(reader.tokenizer, question)
    tokens = torch.tensor([ids])
    out = plain.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=most, do_sample=False
    )
    said: str = reader.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return said.strip()


@pytest.mark.parametrize("name", ["niah", "ruler", "multi", "longbench", "infinitebench"])
def test_the_full_method_is_the_plain_model_in_every_suite(
    name: str, model: Path, reader: Reader, tmp_path: Path
) -> None:
    suite = suites(tmp_path)[name]
    setting = ComparisonSetting(("full",), (), most=4)
    measure(reader, str(model), suite, setting, tmp_path / "out", Silent())
    written = [
        json.loads(line) for line in (tmp_path / "out" / ANSWERS).read_text().splitlines()[1:]
    ]
    assert len(written) == len(suite.items)
    for item, entry in zip(suite.items, written, strict=True):
        sample = suite.draw(item, lambda text: len(reader.tokenizer.encode(text)))
        for ask, said in zip(sample.asks, entry["answers"], strict=True):
            assert said == plain_answer(reader, model, sample.document, ask.text, 4)


@dataclass(frozen=True)
class Logs:
    """Ship's logs; every answer is right that has a space in it."""

    count: int = 2
    name: str = "logs"

    @property
    def items(self) -> list[Item]:
        return [Item(f"log/{i}", "log", 700 + i, 0.5) for i in range(self.count)]

    def draw(self, item: Item, count: Any) -> Sample:
        asks = tuple(Ask(f"What of day {i}?", (" ",), "all_found", 8) for i in range(2))
        return Sample(log(9 + int(item.key[-1])), asks)


@pytest.fixture(scope="module")
def report(model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    return measure(reader, str(model), Logs(), SETTING, out, Silent())


def test_every_result_has_its_n_its_interval_and_its_bytes(report: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == ["full", "sekv@10%", "sekv@40%", "snapkv@10%", "snapkv@40%"]
    for name, row in rows.items():
        assert row["n"] == 4
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert row["tokens"] > 400
        if name != "full":
            share = float(row["budget"].rstrip("%")) / 100
            assert 0 < row["resident_share"] <= row["most_resident_share"] <= share
            assert row["resident_bytes"] == pytest.approx(
                row["resident_share"] * row["tokens"] * 4 * 3 * 2 * 16, rel=0.05
            )
    assert rows["full"]["resident_share"] >= 2.0  # float32 rows, over 16-bit ones
    assert report["recipes"]["snapkv"]["router"]["kind"] == "Observed"
    assert json.loads(json.dumps(report))["setting"]["budgets"] == ["10%", "40%"]


def test_rows_are_other_rows(report: dict[str, Any]) -> None:
    bytes_ = {row["row"]: row["resident_bytes"] for row in report["rows"]}
    assert len(set(bytes_.values())) == len(bytes_)


def test_a_document_is_read_once_for_all_methods(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And compressing it for one method takes nothing from the next."""
    forwards = []
    before = Reader.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        forwards.append(args[1])  # where it begins
        return before(self, *args, **kwargs)

    monkeypatch.setattr(Reader, "forward", counted)
    measure(reader, str(model), Logs(1), SETTING, tmp_path, Silent())
    # The prefix and the document; what is asked of the document stands behind it.
    begun = [position for position in forwards if position <= len(reader.prompt.prefix)]
    assert begun == [0, len(reader.prompt.prefix)]


def test_chunks_read_once_are_the_chunks(reader: Reader) -> None:
    once = ReadOnce(reader, Observe(8, 4))
    ids = list(range(60))
    for observe in (Observe(), Observe(8, 0), Observe(0, 4), Observe(9, 0)):
        mine = list(once.read_window(ids, once.prefix(), 25, [], observe))
        true = list(reader.read_window(ids, reader.prefix(), 25, [], observe))
        for one, other in zip(mine, true, strict=True):
            assert torch.equal(one.surprisal, other.surprisal)
            assert all(torch.equal(a, b) for a, b in zip(one.k, other.k, strict=True))
            one.k[0] = one.k[0][:, :0]


class Tired(Silent):
    """Stops after so many answers, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int) -> None:
        self.left -= done
        if self.left <= 0:
            raise KeyboardInterrupt


def test_a_file_of_somebody_else_s_is_not_taken_for_a_run(tmp_path: Path) -> None:
    for theirs in (b"my answers\n", b"\xff\xfe\n"):
        (tmp_path / ANSWERS).write_bytes(theirs)
        with pytest.raises(SekvError, match="holds no answers of a run; name a new folder"):
            Log.open(tmp_path, {})
        assert (tmp_path / ANSWERS).read_bytes() == theirs


def test_an_interrupted_run_goes_on_where_it_was(
    model: Path, reader: Reader, tmp_path: Path, report: dict[str, Any]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(reader, str(model), Logs(), SETTING, tmp_path, Tired(3))
    log = tmp_path / ANSWERS
    assert len(log.read_text().splitlines()) == 1 + 3
    with log.open("a") as file:
        file.write('{"key": "half a li')  # killed while writing
    asked = []
    watched = Run._answers

    def counted(*args: Any) -> Any:
        asked.append([row.name for row in args[3]])
        return watched(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_answers", counted)
        again = measure(reader, str(model), Logs(), SETTING, tmp_path, Silent())
    assert asked == [["snapkv@10%", "snapkv@40%"], [row["row"] for row in report["rows"]]]
    mine, true = (
        [{k: v for k, v in row.items() if k != "first_token_s"} for row in r["rows"]]
        for r in (again, report)
    )
    assert mine == true
    with pytest.raises(SekvError, match="another seed"):
        measure(reader, str(model), Logs(), replace(SETTING, seed=5), tmp_path, Silent())


def test_methods_and_peers_can_be_added_to_a_run(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the new ones are asked; of a method that has changed meanwhile nothing is believed."""
    setting = ComparisonSetting(("full", "streaming"), ("10%",), most=2)
    measure(reader, str(model), Logs(1), setting, tmp_path, Silent())
    asked = []
    watched = Run._answers

    def counted(*args: Any) -> Any:
        asked.extend(row.name for row in args[3])
        return watched(*args)

    monkeypatch.setattr(Run, "_answers", counted)
    more = replace(setting, methods=("transformers:reload", "full", "snapkv"))
    made = measure(reader, str(model), Logs(1), more, tmp_path, Silent())
    assert asked == ["transformers:reload", "snapkv@10%"]
    assert [row["row"] for row in made["rows"]] == ["transformers:reload", "full", "snapkv@10%"]
    both = replace(setting, methods=("streaming", "snapkv", "full", "transformers:reload"))
    again = measure(reader, str(model), Logs(1), both, tmp_path, Silent())
    assert len(asked) == 2
    assert len(again["rows"]) == 4
    changed = replace(recipes.METHODS["snapkv"], sinks=9)
    monkeypatch.setitem(recipes.METHODS, "snapkv", changed)
    with pytest.raises(SekvError, match="another snapkv"):
        measure(reader, str(model), Logs(1), both, tmp_path, Silent())


def test_what_failed_is_tried_again(
    model: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = ComparisonSetting(("transformers:reload",), (), most=2)

    def full_disk(*_: Any) -> None:
        raise PeerError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(caches.Reloaded, "hold", full_disk)
        made = measure(reader, str(model), Logs(1), setting, tmp_path, Silent())
        assert made["skipped"][0]["why"] == "no room (1 of 1 documents)"
    made = measure(reader, str(model), Logs(1), setting, tmp_path, Silent())
    assert made["skipped"] == []
    assert len((tmp_path / ANSWERS).read_text().splitlines()) == 1 + 1


@pytest.mark.slow
def test_a_killed_run_goes_on(model: Path, tmp_path: Path) -> None:
    """A real process, SIGKILL after an answer, a peer among the rows: the same command keeps what
    is there and asks the rest once."""
    books, out = shelf(tmp_path / "books"), tmp_path / "out"
    line = ["bench", "--suite", "niah", "--text", str(books), "--model", str(model)]
    line += ["--method", "streaming,transformers:reload", "--budget", "10%", "--length", "300"]
    line += ["--depth", "50", "--samples", "3", "--device", "cpu", "--out", str(out)]
    program = [sys.executable, "-m", "sekv_cli", *line]
    running = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / ANSWERS
    while running.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 2):
        time.sleep(0.02)
    running.kill()
    running.wait()
    before = log.read_text().rpartition("\n")[0].split("\n")
    assert len(before) >= 2
    assert run(line) == 0
    after = log.read_text().splitlines()
    assert after[: len(before)] == before
    rows = [(entry["key"], entry["row"]) for entry in map(json.loads, after[1:])]
    assert len(rows) == len(set(rows)) == 3 * 2


def test_another_router_is_another_row(model: Path, reader: Reader, tmp_path: Path) -> None:
    """NAME@FILE routes by that file; a file that is of no use to a method is said at once."""
    file = tmp_path / "r.safetensors"
    layers = [TrainedLayer(bases=SharedBasis(model="any").made_up_bases(2, 16))] * 3
    router_file.save(file, router_file.Owner.of(reader.identity), layers, None, {"steps": 0})
    learnt = f"sekv@{file}"
    setting = ComparisonSetting(("sekv@none", learnt), ("30%",), most=2)
    made = measure(reader, str(model), Logs(1), setting, tmp_path / "out", Silent())
    assert [row["row"] for row in made["rows"]] == ["sekv@none@30%", f"{learnt}@30%"]
    assert made["recipes"]["sekv@none"]["router"]["kind"] == "Sketch"
    assert made["recipes"][learnt]["codec"]["model"] == router_file.load(file).fingerprint
    stores = [row["store_bytes"] for row in made["rows"]]
    assert stores[0] != stores[1]
    assert claims.check(f"{learnt}@30% >= sekv@none@30% - 1", made).holds
    assert claims.check(f"{learnt}@30%:log >= 0", made).holds
    wrong = replace(setting, methods=(f"snapkv@{file}",))
    with pytest.raises(RouterError, match="holds no router for method 'snapkv'"):
        measure(reader, str(model), Logs(1), wrong, tmp_path / "wrong", Silent())


def test_what_cannot_be_done_is_skipped_with_its_reason(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    """A length beyond the model, a method without its calibration; the table names both."""
    grid = NeedleGrid(LIBRARY, (300, 50_000), (0.5,), 1, 1)
    setting = ComparisonSetting(("full", "compresskv"), ("10%",), most=2)
    made = measure(reader, str(model), grid, setting, tmp_path, Silent())
    assert [row["row"] for row in made["rows"]] == ["full"]
    skipped = {entry["what"]: entry["why"] for entry in made["skipped"]}
    assert "4096 positions" in skipped["50000 tokens"]
    assert "sekv train heads" in skipped["compresskv"]
    table = page.markdown(made)
    assert "| compresskv | skipped: method compresskv needs" in table
    assert "| 50000 tokens | skipped:" in table
    with pytest.raises(BudgetError, match="unknown method 'none'; known: sekv"):
        measure(reader, str(model), grid, ComparisonSetting(("none",), ()), tmp_path, Silent())


def test_a_report_is_a_table_charts_and_one_page(report: dict[str, Any], tmp_path: Path) -> None:
    table, drawn = page.markdown(report), page.charts(report)
    results.save(report, table, tmp_path, {**drawn, "report.html": page.html([(report, drawn)])})
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "table.md", "report.html", "score-over-bytes.svg"} <= names
    assert "heat-sekv@10.svg" in names
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 5
    assert len({line.count("|") for line in lines}) == 1
    whole = (tmp_path / "report.html").read_text()
    assert "http" not in whole.replace("http://www.w3.org/2000/svg", "")
    assert whole.count("<svg") == len(drawn)
    assert all(row["row"].partition("@")[0] in whole for row in report["rows"])
    few = "sekv@10%: 2 documents are too few to say of whom it is ahead."
    assert few in table
    assert few in whole


# ---------------------------------------------------------------------------- claims


def made_up(**scores: list[float]) -> dict[str, Any]:
    rows = [
        {"row": name.replace("_", "@") + "%" * ("_" in name),
         "scores": {f"d{i}": [value] for i, value in enumerate(values)}}
        for name, values in scores.items()
    ]  # fmt: skip
    return {"rows": rows, "tasks": {f"d{i}": "a" if i % 2 else "b" for i in range(40)}}


CLAIMED = made_up(full=[1.0] * 40, sekv_10=[1.0] * 39 + [0.0], snapkv_10=[0.0, 1.0] * 20)


CLAIMS = [
    ("sekv@10% > snapkv@10%", True),
    ("snapkv@10% > sekv@10%", False),
    ("sekv@10% >> snapkv@10%", True),
    ("snapkv@10% << sekv@10%", True),
    ("full >> sekv@10%", False),  # ahead, but not outside the interval
    ("full > sekv@10%", True),
    ("sekv@10% >= full - 0.05", True),
    ("sekv@10% >= full - 0.01", False),
    ("sekv@10% >= 0.9", True),
    ("snapkv@10% < 0.5", False),
    ("snapkv@10%:a >= 1", True),
    ("snapkv@10%:b <= 0", True),
    ("sekv@10% >> 0.5", True),
    ("snapkv@10% >> 0.45", False),
]


def test_claims_are_held_against_the_rows(subtests: pytest.Subtests) -> None:
    for claim, holds in CLAIMS:
        with subtests.test(claim=claim):
            assert claims.check(claim, CLAIMED).holds is holds


def test_a_table_says_of_whom_we_are_not_ahead() -> None:
    """Whole documents are drawn again; a lead within the interval is none."""
    written = made_up(full=[1.0] * 40, sekv_10=[1.0] * 39 + [0.0], snapkv_10=[0.0, 1.0] * 20,
                   dynsplit_10=[1.0] * 38 + [0.0] * 2, sekv_5=[0.0] * 40)  # fmt: skip
    for row in written["rows"]:
        row["method"], _, row["budget"] = row["row"].partition("@")
    (line,) = claims.standing(written)
    assert line.startswith("sekv@10%, outside the interval: ahead of snapkv; not ahead of dynsplit")
    assert "(0.0 to 7.5 points)." in line


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("sekv wins", "no claim such as"),
        ("sekv@99% > full", "no row 'sekv@99%'; they have full, sekv@10%, snapkv@10%"),
        ("sekv@10%:z > full", "no task 'z'"),
    ],
)
def test_a_claim_that_cannot_be_read_is_one_line(claim: str, said: str) -> None:
    with pytest.raises(SekvError, match=said):
        claims.check(claim, CLAIMED)


# ---------------------------------------------------------------------------- the command


def test_the_command_compares_asserts_and_continues(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = shelf(tmp_path / "books")
    line = ["bench", "--suite", "niah", "--text", str(books), "--model", str(model)]
    line += ["--method", "full,streaming", "--budget", "10%", "--length", "300", "--depth", "50"]
    line += ["--samples", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert run([*line, "--json", "--assert", "full >= 0"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in written["rows"]] == ["full", "streaming@10%"]
    assert written["claims"][0]["holds"] is True
    assert run([*line, "--assert", "full > 1", "--assert", "full >= 0"]) == 1
    printed = capsys.readouterr().out
    assert "does not hold: full > 1" in printed
    assert (tmp_path / "out" / "report.html").is_file()


def test_several_suites_are_one_run_with_one_report(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books, out = shelf(tmp_path / "books"), tmp_path / "out"
    line = ["bench", "--suite", "niah,ruler", "--text", str(books), "--model", str(model)]
    line += ["--method", "full,kvpress:none", "--length", "300", "--depth", "50"]
    line += ["--samples", "1", "--task", "niah_single_1", "--device", "cpu", "--out", str(out)]
    assert run(line) == 2
    line[line.index("full,kvpress:none")] = "full,llama.cpp@nowhere.gguf"
    capsys.readouterr()
    assert run([*line, "--assert", "full >= 0"]) == 0
    printed, shown = capsys.readouterr()
    assert printed.index("suite niah") < printed.index("suite ruler")
    assert shown.count("asking") <= 1
    assert {path.name for path in out.iterdir()} == {
        "niah", "ruler", "results.json", "table.md", "report.html",
    }  # fmt: skip
    written = json.loads((out / "results.json").read_text())["suites"]
    for name in ("niah", "ruler"):
        assert written[name] == json.loads((out / name / "results.json").read_text())
        assert written[name]["claims"][0]["holds"] is True
        assert written[name]["skipped"][0]["what"] == "llama.cpp@nowhere.gguf"
        assert f"<h1>Suite {name}</h1>" in (out / "report.html").read_text()
    assert (out / "table.md").read_text().count("llama.cpp@nowhere.gguf | skipped: ") == 2


BAD_LINES = [
    ("--suite niah,none", "unknown suite 'none'; known: qa, fidelity"),
    (
        "--suite niah,fidelity",
        "only qa, niah, ruler, multi, longbench, infinitebench can",
    ),
    ("--suite ,", "unknown suite ','"),
    (
        "--suite efficiency --text docs/sample --method sekv,kvpress:tova",
        "one peer, llama.cpp",
    ),
    ("--suite niah", "name their folder: --text"),
    ("--suite ruler --text docs/sample --task none", "ruler has no task 'none'; known: niah"),
    ("--suite ruler --text docs", "holds no .txt books"),
    ("--suite niah --text nowhere", "there is no folder nowhere"),
    ("--suite niah --text docs/sample --depth deep", "no list of depths"),
    ("--suite longbench", "name their folder: --data"),
    ("--suite longbench --data docs", "get the official files from"),
    ("--suite nonsense", "known: qa"),
]


def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    subtests: pytest.Subtests,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    for line, said in BAD_LINES:
        with subtests.test(line=line):
            assert run(["bench", *line.split()]) == 2
            error = capsys.readouterr().err
            assert said in error
            assert error.count("\n") == 1
