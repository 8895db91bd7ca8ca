"""The laboratory: the reference equals itself, an oracle is not beaten, bytes are counted, and the
tables say what the numbers say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from engine.compression.codecs.raw import Raw
from engine.compression.methods import METHODS
from engine.compression.routers.sketch import Sketch
from engine.compression.scores import NEG_INF
from engine.compression.spans import Fixed
from engine.errors import BudgetError, SekvError
from engine.lab.bench import bootstrap, chart
from engine.lab.bench.fidelity import answers, distortion, routing
from engine.lab.bench.fidelity.laboratory import FidelitySetting, measure
from engine.lab.bench.fidelity.report import charts, markdown
from engine.lab.bench.fidelity.subjects import AskedQuestion as RoutingInput
from engine.lab.bench.fidelity.subjects import Subject, side_by_side, take
from engine.lab.bench.questions import Excerpt, Question
from engine.lab.bench.read_once import ReadOnce
from engine.lab.bench.results import save
from engine.models.reader import Reader
from engine.types import Silent
from json_schemas import valid
from tiny_books import log


def asked(text: str, answer: str, evidence: str = "") -> Question:
    return Question("q", "d", text, answer, evidence=evidence)


class Logs:
    """Ship's logs without end, each with three questions; it remembers how many were drawn."""

    drawn = 0

    def __iter__(self) -> Iterator[Excerpt]:
        while True:
            Logs.drawn += 1
            text = log(5 + Logs.drawn % 3)
            yield Excerpt(text, tuple(asked(f"What of day {i}?", "9") for i in range(3)))


class NeverRead:
    """Documents that nobody may ask for: what is wrong is known before the first one."""

    def __iter__(self) -> Iterator[Excerpt]:
        raise AssertionError("a document was drawn")


