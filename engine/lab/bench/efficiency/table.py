"""The report of the efficiency suite as tables."""

from __future__ import annotations

from typing import Any

LONE = "no windows"
"""In place of a rival's figure for a document that is longer than the model's positions."""


def markdown(report: dict[str, Any]) -> str:
    """The report as tables: all lengths beside each other, then each by itself."""
    lines = [
        f"model {report['model']}, method {report['setting']['method']}, "
        f"{report['setting']['rounds']} rounds, {report['threads']} threads, "
        f"load {report['load']:.1f}",
        "",
        *_overview(report),
        "",
    ]
    lines += [f"`{one['what']}` skipped: {one['why']}" for one in report["skipped"]]
    if any(row["reload_bytes"] is None for row in report["lengths"]):
        lines.append(
            f"Transformers and llama.cpp read one context, of {report['positions']:,} positions "
            f'with this model. For a longer document their columns say "{LONE}", and "re-prefill" '
            "is our own reading of the same windows."
        )
    for row in report["lengths"]:
        lines += ["", f"{row['asked_tokens']} tokens:", "", *_ratios(row), "", *_paces(row)]
    return "\n".join(lines) + "\n"


def _overview(report: dict[str, Any]) -> list[str]:
    """A row for every length."""
    beside = report["pace_by_length"]
    alone = [row for row in report["lengths"] if row["windows"] == 1]
    longest = max((row["asked_tokens"] for row in alone), default=None)
    base = beside.get(str(longest))
    budget = report["setting"]["budget"]
    lines = [
        "| tokens | windows | read, tokens/s | compress / prefill | store MB | / 16-bit cache "
        "| first token, s: open | file cold | new process "
        f"| ms a token, {budget} | / {longest or '-'} tokens "
        "| resident MB | working MB | peak MB: ask | ingest |",
        "|" + "---|" * 15,
    ]
    for row in report["lengths"]:
        s, started = row["median_s"], row["processes"]
        mine = beside.get(str(row["asked_tokens"]))
        cells = [
            f"{row['tokens']}",
            f"{row['windows']}",
            f"{row['prefill_tokens_per_s']:.0f}",
            f"{s['fold'] / s['prefill']:.3f}",
            f"{row['store_bytes'] / 1e6:.1f}",
            f"{row['store_over_16_bit_cache']:.3f}",
            f"{s['open']:.2f}",
            _number(s.get("open_cold"), 2),
            _number(started.get("ask", {}).get("wall_s"), 2),
            _number(mine and 1e3 * mine["median_s"], 1),
            _number(mine and base and mine["median_s"] / base["median_s"], 2),
            f"{row['resident_bytes'] / 1e6:.1f}",
            f"{row['working_bytes'] / 1e6:.1f}",
            _number(started and started["ask"]["peak_bytes"] / 1e6, 0),
            _number(started and started["ingest"]["peak_bytes"] / 1e6, 0),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if value else "-"


def _paces(row: dict[str, Any]) -> list[str]:
    """A token of an answer at every budget, beside the rivals that were there."""
    s = row["median_s"]
    rivals = {
        "full cache, same weights": "reload_token",
        "transformers, float32": "plain_token",
        **{f"llama.cpp, {kind}": f"llama_{kind}_token" for kind in row["llama_state_bytes"]},
    }
    there = {name: s[key] for name, key in rivals.items() if key in s}
    lines = [
        "| a token of an answer | ms | resident MB | working MB |"
        + "".join(f" / {name} |" for name in there),
        "|---|" + "---|" * (3 + len(there)),
    ]
    for budget, held in row["budgets"].items():
        mine = s.get(f"token@{budget}")
        if mine is not None:
            taken = (1e3 * mine, held["resident_bytes"] / 1e6, held["working_bytes"] / 1e6)
            ratios = "".join(f" {mine / other:.2f} |" for other in there.values())
            numbers = " | ".join(f"{number:.1f}" for number in taken)
            lines.append(f"| ours, {budget} | {numbers} |{ratios}")
    empty = " |" * (2 + len(there))
    return lines + [f"| {name} | {1e3 * seconds:.1f} |{empty}" for name, seconds in there.items()]


def _ratios(row: dict[str, Any]) -> list[str]:
    """The twelve ratios of one length, each with what it is a ratio of."""
    s, started = row["median_s"], row["processes"]
    full, lone = row["full_16_bit_bytes"], row["reload_bytes"] is None
    absent = LONE if lone else "not measured"

    def of(over: str, under: str, table: dict[str, float]) -> str:
        if over not in table or under not in table:
            return absent if table else "not measured"
        return f"{table[over] / table[under]:.2f} ({table[over]:.3f} s / {table[under]:.3f} s)"

    def bytes_of(count: float | None) -> str:
        if count is None:
            return absent
        return f"{count / full:.3f} ({count / 1e6:.2f} MB / {full / 1e6:.2f} MB)"

    walls = {name: one["wall_s"] for name, one in started.items()}
    even = row["break_even_questions"]
    cold = ", ".join(f"{name} {of(name, 'nothing', walls)}" for name in ("help", "list", "inspect"))
    peaks = {name: one["peak_bytes"] for name, one in started.items()}
    figures = [
        ("R1", "re-prefill / open, to the first token", of("reprefill", "open", s)),
        ("R2", "full cache reloaded / open, files warm", of("reload", "open", s)),
        ("R2", "the same, files cold", of("reload_cold", "open_cold", s)),
        ("R3", "new process: full cache reloaded / ask", of("reload", "ask", walls)),
        ("R4", "store / 16-bit cache", bytes_of(row["store_bytes"])),
        ("R4", "saved full cache / 16-bit cache", bytes_of(row["reload_bytes"])),
        ("R5", "read before the first token / 16-bit cache", bytes_of(row["first_token_bytes"])),
        ("R6", "resident / 16-bit cache", bytes_of(row["resident_bytes"])),
        ("R7", "ingest / re-prefill", of("ingest", "reprefill", s)),
        ("R8", "a token of an answer: ours / full cache", of("token", "reload_token", s)),
        ("R9", "answers kept at a budget", "suites fidelity, niah, ruler, multi"),
        (
            "R7",
            "ingest / re-prefill of transformers, float32",
            of("ingest", "plain_reprefill", s),
        ),
        ("", "our prefill alone / re-prefill, same weights", of("prefill", "reprefill", s)),
        (
            "",
            "our prefill alone / re-prefill of transformers, float32",
            of("prefill", "plain_reprefill", s),
        ),
        ("", "compressing / our prefill", of("fold", "prefill", s)),
        (
            "",
            "compressing / re-prefill of transformers, float32",
            of("fold", "plain_reprefill", s),
        ),
        (
            "R10",
            "questions until reading once is cheaper",
            "never" if even is None else f"{even:.2f}",
        ),
        ("R11", "new process / one that does nothing", cold if started else "not measured"),
        (
            "R12",
            "peak memory of a process that ingests / 16-bit cache",
            bytes_of(peaks["ingest"]) if started else "not measured",
        ),
        (
            "",
            "peak memory of a process that asks, MB",
            f"{peaks['ask'] / 1e6:.0f}" if started else "not measured",
        ),
        *_llama(row, of, bytes_of),
    ]
    lines = [f"| {name} | {what} | {value} |" for name, what, value in figures]
    return ["| | what | value |", "|---|---|---|", *lines]


def _llama(row: dict[str, Any], of: Any, bytes_of: Any) -> list[tuple[str, str, str]]:
    """The ratios with llama.cpp, where it took part, for each kind of its cache. of, bytes_of: as
    `_ratios` writes them."""
    s = row["median_s"]
    walls = {name: one["wall_s"] for name, one in row["processes"].items()}
    lines = []
    for kind, state in row["llama_state_bytes"].items():
        read, save, opened, cold, started, token = (
            f"llama_{kind}_{what}"
            for what in ("reprefill", "save", "open", "open_cold", "process", "token")
        )
        name = f"llama.cpp, {kind}"
        lines += [
            ("R1", f"{name}: re-prefill / state restored", of(read, opened, s)),
            ("R2", f"{name}: state restored / open, files warm", of(opened, "open", s)),
            ("R2", "the same, files cold", of(cold, "open_cold", s)),
            ("R3", f"new process: {name}: state restored / ask", of(started, "ask", walls)),
            ("R4", f"{name}: state / 16-bit cache", bytes_of(state)),
            ("R7", f"ingest / {name}: re-prefill", of("ingest", read, s)),
            ("R7", f"{name}: saving / re-prefill", of(save, read, s)),
            ("R8", f"a token of an answer: ours / {name}", of("token", token, s)),
        ]
    return lines
