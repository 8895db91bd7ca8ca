"""Options and reports of the use cases.

Torch-free and import-light, so that the command line can name them before any
heavy import. What a store claims about itself is `manifest.Manifest`, not here.
Every report has `to_json()` with exactly the keys of the contract.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Progress(Protocol):
    """What long work tells while it runs. The command line draws it; tests record it."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins: `total` units of work ("tokens"), 0 when unknown."""

    def advance(self, done: int) -> None:
        """`done` more units of the current stage are finished."""

    def resume(self, done: int) -> None:
        """`done` more units of it were finished by an earlier run: they say nothing of pace."""

    def note(self, line: str) -> None:
        """One plain remark worth a line, such as a page without text."""


class Silent:
    """A Progress that says nothing."""

    def start(self, stage: str, total: int, unit: str) -> None: ...

    def advance(self, done: int) -> None: ...

    def resume(self, done: int) -> None:
        self.advance(done)

    def note(self, line: str) -> None: ...


COMPRESSED, ANCHOR, PINNED = 0, 1, 2
"""The kinds of a span in a window's table: summarised and zoomed on demand; one boundary token
that stays exact; exact for another reason."""

DEVICES = "auto|cpu|cuda(?::(?:0|[1-9][0-9]?))?"
"""What may be said of where to compute, as a pattern; N of cuda:N as torch writes it."""


def unknown_device(text: str) -> str:
    """Why a device that `DEVICES` does not match is refused, and what to use."""
    if text.partition(":")[0] == "mps":
        return "Apple's GPU (mps) is not supported: nothing of sekv was ever run on it; use cpu"
    return f"unknown device {text!r}; use auto, cpu, cuda or cuda:N"


FULL, SLIDING, RECURRENT, HYBRID, STATELESS = LAYER_KINDS = (
    "full_attention",
    "sliding_attention",
    "linear_attention",
    "hybrid",
    "stateless",
)
"""What a layer keeps of the tokens before: keys and values of all of them; of the last ones, in a
sliding window or a chunk; the final state of a convolution, linear attention or SSM; such a state
beside the keys and values of all; nothing (a layer of an MLP alone, or one that reads the keys and
values of another)."""

DTYPES = ("float32", "bfloat16", "float16")
"""Numbers that a model may compute in, by the names that torch has for them."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model a store was read with.

    id, revision: where it came from. weights, tokenizer: hex fingerprints of their content.
    heads, kv_heads, head_dim: H, Hkv and D of a memory's rows in the layers with full attention:
    D is the larger where keys and values have different widths, and Hkv is 1 where every head's
    keys and values follow from one latent (`attention.row_form`). cached: numbers that the model's
    own cache keeps of a token in such a layer; 0 where they are 2 Hkv D. rope: its parameters as
    the model's configuration names them. transformers: the release whose behaviour the reader
    relied on.
    behaviour: that behaviour, as the surprisal in nats of a few fixed tokens (`models`); empty
    in stores that were made before it was recorded. layer_kinds: one of `LAYER_KINDS` for each
    layer; empty where all of them have full attention. quantized: how the checkpoint's weights are
    quantised, as its configuration names it; "" where they are not.
    """

    id: str
    revision: str
    architecture: str
    weights: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: dict[str, Any]
    tokenizer: str
    transformers: str
    behaviour: tuple[float, ...] = ()
    layer_kinds: tuple[str, ...] = ()
    cached: int = 0
    quantized: str = ""

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """The numbers of the layers with full attention, which have a document memory."""
        kinds = self.layer_kinds or (FULL,) * self.layers
        return tuple(n for n, kind in enumerate(kinds) if kind in (FULL, HYBRID))

    @property
    def numbers_per_token(self) -> int:
        """Numbers that the model's own cache keeps of one token in these layers together."""
        return len(self.memory_layers) * self.numbers_per_layer

    @property
    def numbers_per_layer(self) -> int:
        """The same of one of these layers."""
        return self.cached or 2 * self.kv_heads * self.head_dim

    @property
    def state_layers(self) -> tuple[int, ...]:
        """The numbers of the layers that keep a state of their own."""
        kinds = enumerate(self.layer_kinds)
        return tuple(n for n, kind in kinds if kind in (SLIDING, RECURRENT, HYBRID))


