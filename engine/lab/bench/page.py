"""The table, the charts and the page of a comparison, from its report alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.lab.bench import chart, claims, qa_report

CELL, LEFT, TOP, BOTTOM = 44, 70, 40, 40


def markdown(report: dict[str, Any]) -> str:
    """One line per method and budget, one column per task, 95 % intervals in brackets; of natural
    questions what `qa_report` makes."""
    rows = report["rows"]
    if any("by_kind" in row for row in rows):
        return qa_report.markdown(report)
    tasks = list(rows[0]["by_task"]) if rows else []
    shown = tasks if 1 < len(tasks) <= 14 else []
    head = ["method", "budget", "n", "score %", "resident, mean (most) %", "resident KB"]
    head += ["of tokens", "zoom reused %", *shown]
    lines = [
        f"suite {report['suite']}, {report['items']} documents, model {report['model']}, seed "
        f"{report['seed']}",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        cells = [
            row["method"],
            row["budget"] or "all",
            str(row["n"]),
            _percent(row),
            f"{100 * row['resident_share']:.1f} ({100 * row['most_resident_share']:.1f})",
            f"{row['resident_bytes'] / 1000:.0f}",
            f"{row['tokens']:.0f}",
            f"{100 * row['reuse_rate']:.0f}",
            *(f"{100 * row['by_task'][task]['mean']:.0f}" for task in shown),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for entry in report["skipped"]:
        lines.append(f"| {entry['what']} | skipped: {entry['why']} |" + " |" * (len(head) - 2))
    lines += [
        "",
        *claims.standing(report),
        "Scores are means over questions; intervals draw whole documents again. Resident is "
        "everything of the document that lay on the device, over its keys and values in 16 bits; "
        "tokens are those of a document. Reused: of the spans that a step wanted, those that the "
        "step before had brought to the device.",
        *(f"`{name}`: {source}." for name, source in report.get("peers", {}).items()),
    ]
    return "\n".join(lines) + "\n"


def charts(report: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name: score over bytes, first token over length, a heat map per row."""
    rows = report["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    most = [row["budget"] for row in rows if row["budget"]][-1:]
    by_method = {name: [row for row in rows if row["method"] == name] for name in methods}
    made = {
        "score-over-bytes.svg": chart.lines(
            f"{report['suite']}: score over resident bytes",
            "resident bytes, % of keys and values in 16 bits",
            "score %",
            {
                name: [(round(100 * r["resident_share"], 1), 100 * r["mean"]) for r in mine]
                for name, mine in by_method.items()
            },
        ),
        "first-token-over-length.svg": chart.lines(
            f"{report['suite']}: time to the first token over length",
            "tokens of the document",
            "seconds, median",
            {
                row["row"]: [(float(n), s) for n, s in row["first_token_s"].items() if n != "0"]
                for row in rows
                if row["budget"] in ("", *most)
            },
        ),
    }
    for row in rows:
        if row["cells"]:
            name = re.sub(r"[^\w.@+-]", "-", row["row"].replace("%", ""))
            made[f"heat-{name}.svg"] = heat_map(row["row"], row["cells"])
    return made


def heat_map(title: str, cells: Mapping[str, Mapping[str, float]]) -> str:
    """Mean scores by length (across) and depth (down), red to green, the figure in each cell."""
    places = [(float(a), float(b)) for a, b in (key.split("/") for key in cells)]
    lengths, depths = (sorted({place[i] for place in places}) for i in (0, 1))
    width = LEFT + CELL * len(lengths) + 20
    height = TOP + CELL * len(depths) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 200)} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{max(width, 200)}" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    for (length, depth), cell in zip(places, cells.values(), strict=True):
        x, y = LEFT + CELL * lengths.index(length), TOP + CELL * depths.index(depth)
        mean = cell["mean"]
        colour = f"hsl({120 * mean:.0f} 60% 70%)"
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{colour}"/>'
            f'<text x="{x + CELL / 2 - 1}" y="{y + CELL / 2 + 4}" text-anchor="middle">'
            f"{100 * mean:.0f}</text>"
        )
    for row, depth in enumerate(depths):
        middle = TOP + CELL * row + CELL / 2 + 4
        parts.append(
            f'<text x="{LEFT - 6}" y="{middle}" text-anchor="end">{100 * depth:.0f} %</text>'
        )
    for column, length in enumerate(lengths):
        middle = LEFT + CELL * column + CELL / 2
        parts.append(f'<text x="{middle}" y="{height - 22}" text-anchor="middle">{length:g}</text>')
    parts.append(f'<text x="{LEFT}" y="{height - 6}">tokens; left: depth</text>')
    return "\n".join([*parts, "</svg>", ""])


def html(reports: Sequence[tuple[dict[str, Any], Mapping[str, str]]]) -> str:
    """One page that needs nothing else: of each suite the table, the charts, the settings.

    Args:
        reports: of each suite its report and its charts.
    """
    names = ", ".join(str(report["suite"]) for report, _ in reports)
    parts = "".join(_section(report, drawn) for report, drawn in reports)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>sekv bench {escape(names)}</title><style>"
        "body{font-family:sans-serif;margin:2rem;max-width:72rem}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:right}"
        "td:first-child,th:first-child{text-align:left}pre{white-space:pre-wrap}"
        "figure{display:inline-block;margin:.5rem;width:28rem;vertical-align:top}</style>"
        f"{parts}</html>\n"
    )


def _section(report: dict[str, Any], drawn: Mapping[str, str]) -> str:
    text = markdown(report).splitlines()
    rows = [line for line in text if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    head, body = cells[0], cells[2:]
    table = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in body
    )
    notes = "".join(f"<p>{escape(line)}</p>" for line in text if line and line not in rows)
    settings = {
        key: value for key, value in report.items() if key not in ("rows", "tasks", "recipes")
    }
    choices = "".join(
        f"<h3>{escape(name)}</h3><pre>{escape(str(recipe))}</pre>"
        for name, recipe in report["recipes"].items()
    )
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn.values())
    return (
        f"<h1>Suite {escape(report['suite'])}</h1><table><tr>{table}</tr>{lines}</table>{notes}"
        f"<h2>Charts</h2>{figures}<h2>Settings</h2><pre>{escape(str(settings))}</pre>"
        f"<h2>Methods</h2>{choices}"
    )


def _percent(line: Mapping[str, Any]) -> str:
    return f"{100 * line['mean']:.1f} ({100 * line['low']:.1f}-{100 * line['high']:.1f})"
