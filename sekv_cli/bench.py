"""`sekv bench`: measure what is claimed, resumable, with every setting beside the figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SekvError
from sekv_cli import bench_inputs, options
from sekv_cli import bench_options as chosen

if TYPE_CHECKING:
    from engine.types import Progress

_Measured = tuple[dict[str, Any], str, dict[str, str]]
"""A report, its table, and its charts by file name."""


def bench(
    suite: chosen.Suites = "qa",
    model: options.OwnModel = "",
    questions: chosen.Questions = None,
    documents: chosen.Documents = None,
    scope: chosen.ScopeOption = chosen.Scope.window,
    text: chosen.Text = None,
    data: chosen.Data = None,
    samples: chosen.Samples = None,
    method: chosen.Methods = "",
    budget: chosen.Budgets = "",
    length: chosen.Lengths = "",
    task: chosen.Tasks = "",
    depth: chosen.Depths = "0,50,100",
    claims: chosen.Claims = None,
    max_new_tokens: chosen.MaxNewTokens = 0,
    answers: chosen.Answers = True,
    window: chosen.Window = 0,
    dissect: chosen.Dissect = 8,
    seed: chosen.Seed = 0,
    device: options.Device = "auto",
    output: chosen.Output = Path("runs/bench"),
    as_json: options.Json = False,
    verbose: options.Verbose = None,
) -> None:
    """Measure, and write the results with their settings. Interrupted, the same command goes on.

    qa: natural questions, each on an excerpt around its evidence or (--scope
    book) on its whole document: are answers, citations and refusals right,
    beside plain transformers with the same prompt?
    support: where the evidence stands among the cited passages of what plain
    transformers answers on excerpts, and what support tells of questions
    without an answer.
    retrieval: is the evidence among the windows and passages of a whole
    document that a question would read? Of windows of --length tokens; the
    model reads nothing.

    positions: answers to questions on whole documents by where the passages
    that they see stand: where they were read, one behind another, the best one
    nearest, read anew; exact rows.

    library: is the right document of a whole folder found, and the evidence
    among the first citations, beside the question to its own document? Only
    what the questions need is read; stores are kept in --out.

    fidelity: natural questions on excerpts, of the full cache and of every
    method and peer at every budget: answers, next tokens, divergence, also of
    what follows in the book, attention found; then what routers find of the
    attention and what codecs lose at equal bytes, head by head.

    efficiency: ingest and ask beside plain prefill and beside the full cache
    saved and loaded again, in turns; then whole programs from their start.
    A document longer than the model's positions is read in windows, once, and
    its store is kept in --out; others have no windows.

    niah, ruler, multi, longbench, infinitebench: answers of many methods at
    equal resident bytes, on documents made from books or official files.

    Peers, systems of others, can be rows too: kvpress, transformers, llama.cpp@FILE.gguf, or
    peers for all; one that is not installed is named with what it needs. So can
    trials of the laboratory (trial), and a method with other settings, such as
    sekv+codec.bits=4.

    \b
    Example:
      sekv bench --questions docs/questions/sample.jsonl --documents docs/sample
      sekv bench --suite qa --questions Q.jsonl --documents DIR --assert 'full:same >= 1'
      sekv bench --suite fidelity --questions docs/questions/books.jsonl --documents DIR
      sekv bench --suite fidelity --questions Q.jsonl --documents DIR --method sekv,trial
      sekv bench --suite library --questions Q.jsonl --documents DIR --window 512
      sekv bench --suite efficiency --text books --length 2048,6144,32768
      sekv bench --suite niah,ruler --text books --method sekv,snapkv,full --budget 5%,10%
      sekv bench --suite ruler --text books --length 2048 --assert 'sekv@10% > snapkv@10%'
      sekv bench --suite longbench --data LongBench/data --task qasper --samples 50
    """
    suites = _suites(suite)
    bench_inputs.check(suites, questions, documents, text, data)
    bench_inputs.check_named(model, _names(method))
    if suites[0] in chosen.COMPARED:
        from sekv_cli import compare

        compare.compare(
            compare.ComparisonRequest(
                suites=tuple(map(str, suites)),
                model=model,
                questions=questions,
                documents=documents,
                whole=scope is chosen.Scope.book,
                text=text,
                data=data,
                methods=_names(method),
                budgets=_names(budget),
                lengths=tuple(_numbers(length)) if length else (),
                depths=_depths(depth),
                tasks=_names(task),
                samples=samples,
                seed=seed,
                window=window,
                most=max_new_tokens,
                device=device,
                claims=tuple(claims or ()),
            ),
            output,
            as_json=as_json,
            verbose=verbose,
        )
        return
    from sekv_cli import format, progress, reports

    with progress.on_stderr(verbose) as shown:
        if suites[0] is chosen.SuiteName.fidelity:
            source = bench_inputs.natural(questions, documents, "fidelity")
            most = (max_new_tokens or 48) if answers else 0
            asked = (*source, _numbers(length or "1024"), seed, most)
            compared = (method or "sekv,sekv-paper", budget)
            measured = _fidelity(
                model, asked, compared, samples or 100, dissect, window, device, output, shown
            )
        elif suites[0] is chosen.SuiteName.support:
            source = bench_inputs.natural(questions, documents, "support")
            support_asked = (*source, _numbers(length or "1100")[0], seed)
            measured = _support(model, support_asked, samples or 200, device, output, shown)
        elif suites[0] is chosen.SuiteName.positions:
            place = bench_inputs.natural(questions, documents, "positions")
            asked_so = (samples or 100, max_new_tokens or 24, window, seed)
            measured = _positions(model, place, asked_so, _names(task), device, output, shown)
        elif suites[0] is chosen.SuiteName.library:
            place = bench_inputs.natural(questions, documents, "library")
            asked_so = (samples or 100, max_new_tokens or 24, window, seed)
            measured = _library(model, place, asked_so, _names(budget), device, output, shown)
        elif suites[0] is chosen.SuiteName.retrieval:
            source = bench_inputs.natural(questions, documents, "retrieval")
            measured = _retrieval(model, *source, _numbers(length or "512,1024,2048"), shown)
        else:
            folder = bench_inputs.books(text, "efficiency")
            lengths = _numbers(length or "2048,6144")
            measured = _efficiency(
                model, folder, lengths, (method or "sekv", budget), samples, window, device, output,
                shown,
            )  # fmt: skip
    from engine.lab.bench.results import save

    report, table, charts = measured
    save(report, table, output, charts)
    if as_json:
        format.emit_json(report)
    else:
        reports.print_measured(format.console(), table, output)


def _suites(text: str) -> list[chosen.SuiteName]:
    """One suite, or several of those that compare methods."""
    names = list(dict.fromkeys(_names(text)))
    for name in names or [text]:
        if name not in list(chosen.SuiteName):
            raise SekvError(f"unknown suite '{name}'; known: {', '.join(chosen.SuiteName)}")
    suites = [chosen.SuiteName(name) for name in names]
    if len(suites) > 1 and not set(suites) <= set(chosen.COMPARED):
        raise SekvError(f"only {', '.join(chosen.COMPARED)} can be run together")
    return suites


def _numbers(text: str) -> list[int]:
    """Positive whole numbers parted by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise SekvError(f"{text!r} is no list of numbers of tokens such as 8192,32768")
    return [int(part) for part in parts]