SETTING = FidelitySetting(
    methods=("full", "sekv", "sekv-paper"),
    budgets=("15%", "60%", "all"),
    questions=5,
    most=3,
    dissected=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def report(model: Path, reader: Reader, folder: Path) -> dict[str, Any]:
    Logs.drawn = 0
    return measure(reader, str(model), Logs(), SETTING, folder, Silent())


def test_the_report_keeps_to_its_schema(report: dict[str, Any]) -> None:
    valid("bench", json.dumps(report))


def test_as_many_questions_are_asked_as_were_ordered(report: dict[str, Any]) -> None:
    """Of every method and budget the same ones; no document more is drawn than needed."""
    assert report["documents"] == 2
    assert report["full"]["questions"] == 5
    for budgets in report["methods"].values():
        assert {line["questions"] for line in budgets.values()} == {5}


def test_the_reference_equals_itself(report: dict[str, Any]) -> None:
    for line in report["methods"]["full"].values():
        assert line["same"] == line["next_token_same"] == 1.0
        assert line["kl_nats"] == pytest.approx(0.0, abs=1e-5)
        assert line["right"] == report["full"]["right"]
        assert line["right_minus_full"] == 0
        assert line["resident"] >= 2.0  # float32 rows of every token, over 16-bit ones


def test_another_method_is_another_row(report: dict[str, Any]) -> None:
    methods = report["methods"]
    assert set(methods) == set(SETTING.methods)
    for budget in ("15%", "60%"):
        rows = [methods[name][budget] for name in SETTING.methods]
        timeless = [{k: v for k, v in row.items() if k != "median_first_token_s"} for row in rows]
        assert timeless[0] != timeless[1] != timeless[2] != timeless[0]
        for name in ("sekv", "sekv-paper"):
            line = methods[name][budget]
            share = float(budget.rstrip("%")) / 100
            assert 0 < line["resident"] <= line["most_resident"] <= share
            assert 0 <= line["same"] <= 1
            low, high = line["same_interval"]
            assert 0 <= low <= line["same"] <= high <= 1
    assert methods["sekv"]["60%"]["same"] >= methods["sekv"]["15%"]["same"]


def test_a_report_says_how_it_was_made(report: dict[str, Any], model: Path) -> None:
    assert json.loads(json.dumps(report))["setting"]["methods"] == list(SETTING.methods)
    assert report["setting"]["coverage"] == SETTING.coverage
    assert report["model"] == str(model)
    assert len(report["weights"]) == 32


def test_everything_zoomed_is_at_least_as_near_as_a_budget(report: dict[str, Any]) -> None:
    """And a store takes fewer bytes than the cache whose answers it keeps."""
    for method in ("sekv", "sekv-paper"):
        lines = report["methods"][method]
        assert lines["all"]["kl_nats"] <= lines["15%"]["kl_nats"]
        assert lines["15%"]["kl_nats"] > 0


def test_no_router_beats_the_oracle_and_more_tokens_find_more(report: dict[str, Any]) -> None:
    assert set(report["routing"]) == set(routing.contenders())
    for line in report["routing"].values():
        found = [line["tokens_picked"][str(p)] for p in routing.SHARES]
        for at in found:
            low, high = at["interval"]
            assert 0 <= at["percentile_5"] <= 1
            assert low - 1e-6 <= at["mean"] <= high + 1e-6
            # The oracle goes by mass; spans of unequal length may fit a little better otherwise.
            assert at["mean"] <= at["oracle"] + 0.02
            assert len(at["heads"]) == 3 * 2
        means = [at["mean"] for at in found]
        assert means == sorted(means)
        assert line["device_bytes"] > 0


def test_side_by_side_fewer_tokens_scored_find_no_more(report: dict[str, Any]) -> None:
    """The dissected windows are one view; every way to look at it takes its bytes of the device."""
    long = report["side_by_side"]
    assert set(long["routing"]) == set(routing.levels())
    every, *firsts = long["routing"].values()
    for line in firsts:
        assert line["device_bytes"] > every["device_bytes"]
        for p in routing.SHARES:
            found, best = (x["tokens_picked"][str(p)]["mean"] for x in (line, every))
            assert 0 <= found <= best + 0.02
        assert found > 0


def test_windows_side_by_side_keep_what_was_asked_of_each() -> None:
    k = torch.randn(2, 6, 4)
    parts = []
    for n, value in ((4, range(1, 3)), (6, range(2, 5)), (5, range(0))):
        asked = RoutingInput([torch.randn(2, 3, 4)], [(k[:, :3], k[:, :3])], value)
        rows = [(k[:, :n], k[:, :n])]
        prefix = [(k[:, :1], k[:, :1])]
        parts.append(Subject(rows, prefix, torch.ones(n), ["a"] * n, [], [asked]))
    long = side_by_side(parts)
    assert len(long.pieces) == len(long.surprisal) == long.rows[0][0].shape[1] == 15
    assert [each.value for each in long.asked] == [range(1, 3), range(6, 9), range(0)]


def test_codecs_stay_at_the_bytes_they_are_given(report: dict[str, Any]) -> None:
    """Side information is the larger part of so short a text; with it the share is still met."""
    losses = report["distortion"]
    assert set(losses) == set(distortion.CODECS)
    for name in ("shared basis, asked", "SVD per span"):
        for share, line in losses[name].items():
            assert line["bytes"] <= float(share) / 100 * 1.15
    rows = losses["plain rows"]
    assert rows["50"]["output"] < rows["25"]["output"] < rows["12.5"]["output"]


def test_the_tables_have_a_row_for_every_method_and_budget(
    report: dict[str, Any], tmp_path: Path
) -> None:
    table = markdown(report)
    save(report, table, tmp_path / "out", charts(report))
    for method in SETTING.methods:
        for budget in SETTING.budgets:
            assert f"\n| {method} | {budget} |" in table
    for name in (*routing.contenders(), *(n for n in report["distortion"] if n)):
        assert f"\n| {name} |" in table
    for block in table.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == table
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report))
    for name in ("answers.svg", "right.svg", "frontier.svg", "routing.svg", "distortion.svg"):
        ElementTree.parse(tmp_path / "out" / name)