CHUNK_TOKENS = 1024
"""Tokens of one prefill forward, where nobody says another number."""


@dataclass(frozen=True)
class IngestOptions:
    """How a document becomes a store.

    model: alias, hub id, folder or GGUF file; "" is the default model. method: a name of
    `methods.METHODS`.
    device: "auto", "cpu", "cuda" or "cuda:N". dtype: "auto", "float32", "bfloat16", "float16".
    chunk_tokens: tokens per prefill forward. window: document tokens per context, 0 for the
    longest the model reads well. pages: PDF pages such as "1-20,25", by their labels where the file
    has its own, "#4" by sheet. keep_headers: leave running headers, footers and page numbers in the
    text of PDFs. router: trained router file.
    heads: calibrated retrieval heads, for methods that need them; "" is beside the model.
    offline: fetch no model. update: read again what changed since the store was made, and only
    that.
    """

    model: str = ""
    revision: str = ""
    method: str = "sekv"
    device: str = "auto"
    dtype: str = "auto"
    chunk_tokens: int = CHUNK_TOKENS
    window: int = 0
    pages: str = ""
    password: str = ""
    keep_headers: bool = False
    overwrite: bool = False
    router: str = ""
    heads: str = ""
    offline: bool = False
    update: bool = False


@dataclass(frozen=True)
class SourceReport:
    """One source that was read. notes: remarks of one line each, such as what was left out."""

    path: str
    pages: int
    chars: int
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removal:
    """What became of a store that lost one of its sources.

    store: its path. removed: the source, as the store named it. sources: those that it still has.
    tokens: that it has. unread: tokens that have to be read again, which the questions that need
    them do. read: tokens that were read again now, since none could stay.
    """

    store: str
    removed: str
    sources: tuple[str, ...]
    tokens: int
    unread: int
    read: int


@dataclass(frozen=True)
class Plan:
    """What an ingest would do (`--dry-run`), from the text and the model's configuration alone.

    state_bytes: of one window, in layers without full attention; counted in the full cache once, as
    a question sees one, and in the store for every window.
    """

    sources: tuple[SourceReport, ...]
    model: str
    method: str
    tokens: int
    windows: int
    window_tokens: int
    full_kv_bytes: int
    estimated_store_bytes: int
    estimated_device_bytes: int
    state_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dry_run": True}


@dataclass(frozen=True)
class IngestReport:
    """What `ingest` made. resumed_tokens: that an earlier run had read. unchanged: the store was
    there already and holds the sources as they are; nothing was read."""

    store: str
    sources: tuple[SourceReport, ...]
    model: str
    method: str
    tokens: int
    windows: int
    window_tokens: int
    spans: int
    anchors: int
    store_bytes: int
    full_kv_bytes: int
    timing: dict[str, float]
    resumed_tokens: int = 0
    unchanged: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


LEASE = 60.0
"""Seconds after which the claim of a process that does not renew it counts no more."""