def _depths(text: str) -> tuple[float, ...]:
    """Per cents parted by commas, as shares."""
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    if not all(part.replace(".", "", 1).isdigit() and float(part) <= 100 for part in parts):
        raise SekvError(f"{text!r} is no list of depths such as 0,50,100")
    return tuple(float(part) / 100 for part in parts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _fidelity(
    model: str,
    asked: tuple[Path, Path, list[int], int, int],
    compared: tuple[str, str],
    samples: int,
    dissect: int,
    window: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from functools import partial

    from engine.documents.tokens import tokenize as tokenise
    from engine.lab.bench import peers
    from engine.lab.bench.fidelity import laboratory
    from engine.lab.bench.fidelity import report as shape
    from engine.lab.bench.questions import Excerpts, load_questions
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    path, documents, lengths, seed, most = asked
    questions = load_questions(path)
    setting = laboratory.FidelitySetting(
        methods=peers.expand(_names(compared[0])),
        budgets=_names(compared[1]) or laboratory.FidelitySetting.budgets,
        questions=samples,
        window=window,
        most=most,
        dissected=dissect,
    )
    located = locate(model, progress=shown)
    reader, name = load_reader(located, device=device), str(located.folder)
    tokenize = partial(tokenise, tokenizer=reader.tokenizer)
    drawn = Excerpts(questions, documents, tokenize, lengths, seed)
    report = laboratory.measure(reader, name, drawn, setting, output, shown)
    return report, shape.markdown(report), shape.charts(report)


def _support(
    model: str,
    asked: tuple[Path, Path, int, int],
    samples: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from engine.lab.bench import support
    from engine.lab.bench.questions import load_questions
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    path, documents, tokens, seed = asked
    setting = support.SupportSetting(tokens=tokens, samples=samples, seed=seed)
    reader = load_reader(locate(model, progress=shown), device=device)
    files = [(load_questions(path), documents)]
    report = support.measure(reader, files, setting, output, shown)
    return report, support.markdown(report), {}


def _retrieval(
    model: str, path: Path, documents: Path, sizes: list[int], shown: Progress
) -> _Measured:
    from functools import partial

    from engine.documents.tokens import tokenize
    from engine.lab.bench import retrieval
    from engine.lab.bench.questions import load_questions
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    reader = load_reader(locate(model, progress=shown))
    tokenise = partial(tokenize, tokenizer=reader.tokenizer)
    report = retrieval.measure(
        load_questions(path), documents, tokenise, reader.word_vectors, sizes
    )
    return report, retrieval.markdown(report), {}


def _positions(
    model: str,
    source: tuple[Path, Path],
    asked: tuple[int, int, int, int],
    rows: tuple[str, ...],
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from functools import partial

    from engine.documents.tokens import tokenize
    from engine.lab.bench import positions
    from engine.lab.bench.questions import load_questions
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    path, documents = source
    samples, most, window, seed = asked
    setting = positions.PositionSetting(
        rows or tuple(positions.ARRANGEMENTS), samples, most, window, seed
    )
    questions = load_questions(path)
    reader = load_reader(locate(model, progress=shown), device=device)
    words = partial(tokenize, tokenizer=reader.tokenizer)
    report = positions.measure(reader, questions, documents, words, setting, output, shown)
    return report, positions.markdown(report), {}


def _library(
    model: str,
    source: tuple[Path, Path],
    asked: tuple[int, int, int, int],
    budgets: tuple[str, ...],
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from engine.lab.bench import library
    from engine.lab.bench.questions import load_questions
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    if len(budgets) > 1:
        raise SekvError("the library suite takes one --budget")
    path, documents = source
    samples, most, window, seed = asked
    own = budgets[0] if budgets else library.LibrarySetting.budget
    setting = library.LibrarySetting(samples, most, window, own, seed)
    questions = load_questions(path)
    located = locate(model, progress=shown)
    reader, name = load_reader(located, device=device), str(located.folder)
    report = library.measure(reader, name, questions, documents, setting, output, shown)
    return report, library.markdown(report), {}


def _efficiency(
    model: str,
    text: Path,
    lengths: list[int],
    compared: tuple[str, str],
    rounds: int | None,
    window: int,
    device: str,
    output: Path,
    shown: Progress,
) -> _Measured:
    from engine.lab.bench import peers
    from engine.lab.bench.books import load_books
    from engine.lab.bench.efficiency.rounds import measure
    from engine.lab.bench.efficiency.setting import EfficiencySetting
    from engine.lab.bench.efficiency.table import markdown
    from engine.models.locate import locate
    from engine.models.reader import load_reader

    own = [name for name in _names(compared[0]) if not peers.is_peer(name)]
    others = [name for name in _names(compared[0]) if peers.is_peer(name)]
    if len(others) > 1 or any(not peers.is_llama(name) for name in others):
        raise SekvError(
            "the efficiency suite times one peer, llama.cpp@FILE.gguf, beside the full cache of "
            "transformers, which is always there"
        )
    setting = EfficiencySetting(
        lengths=tuple(lengths),
        method=own[0] if own else "sekv",
        budgets=tuple(_names(compared[1])) or EfficiencySetting.budgets,
        rounds=rounds or EfficiencySetting.rounds,
        window=window,
        peer=others[0] if others else "",
    )
    books = "\n\n".join(part for book in load_books(text) for part in book.paragraphs)
    located = locate(model, progress=shown)
    reader, name = load_reader(located, device=device), str(located.folder)
    report = measure(reader, name, books[: 8 * max(lengths)], setting, output, shown)
    return report, markdown(report), {}
