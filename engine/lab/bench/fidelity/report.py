"""What the fidelity suite found, for people: tables in Markdown and charts in SVG."""

from __future__ import annotations

from typing import Any

from engine.lab.bench import chart


def markdown(report: dict[str, Any]) -> str:
    """The report as tables, those of heads only where any were looked at; shares in per cent, 95 %
    intervals in brackets."""
    heads = (_routing, _side_by_side, _coverage, _distortion)
    parts = (_answers, *(heads if report["dissected_documents"] else ()))
    return "\n".join(line for part in parts for line in [*part(report), ""])


def charts(report: dict[str, Any]) -> dict[str, str]:
    """SVG documents by file name."""
    budgets = {
        method: {_number(b): line for b, line in lines.items() if _number(b) > 0}
        for method, lines in report["methods"].items()
    }
    routing, distortion = report["routing"], report["distortion"]
    drawn = {
        f"{name}.svg": chart.lines(
            title,
            "budget, % of 16-bit keys and values",
            up,
            {
                method: [(b, 100 * line[what]) for b, line in lines.items()]
                for method, lines in budgets.items()
            },
        )
        for name, what, title, up in (
            ("answers", "same", "Answers equal to the full cache's", "same answers, %"),
            ("right", "right_minus_full", "Right values, less the full cache's", "points"),
        )
        if all(what in line for lines in budgets.values() for line in lines.values())
    }
    drawn["frontier.svg"] = chart.lines(
        "How far the next token's distribution moved",
        "resident bytes, % of 16-bit keys and values",
        "KL, nats",
        {
            method: sorted((100 * line["resident"], line["kl_nats"]) for line in lines.values())
            for method, lines in report["methods"].items()
            if lines
        },
        log=True,
    )
    if not report["dissected_documents"]:
        return drawn
    return drawn | {
        "routing.svg": chart.lines(
            "True attention mass in the spans picked",
            "% of tokens picked",
            "mass found, % of an oracle's",
            {
                name: [(float(p), 100 * at["of_oracle"]) for p, at in line["tokens_picked"].items()]
                for name, line in routing.items()
            },
        ),
        "distortion.svg": chart.lines(
            "Relative error of the attention output",
            "% of 16-bit bytes, side information counted",
            "relative error",
            {
                name: [(float(share), line["output"]) for share, line in lines.items()]
                for name, lines in distortion.items()
            },
            log=True,
        ),
    }


def _number(budget: str) -> float:
    """The number a budget starts with, 0 if it has none."""
    digits = budget.strip().rstrip("%")
    return float(digits) if digits.replace(".", "", 1).isdigit() else 0.0


def _share(line: dict[str, Any], name: str) -> str:
    if name not in line:
        return "-"
    low, high = line[f"{name}_bootstrap"]
    return f"{100 * line[name]:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _difference(line: dict[str, Any]) -> str:
    if "right_minus_full" not in line:
        return "-"
    low, high = line["right_minus_full_bootstrap"]
    return f"{100 * line['right_minus_full']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _nats(line: dict[str, Any], name: str, *, signed: bool = False) -> str:
    if name not in line:
        return "-"
    low, high = line[f"{name}_bootstrap"]
    sign, to = ("+", " to ") if signed else ("", "-")
    return f"{line[name]:{sign}.4f} ({low:{sign}.4f}{to}{high:{sign}.4f})"


COLUMNS = (
    "method",
    "budget",
    "resident, mean (max) %",
    "store %",
    "KL, nats",
    "KL less the first method's",
    "next token the same %",
    "KL onward in the book",
    "the same onward %",
    "attention found %",
    "same answer %",
    "right value %",
    "right less full's, points",
)