@dataclass(frozen=True)
class LibraryOptions:
    """How many documents become a library.

    include, exclude: patterns of file names, or of paths below a folder. jobs: processes on this
    machine. cluster: address of a Dask scheduler, whose workers take their place. prune: remove
    stores whose sources are gone. dry_run: say what would be done. lease: seconds, see `LEASE`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    jobs: int = 1
    cluster: str = ""
    prune: bool = False
    dry_run: bool = False
    lease: float = LEASE


@dataclass(frozen=True)
class DocumentOutcome:
    """What became of one document of a library.

    store: its store's path below the library, with slashes. state: "read"; "replaced", because the
    source changed; "unchanged"; "failed", for the `reason`; "gone", which is kept though its source
    is no longer there; "pruned", which was removed for that. tokens: that were read, those of an
    earlier run included.
    """

    source: str
    store: str
    state: str
    reason: str = ""
    tokens: int = 0
    store_bytes: int = 0


@dataclass(frozen=True)
class LibraryReport:
    """What `ingest` did with a folder or a list of documents. left_out: files that are no
    documents. total_s: seconds."""

    library: str
    documents: tuple[DocumentOutcome, ...]
    left_out: tuple[str, ...]
    tokens: int
    total_s: float
    dry_run: bool = False

    def of(self, state: str) -> list[DocumentOutcome]:
        """The documents of one state."""
        return [document for document in self.documents if document.state == state]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LibraryStatus:
    """How far a library's ingest has come. share: of the work, 0 to 1. tokens: read in this run.
    left_s: None while nobody can say."""

    documents: int
    done: int
    failed: int
    share: float
    tokens: int
    tokens_per_s: float
    left_s: float | None


class LibraryProgress(Protocol):
    """What the ingest of a library tells while it runs."""

    def status(self, status: LibraryStatus) -> None:
        """How far it has come; told often."""

    def note(self, line: str) -> None:
        """One plain remark worth a line."""


class SilentLibrary:
    """A LibraryProgress that says nothing."""

    def status(self, status: LibraryStatus) -> None: ...

    def note(self, line: str) -> None: ...


AUTO = "auto"
AUTO_SHARE, AUTO_TOKENS = 0.3, 1024
"""The budget where none is named: this share of a document's tokens, but no fewer than so many. It
holds the codes of every token of what is looked at, so that nothing is left to estimates and
nothing comes and goes while an answer is made; docs/results.md has what less costs. A third of a
page is a few sentences, and what a small model says from them is made up."""


@dataclass(frozen=True)
class AskOptions:
    """How questions are answered from one store.

    budget: "10%" of the document's tokens, a number of tokens, or `AUTO`; the device bytes of that
    many 16-bit K and V rows are the most that may be resident, everything counted. coverage: share
    of the estimated attention mass that the zoom must cover; 1 fills the budget. full: zoom
    everything at stored rank. widen: budgets that a step may take when it is done again, because it
    was unsure or had less of its attention exact than `coverage`; 1 keeps to the budget always.
    read: whether windows that a question needs are read where nobody has read them yet. whole: take
    every question as one about the whole document; None: those in the form of one; False: none.
    temperature 0 is greedy. model: path to the weights when they moved since ingest.
    trace: record every zoom decision. offline: fetch no model. stop: texts that end the answer when
    the model says them; they are no part of it.
    """

    budget: str = AUTO
    coverage: float = 1.0
    full: bool = False
    widen: float = 1.0
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    model: str = ""
    router: str = ""
    trace: bool = False
    offline: bool = False
    stop: tuple[str, ...] = ()
    read: bool = True
    whole: bool | None = None


@dataclass(frozen=True)
class Citation:
    """A passage the answer was read from: `text` is source_text[start:end], exactly.

    page: the label of its page, or of the section it stands in. sheet: of a PDF, which sheet that
    is, counted from 1, whatever its label says; "" elsewhere. printed: the number printed on that
    page, where it is known and not the label. Each may be a range, "12-13". store: of a library's
    answer, the path of the store that has the source below the library.
    """

    source: str
    page: str
    start: int
    end: int
    text: str
    weight: float
    sheet: str = ""
    store: str = ""
    printed: str = ""


@dataclass(frozen=True)
class WindowRead:
    """A window that was seen while a question was answered, and why.

    page: the label of the page that it begins on. lexical: how much the words of its best passage
    are like those of the question. attention: votes of the question's attention. None: nobody
    asked. read_now: whether the model read it for this question, for the first time.
    """

    window: int
    page: str
    lexical: float | None = None
    attention: float | None = None
    read_now: bool = False


@dataclass(frozen=True)
class Usage:
    document_tokens: int
    recomputed_document_tokens: int
    question_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of the device tier, everything counted, at its largest during the answer.

    device_kv_bytes: what is held for the document, which a budget bounds. budget_tokens: document
    tokens that the budget was worth, whatever words it was named in. working_bytes: the most
    that one layer took beside it for one forward: unpacked codes, rows widened to 32 bits, scores.
    """

    device_kv_bytes: int
    full_kv_bytes: int
    zoomed_spans: int
    total_spans: int
    peak_device_bytes: int
    working_bytes: int = 0
    budget_tokens: int = 0


@dataclass(frozen=True)
class Turn:
    """An earlier question of a conversation and what was answered."""

    question: str
    answer: str


NOT_STATED = "not stated in the document"
"""What people read in place of an answer that the document does not support."""

UNSUPPORTED = "(probably not stated in the document: no passage supports it)"
"""Below an answer that was shown while it was made and turned out to have no support."""

CUT_SHORT = "(cut short)"
"""Behind an answer that ended for want of tokens."""