@contextmanager
def without_forward(reader: Reader) -> Iterator[None]:
    """The model may not be asked for anything."""

    def refused(*_: Any) -> None:
        raise AssertionError("the model was asked")

    hook = reader.model.base_model.register_forward_pre_hook(refused)
    try:
        yield
    finally:
        hook.remove()


def test_an_interrupted_run_goes_on_where_it_was(
    report: dict[str, Any], folder: Path, tmp_path: Path, model: Path, reader: Reader
) -> None:
    """What is on disk is not asked again, what is not is, and the outcome is the same."""
    whole = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(whole) == 1 + 2 * (1 + 3 * 3)  # the settings, then two documents
    alone = replace(SETTING, dissected=0)

    def again(lines: list[str]) -> dict[str, Any]:
        Logs.drawn = 0
        (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return measure(reader, str(model), Logs(), alone, tmp_path, Silent())

    with without_forward(reader):
        finished = again(whole)
    assert finished["methods"] == report["methods"]
    assert finished["full"] == report["full"]
    resumed = again(whole[:-4])
    for method, budgets in resumed["methods"].items():
        for budget, line in budgets.items():
            before = report["methods"][method][budget]
            assert {**line, "median_first_token_s": 0} == {**before, "median_first_token_s": 0}
    with without_forward(reader), pytest.raises(AssertionError, match="the model was asked"):
        again(whole[:-4])


def test_answers_alone_have_no_tables_of_heads(
    report: dict[str, Any], folder: Path, model: Path, reader: Reader
) -> None:
    Logs.drawn = 0
    alone = replace(SETTING, dissected=0)
    answers_only = measure(reader, str(model), Logs(), alone, folder, Silent())
    assert answers_only["routing"] == {}
    assert answers_only["dissected_documents"] == 0
    assert set(charts(answers_only)) == {"answers.svg", "right.svg", "frontier.svg"}
    assert "| router |" in markdown(report)
    assert "| router |" not in markdown(answers_only)


def test_another_runs_answers_are_not_mixed_in(
    report: dict[str, Any], folder: Path, model: Path, reader: Reader
) -> None:
    other = replace(SETTING, window=64)
    with pytest.raises(SekvError, match="another window"):
        measure(reader, str(model), Logs(), other, folder, Silent())


def test_answers_are_counted_as_same_and_as_right() -> None:
    """Same: word for word the reference's. Right: the words of the answer or an alias are said."""

    def said(answer: str, shift: float = 0.0) -> Any:
        memory = SimpleNamespace(device_kv_bytes=50, zoomed_spans=2, total_spans=8)
        timing = {"first_token_s": 0.5}
        made: Any = SimpleNamespace(answer=answer, memory=memory, timing=timing)
        logits = torch.tensor([[0.0, 1.0 + shift], [2.0, 0.0]])
        return answers.Reply(made, [], [1], logits, resident=40)

    truth = [said("Nine whales"), said("Ten"), said("often"), said("x")]
    mine = [said("Nine whales"), said("The ten  goats!", shift=-2.0), said("Often"), said("y, x")]
    questions = [asked("?", "nine"), asked("?", "Ten Goats"), asked("?", "ten")]
    questions.append(Question("q", "d", "?", "z", aliases=("y",)))
    report: Any = SimpleNamespace(tokens=9, full_kv_bytes=400, store_bytes=20)
    onward = torch.tensor([[0.0, 1.0]])
    both = (answers.Replies(report, said, onward) for said in (mine, truth))
    counted = answers.counted(*both, questions, 4)
    line = answers.line([json.loads(json.dumps(counted))])
    assert (line["questions"], line["same"], line["right"]) == (4, 1 / 4, 3 / 4)
    assert line["right_minus_full"] == 2 / 4  # "Ten" was not all of "Ten Goats", "x" no alias
    assert line["resident"] == line["most_resident"] == 50 / 200
    assert line["store"] == 20 / 200
    assert line["zoomed_spans"] == 0.25
    assert line["median_first_token_s"] == 0.5
    assert line["next_token_same"] == (3 + 1 / 2) / 4
    p = torch.tensor([0.0, 1.0]).softmax(0)
    kl = float((p * (p.log() - torch.tensor([0.0, -1.0]).log_softmax(0))).sum())
    assert line["kl_nats"] == pytest.approx(kl / 2 / 4, rel=1e-5)
    assert (line["onward_same"], line["onward_kl"]) == (1, 0)
    assert "found" not in line  # nobody knows which tokens were held


def test_the_difference_to_the_full_cache_is_taken_question_by_question() -> None:
    """Two methods as right as each other, one of them on the same questions as the full cache: only
    the other's difference is uncertain."""

    def document(right: list[float], full: list[float]) -> dict[str, Any]:
        rest = ("same", "next_token_same", "kl_nats", "resident", "zoomed", "first_token_s")
        ones = {name: [1.0] * len(right) for name in rest}
        return {"right": right, "full_right": full, "store": 0.2, **ones}

    full = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    other = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    alike = answers.line([document(each, each) for each in full])
    apart = answers.line([document(a, b) for a, b in zip(other, full, strict=True)])
    assert alike["right"] == apart["right"] == 0.5
    assert alike["right_minus_full"] == apart["right_minus_full"] == 0
    assert alike["right_minus_full_bootstrap"] == (0, 0)
    low, high = apart["right_minus_full_bootstrap"]
    assert low < 0 < high


def test_the_words_followed_are_the_full_caches_own(
    model: Path, reader: Reader, tmp_path: Path
) -> None:
    """Whatever a memory would say itself, its logits are those given the same words."""
    source = tmp_path / "log.txt"
    source.write_text(log(6), encoding="utf-8")
    asking = answers.Asking(str(model), source, [asked("What of day 2?", "")], most=4)
    ask = partial(answers.asked, reader, asking, "full", ["all"])
    [whole] = ask()
    [own] = whole.questions
    assert own.words == own.logits.argmax(-1).tolist()
    assert len(own.words) == answers.FOLLOWED
    words = list(own.words)
    words[2] += 1
    [other] = ask(replace(whole, questions=[replace(own, words=words)]))
    [reply] = other.questions
    assert reply.words == words
    torch.testing.assert_close(reply.logits[:3], own.logits[:3], atol=1e-4, rtol=1e-4)
    for mine, full in zip(reply.logits[3:], own.logits[3:], strict=True):
        assert not torch.allclose(mine, full, atol=1e-2)


BEHIND = [11, 12, 13, 14]
"""Tokens that follow a document."""


@pytest.fixture(scope="module")
def held(
    model: Path, reader: Reader, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], answers.Replies]:
    """What a method or peer says at a budget, nothing generated, beside the full cache."""
    source = tmp_path_factory.mktemp("held") / "log.txt"
    source.write_text(log(12), encoding="utf-8")
    asking = answers.Asking(str(model), source, [asked("What of day 2?", "")], BEHIND, most=0)
    once = ReadOnce.of(reader, [METHODS["sekv"]])
    [truth] = answers.asked(once, asking, "full", ["all"])

    def said(method: str, budget: str) -> answers.Replies:
        if method == "full":
            return truth
        [replies] = answers.asked(once, asking, method, [budget], truth)
        return replies

    return said


