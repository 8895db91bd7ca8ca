"""Claims about results that a script can check: `sekv@10% > snapkv@10%`.

A claim compares one row of a table with another or with a number. `>`, `>=`, `<`, `<=` compare
means; `>>` and `<<` hold only if the 95 % interval of the difference excludes zero, the
documents being paired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.errors import SekvError
from engine.lab.bench.bootstrap import interval

_SIDE = r"[\w.+-]+(?::[\w-]+)?(?:@[^\s@<>=]+){0,2}(?::[\w-]+)?"
_CLAIM = re.compile(rf"\s*({_SIDE})\s*(>>|<<|>=|<=|>|<)\s*({_SIDE})\s*([+-]\s*[\d.]+)?\s*")
FEW = 5
"""An interval of fewer documents than this means nothing."""

Scores = dict[str, list[float]]
"""The scores of the questions on each document, by its key."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, and the figures in a line."""

    claim: str
    holds: bool
    told: str


def check(claim: str, report: dict[str, Any]) -> Verdict:
    """Hold a claim against a report of `compare`.

    Sides are METHOD[@FILE]@BUDGET[:TASK], `full`, or a number from 0 to 1; the right one may have a
    number added or taken away. In suite qa a measure can stand for the task: `full:same >= 1`.

    Raises:
        SekvError: it cannot be read, or names a row that the report has not.
    """
    match = _CLAIM.fullmatch(claim)
    if match is None:
        raise SekvError(
            f"'{claim}' is no claim such as 'sekv@10% > snapkv@10%' or 'sekv@5% >= full - 0.05'"
        )
    left, sign, right, more = match.groups()
    added = float(more.replace(" ", "")) if more else 0.0
    mine, other = _values(left, report), _values(right, report)
    low_side, high_side = _mean(mine), _mean(other) + added
    if sign in (">>", "<<"):
        groups = paired(mine, other, added)
        if not groups and _NUMBER.fullmatch(right):
            groups = [[a - high_side for a in values] for values in mine.values()]
        low, high = interval(groups)
        holds = low > 0 if sign == ">>" else high < 0
        told = f"{low_side:.3f} {sign} {high_side:.3f}: difference {low:.3f} to {high:.3f}"
        return Verdict(claim, holds, told)
    holds = {
        ">": low_side > high_side,
        ">=": low_side >= high_side,
        "<": low_side < high_side,
        "<=": low_side <= high_side,
    }[sign]
    return Verdict(claim, holds, f"{low_side:.3f} {sign} {high_side:.3f}")


def paired(mine: Scores, other: Scores, added: float = 0.0) -> list[list[float]]:
    """Differences of two rows' scores, document by document, less a number."""
    return [
        [a - b - added for a, b in zip(values, other[key], strict=True)]
        for key, values in mine.items()
        if key in other
    ]


def standing(report: dict[str, Any], method: str = "sekv") -> list[str]:
    """For each budget a line: of which rows of that budget a method is ahead, outside the 95 %
    interval of the difference, and of which it is not. Rows of other budgets are left out."""
    lines = []
    for mine in report["rows"]:
        others = [
            row for row in report["rows"] if row["budget"] == mine["budget"] and row is not mine
        ]
        if mine["method"] != method or not others:
            continue
        if len(mine["scores"]) < FEW:
            lines.append(
                f"{mine['row']}: {len(mine['scores'])} documents are too few to say of whom it is "
                "ahead."
            )
            continue
        ahead, rest = [], []
        for row in others:
            low, high = interval(paired(mine["scores"], row["scores"]))
            difference = f"{row['method']} ({100 * low:.1f} to {100 * high:.1f} points)"
            ahead += [row["method"]] if low > 0 else []
            rest += [difference] if low <= 0 else []
        told = [f"ahead of {', '.join(ahead)}"] if ahead else []
        told += [f"not ahead of {', '.join(rest)}"] if rest else []
        lines.append(f"{mine['row']}, outside the interval: {'; '.join(told)}.")
    return lines


def _values(side: str, report: dict[str, Any]) -> Scores:
    """The scores of each document of a row, or a number under no document's name."""
    if _NUMBER.fullmatch(side):
        return {"": [float(side)]}
    rows = {entry["row"]: entry for entry in report["rows"]}
    row, task = side, ""
    if side not in rows and (asked := re.fullmatch(r"(.+):([\w-]+)", side)):
        row, task = asked.groups()  # names of peers have a colon of their own
    if row not in rows:
        raise SekvError(f"the results have no row '{row}'; they have {', '.join(rows)}")
    tasks, measures = report["tasks"], rows[row].get("measures", {})
    if task in measures and task not in tasks.values():
        measured: Scores = measures[task]
        return measured
    found = {
        key: values for key, values in rows[row]["scores"].items() if not task or tasks[key] == task
    }
    if not found:
        known = [*dict.fromkeys(tasks.values()), *measures]
        raise SekvError(f"row '{row}' has no task '{task}'; it has {', '.join(known)}")
    return found


def _mean(values: Scores) -> float:
    flat = [value for group in values.values() for value in group]
    return sum(flat) / len(flat)