@dataclass(frozen=True)
class Answer:
    """One answered question.

    support: 0 to 1, how far the document carries the answer. supported: False where it does not;
    never of an answer that was cut short. thinking: what a reasoning model said to itself first.
    retrieval: the windows that were seen, best first. store: which store of a library answered, its
    path below it; "" of a single store.
    `stats` holds what `--stats` prints beyond the contract's keys; its "cut_short" is True of an
    answer that ended for want of tokens, its "judged" False where support means nothing: of what a
    whole document, page or chapter is about.
    """

    question: str
    answer: str
    citations: tuple[Citation, ...]
    usage: Usage
    memory: MemoryUse
    timing: dict[str, float]
    stats: dict[str, Any] = field(default_factory=dict)
    supported: bool = True
    support: float = 1.0
    thinking: str = ""
    retrieval: tuple[WindowRead, ...] = ()
    store: str = ""

    @property
    def cut_short(self) -> bool:
        """Whether the answer ended for want of tokens."""
        return bool(self.stats.get("cut_short"))

    @property
    def remark(self) -> str:
        """What people are told behind it: that it was cut short, or that nothing supports it."""
        if self.cut_short:
            return CUT_SHORT
        return "" if self.supported else UNSUPPORTED

    @property
    def stated(self) -> str:
        """What is said in its place: the answer, or that the document does not state one."""
        return self.answer if self.supported else NOT_STATED

    @property
    def shown(self) -> str:
        """The same for people, who see of an answer that it was cut."""
        return f"{self.stated} {CUT_SHORT}".lstrip() if self.cut_short else self.stated

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Answer:
        """The answer that `to_json` gave.

        Raises:
            TypeError, KeyError: it is none.
        """
        parts = {
            "citations": tuple(Citation(**citation) for citation in record["citations"]),
            "usage": Usage(**record["usage"]),
            "memory": MemoryUse(**record["memory"]),
            "retrieval": tuple(WindowRead(**window) for window in record.get("retrieval", ())),
        }
        return cls(**{**record, **parts})


@dataclass(frozen=True)
class SpanView:
    """One span as `inspect` shows it. `start`/`end` are characters of its source's text.

    error: what its codes lost, over the spread of keys or values, on average over the layers and
    KV heads looked at; 0 where they are exact or their codec does not say.
    """

    id: int
    start_token: int
    end_token: int
    source: str
    start: int
    end: int
    page: str
    anchor: bool
    surprisal: float
    rank_k: int
    rank_v: int
    bytes: int
    error: float = 0.0


@dataclass(frozen=True)
class ZoomView:
    """One zoom decision: `score` is the router's estimated share, `weight` the real one."""

    span: int
    layer: int
    kv_head: int
    step: int
    score: float
    weight: float


@dataclass(frozen=True)
class Move:
    """What one layer brought to the device at one step, and what it found there already."""

    layer: int
    step: int
    fetched_bytes: int
    fetched_spans: int
    reused_spans: int


@dataclass(frozen=True)
class Recorded:
    """One answer as a trace holds it; everything empty where nothing was asked.

    said: the text of each token of the answer; step s led to said[s]. remark: see `Answer`.
    resident: bytes in memory for the answer by kind: exact_rows, sketches, summaries, parameters,
    zoomed_rows, states; empty in traces of before it was recorded.
    """

    question: str = ""
    answer: str = ""
    remark: str = ""
    said: tuple[str, ...] = ()
    citations: tuple[Citation, ...] = ()
    moves: tuple[Move, ...] = ()
    zoom: tuple[ZoomView, ...] = ()
    retrieval: tuple[WindowRead, ...] = ()
    resident: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InspectReport:
    """changed: one line per source that is not what was read, or is gone.

    moves, said and what follows them are empty where nothing was asked; see `Recorded`.
    """

    manifest: dict[str, Any]
    spans: tuple[SpanView, ...]
    zoom: tuple[ZoomView, ...]
    tiers: dict[str, int]
    moves: tuple[Move, ...] = ()
    question: str = ""
    answer: str = ""
    said: tuple[str, ...] = ()
    citations: tuple[Citation, ...] = ()
    remark: str = ""
    changed: tuple[str, ...] = ()
    retrieval: tuple[WindowRead, ...] = ()
    resident: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
