"""Scores of answers to natural questions: right words, right passages, right refusals.

Source: exact match and F1 as SQuAD has them (arXiv 1606.05250); refusals of unanswerable questions
as in SQuAD 2.0 (arXiv 1806.03822). docs/questions/README.md says what counts as right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.lab.bench import bootstrap, claims
from engine.lab.bench.peers.plain import PLAIN
from engine.lab.bench.questions import UNANSWERABLE, find
from engine.lab.bench.suites.scores import contains, exact_match, qa_f1

if TYPE_CHECKING:
    from engine.lab.bench.suites.types import Ask
    from engine.types import Answer

ANSWERABLE = "answerable"
"""All kinds but `UNANSWERABLE` together."""

MEASURES = ("contains", "exact", "f1", "evidence_1", "evidence_3", "refused", "same")
CAUGHT = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of unanswerable questions to be caught, for which it is said what that costs."""

Values = dict[str, list[float | None]]
"""One value a question by measure, None where a measure does not apply."""


def measured(said: Sequence[tuple[Ask, Answer]], text: str, *, cites: bool) -> dict[str, Any]:
    """What is kept of each answer on one document, JSON values; nothing of other suites' questions.

    Args:
        text: the document's.  cites: whether passages were cited and support was judged.
    """
    if not all(ask.kind for ask, _ in said):
        return {}
    each = [_measured(ask, answer, text, cites=cites) for ask, answer in said]
    return {
        "questions": [ask.id for ask, _ in said],
        "kinds": [ask.kind for ask, _ in said],
        "measures": {name: [one[name] for one in each] for name in each[0]},
        "support": [answer.support if cites else None for _, answer in said],
        "citations": [[[c.start, c.end] for c in answer.citations] for _, answer in said],
    }


def _measured(ask: Ask, answer: Answer, text: str, *, cites: bool) -> dict[str, float | None]:
    given: dict[str, float | None] = dict.fromkeys(
        ("contains", "exact", "f1", "evidence_1", "evidence_3", "kept")
    )
    given["refused"] = float(not answer.supported) if cites else None
    if not ask.answers:
        return given
    right = contains(answer.answer, ask.answers)
    given["contains"] = right
    given["exact"] = exact_match(answer.answer, ask.answers)
    given["f1"] = qa_f1(answer.answer, ask.answers, ())
    if cites:
        given["kept"] = right * answer.supported
        place = find(text, ask.evidence)
        overlaps = [place and c.start < place[1] and c.end > place[0] for c in answer.citations]
        given["evidence_1"] = float(any(overlaps[:1]))
        given["evidence_3"] = float(any(overlaps[:3]))
    return given