def test_what_follows_in_the_book_is_compared_and_needs_no_answer(
    held: Callable[[str, str], answers.Replies], reader: Reader
) -> None:
    """Its logits are those of the model that reads document and continuation in one go."""
    truth = held("full", "")
    assert truth.questions[0].answer is None
    assert len(truth.onward) == len(BEHIND) - 1
    ids = [*reader.prompt.prefix, *reader.tokenizer.encode(log(12), add_special_tokens=False)]
    with torch.inference_mode():
        plain = reader.model(torch.tensor([[*ids, *BEHIND[:-1]]])).logits[0, -3:]
    torch.testing.assert_close(truth.onward, plain, atol=1e-4, rtol=1e-4)
    line = answers.line([answers.counted(held("sekv", "30%"), truth, [asked("", "")], 4)])
    assert line["onward_kl"] > 0
    assert "right" not in line


def test_attention_found_is_all_of_it_where_every_token_is_held(
    held: Callable[[str, str], answers.Replies],
) -> None:
    assert held("full", "").questions[0].found == pytest.approx(1, abs=1e-6)
    assert held("sekv", "all").questions[0].found == pytest.approx(1, abs=1e-6)
    few, more = (held("sekv", budget).questions[0].found for budget in ("15%", "30%"))
    assert 0 < few < more < 1