def _answers(report: dict[str, Any]) -> list[str]:
    full = report["full"]
    lines = [
        f"{full['questions']} questions, {report['documents']} documents of about "
        f"{report['tokens_per_document']} tokens, model {report['model']}; intervals: bootstrap "
        "over documents, of differences question by question",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        f"| full | - | 100 | - | 0 | - | 100 | 0 | 100 | 100 | 100 | {_share(full, 'right')} | 0 |",
    ]
    for method, budgets in report["methods"].items():
        for budget, line in budgets.items():
            cells = (
                method,
                budget,
                f"{100 * line['resident']:.1f} ({100 * line['most_resident']:.1f})",
                f"{100 * line['store']:.1f}" if ":" not in method else "-",
                _nats(line, "kl_nats"),
                _nats(line.get("above_first", {}), "kl_nats", signed=True),
                _share(line, "next_token_same"),
                _nats(line, "onward_kl"),
                _share(line, "onward_same"),
                _share(line, "found"),
                _share(line, "same"),
                _share(line, "right"),
                _difference(line),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Skipped: {row}: {why}." for row, why in report["skipped"].items())]
    return lines


def _routing(report: dict[str, Any]) -> list[str]:
    return [
        f"Routing, {report['dissected_documents']} documents: true attention mass in the spans "
        "picked, mean (5th percentile over questions and heads), % of what an oracle finds; rank "
        "of the answer's span for the head that ranks it best",
        "",
        *_found(report["routing"]),
    ]


def _side_by_side(report: dict[str, Any]) -> list[str]:
    long = report["side_by_side"]
    return [
        f"The same windows side by side, {long['tokens']} tokens: every token scored, and spans "
        "first, then the tokens of the best spans alone",
        "",
        *_found(long["routing"]),
    ]


def _found(routing: dict[str, Any]) -> list[str]:
    shares = list(next(iter(routing.values()))["tokens_picked"]) if routing else []
    lines = [
        "| router | device bytes % | "
        + " | ".join(f"{p} % of tokens" for p in shares)
        + " | error of log-mass, nats | answer first for a head % (median rank) |",
        "|---|---|" + "---|" * (len(shares) + 2),
    ]
    for name, line in routing.items():
        cells = [
            f"{100 * at['mean']:.1f} ({100 * at['percentile_5']:.0f}), {100 * at['of_oracle']:.1f}"
            for at in line["tokens_picked"].values()
        ]
        rank = line.get("answer_rank")
        seen = (
            f"{100 * rank['first_by_some_head']:.0f} ({rank['best_head_median']:.0f})"
            if rank
            else "-"
        )
        lines.append(
            f"| {name} | {100 * line['device_bytes']:.1f} | "
            + " | ".join(cells)
            + f" | {line['logmass_error_nats']:.2f} | {seen} |"
        )
    return lines


def _coverage(report: dict[str, Any]) -> list[str]:
    lines = [
        "Coverage without a budget: what share of a question's attention is exact when so much of "
        "every row's is asked for, in % as the router estimates it and in truth",
        "",
        "| router | asked | estimated | true | true, least row of a head | tokens zoomed |",
        "|---|---|---|---|---|---|",
    ]
    for name, line in report["routing"].items():
        for asked, found in line["coverage"].items():
            cells = " | ".join(f"{100 * x:.1f}" for x in found.values())
            lines.append(f"| {name} | {asked} | {cells} |")
    return lines


def _distortion(report: dict[str, Any]) -> list[str]:
    lines = [
        "Codecs at equal bytes, side information counted: relative errors of keys, of values and "
        "of the attention output of real questions",
        "",
        "| codec | asked % | bytes % | keys | values | output |",
        "|---|---|---|---|---|---|",
    ]
    for name, shares in report["distortion"].items():
        for share, line in shares.items():
            low, high = line["output_interval"]
            lines.append(
                f"| {name} | {share} | {100 * line['bytes']:.1f} | {line['k']:.3f} "
                f"| {line['v']:.3f} | {line['output']:.4f} ({low:.4f}-{high:.4f}) |"
            )
    if report["unturned"]:
        lines += ["", f"Not compared: {report['unturned']}."]
    return lines