def add(report: dict[str, Any], entries: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """Sum up the measures of the natural questions in a comparison's report, in place.

    Each row gets `by_kind` (kind, measure: n, mean, 95 % interval), `measures` (claims are held
    against them: the values by document, kinds with what they contain among them), and `refusals`.

    Args:
        entries: what was kept of each document, by its key and the row's name.
    """
    for row in report["rows"]:
        mine = {key: entries[key, row["row"]] for key in row["scores"]}
        if not all("measures" in entry for entry in mine.values()):
            continue
        plain = {key: entries.get((key, PLAIN)) for key in mine}
        values = {key: _with_plain(entry, plain[key]) for key, entry in mine.items()}
        row["by_kind"] = _by_kind(mine, values)
        row["measures"] = _for_claims(mine, values)
        row["refusals"] = _refusals(mine)
        row["evidence_3_where_plain_right"] = _summary(
            {
                (entry["task"], key): [
                    hit
                    for hit, right in zip(entry["measures"]["evidence_3"], right_of, strict=True)
                    if hit is not None and right
                ]
                for key, entry in mine.items()
                if (right_of := (plain[key] or {}).get("measures", {}).get("contains"))
            }
        )


def _with_plain(entry: dict[str, Any], plain: dict[str, Any] | None) -> Values:
    """The measures of one document's answers, with whether each is the plain model's."""
    values: Values = dict(entry["measures"])
    if plain is not None and "answers" in plain:
        pairs = zip(entry["answers"], plain["answers"], strict=True)
        values["same"] = [float(mine == other) for mine, other in pairs]
    return values


def _by_kind(
    entries: Mapping[str, dict[str, Any]], values: Mapping[str, Values]
) -> dict[str, dict[str, Any]]:
    kinds = list(dict.fromkeys(kind for entry in entries.values() for kind in entry["kinds"]))
    answerable = [kind for kind in sorted(kinds) if kind != UNANSWERABLE]
    groups = {ANSWERABLE: answerable, **{kind: [kind] for kind in answerable}}
    groups |= {UNANSWERABLE: [UNANSWERABLE]} if UNANSWERABLE in kinds else {}
    return {
        name: {
            measure: found
            for measure in MEASURES
            if (
                found := _summary(
                    {
                        (entry["task"], key): _picked(entry["kinds"], values[key], measure, group)
                        for key, entry in entries.items()
                    }
                )
            )
        }
        for name, group in groups.items()
        if group
    }


def _picked(
    kinds: Sequence[str], values: Values, measure: str, wanted: Sequence[str]
) -> list[float]:
    given = values.get(measure, [])
    pairs = zip(kinds, given, strict=True) if given else ()
    return [value for kind, value in pairs if value is not None and kind in wanted]


def _summary(groups: Mapping[tuple[str, str], list[float]]) -> dict[str, float] | None:
    """n, mean and 95 % interval: Wilson's of a share, else drawn anew by documents, or by excerpts
    where there are few documents.

    Args:
        groups: values by document and key of the excerpt.
    """
    flat = [value for values in groups.values() for value in values]
    if not flat:
        return None
    if all(value in (0.0, 1.0) for value in flat):
        low, high = bootstrap.wilson(round(sum(flat)), len(flat))
    else:
        documents: dict[str, list[float]] = {}
        for (document, _), values in groups.items():
            documents.setdefault(document, []).extend(values)
        few = len(documents) < claims.FEW
        low, high = bootstrap.interval(list((groups if few else documents).values()))
    return {"n": len(flat), "mean": sum(flat) / len(flat), "low": low, "high": high}


def _for_claims(
    entries: Mapping[str, dict[str, Any]], values: Mapping[str, Values]
) -> dict[str, claims.Scores]:
    kinds = dict.fromkeys(kind for entry in entries.values() for kind in entry["kinds"])
    answerable = [kind for kind in kinds if kind != UNANSWERABLE]
    wanted = {
        **{name: (name, answerable) for name in ("contains", "exact", "f1", "kept")},
        "evidence_1": ("evidence_1", answerable),
        "evidence_3": ("evidence_3", answerable),
        "wrongly_refused": ("refused", answerable),
        "caught": ("refused", [UNANSWERABLE]),
        "same": ("same", list(kinds)),
        **{kind: ("contains", [kind]) for kind in answerable},
    }
    found = {
        name: {key: _picked(e["kinds"], values[key], measure, group) for key, e in entries.items()}
        for name, (measure, group) in wanted.items()
    }
    return {name: scores for name, scores in found.items() if any(scores.values())}


def _refusals(entries: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Unanswerable questions caught and what that costs, as asked and at other thresholds.

    right_lost: share of the right answers that were refused. at: for a share of the unanswerable
    ones caught, the support below or at which an answer has to be refused, and that cost.
    None where nobody judged support or all got the same, or there is nothing to catch or to lose.
    """
    each = [
        (kind, right, refused, support)
        for e in entries.values()
        for kind, right, refused, support in zip(
            e["kinds"], e["measures"]["contains"], e["measures"]["refused"], e["support"],
            strict=True,
        )
        if refused is not None
    ]  # fmt: skip
    without = [(refused, support) for kind, _, refused, support in each if kind == UNANSWERABLE]
    right = [(refused, support) for _, hit, refused, support in each if hit]
    if not without or not right or len({support for *_, support in each}) == 1:
        return None
    lowest = sorted(support for _, support in without)
    at = {}
    for share in CAUGHT:
        threshold = lowest[math.ceil(share * len(lowest)) - 1]
        lost = sum(support <= threshold for _, support in right) / len(right)
        at[f"{share:g}"] = {"support": threshold, "right_lost": lost}
    return {
        "caught": sum(refused for refused, _ in without) / len(without),
        "right_lost": sum(refused for refused, _ in right) / len(right),
        "at": at,
    }


def markdown(report: dict[str, Any]) -> str:
    """One line per row and kind of question, then what is said of the rows as a whole."""
    head = ["method", "budget", "questions", "n", "contains %", "exact %", "F1 %"]
    head += ["evidence in 1 %", "in 3 %", "refused %", "same as plain %", "resident %"]
    lines = [
        f"suite {report['suite']}, {report['items']} excerpts or documents, model "
        f"{report['model']}, {report['dtype']}, seed {report['seed']}",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    notes = []
    for row in report["rows"]:
        lines += [_line(row, kind, found) for kind, found in row["by_kind"].items()]
        where = row["evidence_3_where_plain_right"]
        if where:
            notes.append(
                f"{row['row']}: evidence among the first three citations for {_percent(where)} % "
                f"of the {where['n']} questions that the plain model answers rightly."
            )
        if row["refusals"]:
            notes.append(f"{row['row']}: {_cost(row['refusals'])}")
    for entry in report["skipped"]:
        lines.append(f"| {entry['what']} | skipped: {entry['why']} |" + " |" * (len(head) - 2))
    notes += [
        *claims.standing(report),
        "Contains, exact and F1 are of answerable questions; evidence: a citation overlaps the "
        "clause that states the answer; same: word for word the answer of plain transformers to "
        "the same prompt. Intervals of 95 % in brackets: Wilson's, of F1 by drawing documents "
        "anew. Resident: everything of the document on the device over its 16-bit keys and values.",
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(row: Mapping[str, Any], kind: str, found: Mapping[str, Any]) -> str:
    n = max((one["n"] for one in found.values()), default=0)
    cells = [row["method"], row["budget"] or "all", kind, str(n)]
    cells += [_percent(found[name]) if name in found else "-" for name in MEASURES]
    return f"| {' | '.join(cells)} | {100 * row['resident_share']:.1f} |"


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['mean']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"


def _cost(refusals: Mapping[str, Any]) -> str:
    caught, lost = 100 * refusals["caught"], 100 * refusals["right_lost"]
    costs = ", ".join(
        f"{100 * float(share):.0f} % for {100 * one['right_lost']:.0f} %"
        for share, one in refusals["at"].items()
    )
    return (
        f"{caught:.0f} % of the unanswerable questions caught for {lost:.0f} % of the right "
        f"answers; by other thresholds of support {costs}."
    )