def test_a_method_is_compared_with_the_first_one_question_by_question() -> None:
    mine = [{"kl_nats": [0.3, 0.1]}, {"kl_nats": [0.2]}]
    other = [{"kl_nats": [0.1, 0.1]}, {"kl_nats": [0.0]}]
    apart = answers.less(mine, other)
    assert apart["kl_nats"] == pytest.approx(0.4 / 3)
    low, high = apart["kl_nats_bootstrap"]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.2)
    assert "onward_kl" not in apart


# ---------------------------------------------------------------------------- heads


@pytest.fixture(scope="module")
def subject(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    source = tmp_path_factory.mktemp("subject") / "log.txt"
    source.write_text(log(6), encoding="utf-8")
    asked = [reader.prompt.question(reader.tokenizer, f"What of day {i}?") for i in range(2)]
    stated = [("On day 3 the crew\nof ship 8", "ship 8"), ("", "")]
    return take(reader, source, 0, asked, stated)


def test_a_subject_knows_where_the_answer_stands(subject: Subject) -> None:
    first, second = subject.asked
    assert "".join(subject.pieces[i] for i in first.value) == "ship 8"
    assert len(second.value) == 0
    assert len(subject.rows) == len(subject.learnt) == len(first.queries) == 3


def test_queries_and_rows_are_those_of_the_models_own_attention(
    subject: Subject, reader: Reader
) -> None:
    """A subject alone is enough to rebuild attention over prefix, window and own tokens."""
    look = subject.asked[0]
    for layer, (k, v) in enumerate(subject.rows):
        out = distortion._attend(subject, look, layer, k, v)
        parts = [subject.prefix[layer], (k, v), look.live[layer]]
        keys, values = (torch.cat([p[i] for p in parts], 1) for i in (0, 1))
        q = look.queries[layer]
        rows = look.live[layer][0].shape[1]
        scores = q @ keys.mT / q.shape[-1] ** 0.5
        late = torch.ones(rows, rows).triu(1).bool().repeat(q.shape[1] // rows, 1)
        scores[..., -rows:] = scores[..., -rows:].masked_fill(late, NEG_INF)
        torch.testing.assert_close(out, scores.softmax(-1) @ values, atol=1e-4, rtol=1e-4)
    # The subject's moments are of other rows than its questions, but of the same keys' space.
    assert all(one.moment.shape == (2, 16, 16) for one in subject.learnt)


def test_a_router_that_knows_every_key_finds_what_the_oracle_finds(subject: Subject) -> None:
    knowing = replace(METHODS["sekv"], segmenter=Fixed(4), router=Sketch(bits=8.0))
    lab = routing.Routing({"knowing": routing.Contender(knowing, weighted=True)})
    lab.add(subject)
    line = lab.report()["knowing"]
    for at in line["tokens_picked"].values():
        assert at["of_oracle"] == pytest.approx(1.0, abs=0.02)
    assert line["logmass_error_nats"] < 0.2
    assert line["answer_rank"]["questions"] == 1


def test_the_coverage_asked_for_is_the_coverage_there_is(subject: Subject) -> None:
    """What the sketch estimates to be exact is exact: its errors have no bias to speak of."""
    lab = routing.Routing({"sekv": routing.contenders()["method sekv"]})
    lab.add(subject)
    found = lab.report()["sekv"]["coverage"]
    for asked in routing.COVERAGES:
        line = found[str(asked)]
        assert line["estimated"] == pytest.approx(line["true"], abs=0.02)
        assert asked / 100 - 0.05 <= line["least_true"] <= line["true"] <= 1
    assert found["80"]["tokens"] <= found["95"]["tokens"] < 1


def test_a_codec_without_loss_has_no_error(subject: Subject) -> None:
    coded = distortion.code(Raw(), subject, weighted=False)
    assert coded.share == pytest.approx(2.0)  # float32 rows over 16-bit ones
    for true, got in zip(subject.rows, coded.rows, strict=True):
        torch.testing.assert_close(got, true)
    assert float(distortion._output_error(subject, coded).max()) < 1e-6


def test_recall_by_hand() -> None:
    """Two spans of two tokens; the router takes the one that has 30 % of the mass first."""
    look = routing._RankedQuery(
        estimate=torch.tensor([[[0.1, 0.6]]]),
        scores=torch.tensor([[[0.6, 0.1]]]),
        truth=torch.tensor([[[0.3, 0.7]]]),
        bounds=torch.tensor([0, 2, 4]),
    )
    assert look.found(50, "scores").tolist() == pytest.approx([0.3])
    assert look.found(50, "truth").tolist() == pytest.approx([0.7])
    assert look.found(49, "truth").tolist() == [0.0]
    assert look.rank(range(3, 4)).tolist() == [2]
    assert look.rank(range(1, 4)).tolist() == [1]


def test_own_tokens_see_no_later_ones() -> None:
    look = RoutingInput(
        [torch.ones(1, 4, 2)], [(torch.ones(1, 2, 2), torch.ones(1, 2, 2))], range(0)
    )
    hidden = look.live_scores(0) == NEG_INF
    assert hidden.tolist() == [[[False, True], [False, False]] * 2]


# ---------------------------------------------------------------------------- figures


def test_intervals_are_of_documents_and_not_of_questions() -> None:
    """Ten questions that agree within a document tell no more than one."""
    few = [[1.0], [0.0], [1.0], [1.0], [0.0], [1.0]]
    many = [group * 10 for group in few]
    assert bootstrap.interval(many) == bootstrap.interval(few)
    low, high = bootstrap.interval(few)
    assert 0 <= low < 4 / 6 < high <= 1
    assert bootstrap.interval([[0.5], [], [0.5]]) == (0.5, 0.5)


def test_a_chart_is_one_drawing_with_a_line_per_series() -> None:
    drawn = ElementTree.fromstring(
        chart.lines("a < b", "x", "y", {"one": [(2, 0.1), (1, 0.01)], "none": []}, log=True)
    )
    space = "{http://www.w3.org/2000/svg}"
    [line] = drawn.findall(f"{space}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[0][0] < points[1][0]  # in the order of x
    assert points[0][1] > points[1][1]  # larger is higher up
    assert "a < b" in "".join(drawn.itertext())


@pytest.mark.parametrize(
    ("changes", "documents", "kind", "said"),
    [
        ({"methods": ("sekv", "none")}, Logs(), BudgetError, "unknown method 'none'"),
        ({"budgets": ("15%", "much")}, NeverRead(), BudgetError, "budget"),
        ({"coverage": 0.0}, NeverRead(), BudgetError, "coverage"),
        ({}, [], SekvError, "no question has its evidence"),
        ({}, [Excerpt(log(4), ())], SekvError, "no question has its evidence"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    changes: dict[str, Any],
    documents: Any,
    kind: type[SekvError],
    said: str,
    model: Path,
    reader: Reader,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind, match=said):
        measure(reader, str(model), documents, replace(SETTING, **changes), tmp_path, Silent())
