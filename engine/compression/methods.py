"""The table of methods: where each cuts spans, and its summaries, codec, router and selector.

METHODS is the one place where methods are named; docs and `--method` are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from engine.compression import method_names
from engine.compression.codecs.base import Codec
from engine.compression.codecs.half_rows import HalfRows
from engine.compression.codecs.raw import Raw
from engine.compression.codecs.rows import Rows
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.observation import Observe
from engine.compression.params import TrainedLayer
from engine.compression.query_statistics import SPREAD
from engine.compression.routers.base import Router
from engine.compression.routers.baselines import Box, Representatives, SecondOrder
from engine.compression.routers.question_blind import Observed, Recency, RetrievalHeads
from engine.compression.routers.router_file import TrainedRouter
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.routers.span_keys import KeyBox, PartMeans, SpanKey
from engine.compression.routers.trained_spans import SpanZoom
from engine.compression.routers.two_level import Levels
from engine.compression.selectors import Blocks, ByShare, Once, Selector, SentenceQuery
from engine.compression.spans import Entropy, Fixed, Peaks, Segmenter
from engine.compression.summaries import Mean, Summariser, SurprisalMean
from engine.compression.text_spans import Delimiters, Punctuated, Sentences
from engine.compression.thoughts import Thoughts
from engine.errors import BudgetError

SPAN, PREFIX = 7.7, 40
"""Tokens of a span, as the default method cuts prose, and of the prompt before a document: what
sizes are estimated with before anything is read."""


@dataclass(frozen=True)
class CacheShape:
    """What of a model the bytes of a cache depend on: L layers, Hkv KV heads of size D."""

    layers: int
    heads: int
    size: int

    @property
    def row_bytes(self) -> int:
        """Of the key and the value of one token, at 16 bits."""
        return 4 * self.layers * self.heads * self.size


@dataclass(frozen=True)
class Method:
    """One method.

    sinks, local: first tokens of a window and last of the document kept exact.
    whole: everything stays in full, nothing is summarised or routed (the reference).
    half_rows: exact rows of a float32 model are kept in float16.
    selector: when and by which query it is chosen anew what is zoomed.
    output: how a long answer is compressed while it is generated, or None.
    keep: share of the tokens that the store keeps; the others are gone for good.
    levels: when a sketch is scored span by span first; no store depends on it.
    source: where the method comes from. differs: how ours is not that, in one line.
    """

    name: str
    segmenter: Segmenter
    summariser: Summariser
    codec: Codec
    router: Router
    source: str
    sinks: int = 4
    local: int = 16
    whole: bool = False
    half_rows: bool = True
    differs: str = ""
    selector: Selector = field(default_factory=ByShare)
    output: Thoughts | None = None
    keep: float = 1.0
    levels: Levels = field(default_factory=Levels)

    @property
    def observe(self) -> Observe:
        """What has to be looked at while the model reads."""
        rows = self.router.rows if isinstance(self.router, Observed) else 0
        reach = self.segmenter.reach if isinstance(self.segmenter, Delimiters) else 0
        return Observe(rows, reach, SPREAD if self.weighs_keys else 0)

    def settings(self) -> dict[str, Any]:
        """The choices with their fields, as the manifest records them."""
        parts = {
            part: {"kind": type(choice).__name__, **vars(choice)}
            for part, choice in (
                ("segmenter", self.segmenter),
                ("summariser", self.summariser),
                ("codec", self.codec),
                ("router", self.router),
                ("selector", self.selector),
                ("output", self.output),
            )
            if choice is not None
        }
        return {
            **parts,
            "sinks": self.sinks,
            "local": self.local,
            "whole": self.whole,
            "half_rows": self.half_rows,
            "keep": self.keep,
        }

    @property
    def weighs_keys(self) -> bool:
        """Whether keys are coded by what queries see of them; see `query_statistics`."""
        return isinstance(self.codec, SharedBasis) and self.codec.bits < 32

    @property
    def fits_bases(self) -> bool:
        """Whether anything is kept in a basis that is fitted to the document's rows."""
        return self.weighs_keys or isinstance(self.router, Sketch)

    @property
    def trained_by(self) -> str:
        """Fingerprint of the router file that acts in it; "" without one."""
        if isinstance(self.codec, SharedBasis):
            return self.router.weights or self.codec.model
        return self.router.weights

    @property
    def needs_calibration(self) -> bool:
        """Whether something has to be measured of the model beforehand."""
        return isinstance(self.router, RetrievalHeads)

    def example(self, heads: int, size: int) -> TrainedLayer:
        """Made-up weights of a layer in the shapes of those it is trained with.

        Raises:
            StoreError: no model has such shapes.
        """
        bases = None
        if isinstance(self.codec, SharedBasis):
            bases = self.codec.made_up_bases(heads, size)
        return replace(self.router.example(heads, size), bases=bases)

    def expected_bytes(self, shape: CacheShape, tokens: int, windows: int) -> tuple[int, int]:
        """About what a store takes of a document, and its device section, for `--dry-run`: text
        and manifest apart.

        Within a tenth for the default method (tests/ingest/test_dry_run.py); the others' parts
        state their shares.
        """
        row = shape.row_bytes
        if self.whole:
            return tokens * row, tokens * row
        pairs = shape.layers * shape.heads
        spans = tokens / SPAN
        device = tokens * row * self.router.device_share(shape.size, SPAN)
        device += tokens * row * self.segmenter.exact_share()
        device += windows * (self.sinks + self.local) * row
        device += spans * pairs * (shape.size * self.summariser.value_bits / 8 + 1)
        shared = PREFIX * row + (2 * pairs * shape.size**2 if self.fits_bases else 0)
        codes = tokens * row * self.codec.host_share(shape.size, SPAN)
        places = spans * shape.layers * (8 * shape.heads + 8)
        return round(codes + places + device + shared), round(device + shared)


def _by_name(*kinds: type) -> dict[str, type]:
    return {kind.__name__: kind for kind in kinds}


@dataclass(frozen=True)
class _Kinds:
    """The classes a manifest may name, by part."""

    parts: dict[str, dict[str, type]] = field(
        default_factory=lambda: {
            "segmenter": _by_name(Entropy, Peaks, Fixed, Sentences, Punctuated, Delimiters),
            "summariser": _by_name(SurprisalMean, Mean),
            "codec": _by_name(Raw, Rows, SharedBasis, SpanSVD, HalfRows),
            "router": _by_name(
                MeanKey,
                Box,
                Representatives,
                SecondOrder,
                Sketch,
                SpanKey,
                KeyBox,
                PartMeans,
                Recency,
                Observed,
                RetrievalHeads,
                SpanZoom,
            ),
            "selector": _by_name(ByShare, Once, Blocks, SentenceQuery),
            "output": _by_name(Thoughts),
        }
    )


_PLAIN: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
}
"""What JSON may give for a field of a type."""


METHODS: dict[str, Method] = {
    recipe.name: recipe
    for recipe in (
        Method(
            name="sekv",
            segmenter=Peaks(),
            summariser=Mean(value_bits=1.0),
            codec=SharedBasis(bits=2.9, outlier=4.0, residual=12.0),
            router=Sketch(bits=1.0),
            local=8,
            source="ours, after SeKV (arXiv 2606.31145)",
            differs="rare anchors, a sketch of every key as router, bases weighted by the "
            "document's own queries",
        ),
        Method(
            name="sekv-paper",
            segmenter=Entropy(alpha=1.0, shortest=16),
            summariser=SurprisalMean(),
            codec=SpanSVD(rank=32),
            router=MeanKey(),
            local=512,
            source="SeKV (arXiv 2606.31145), published settings",
            differs="router untrained (W = identity) where none was trained, 8-bit factors, "
            "question-independent",
        ),
        Method(
            name="full",
            segmenter=Fixed(64),
            summariser=Mean(),
            codec=Raw(),
            router=MeanKey(),
            whole=True,
            half_rows=False,
            source="the model's own full cache",
        ),
        Method(
            name="sentencekv",
            segmenter=Sentences(),
            summariser=Mean(),
            codec=HalfRows(),
            router=SpanKey(),
            selector=SentenceQuery(recent=32),
            sinks=32,
            local=32,
            source="SentenceKV (arXiv 2504.00970)",
            differs="keeps every token and not the ones a question's last 32 tokens look at, so "
            "that a bucket is the mean of all its keys; sentences are cut on the decoded text; KV "
            "heads choose, the query heads of each taking their best in turn",
        ),
        Method(
            name="compresskv",
            segmenter=Fixed(1),
            summariser=Mean(),
            codec=HalfRows(),
            router=RetrievalHeads(rows=8, kernel=5),
            selector=Once(alike=True),
            sinks=0,
            local=8,
            source="CompressKV (arXiv 2606.24467)",
            differs="the observers are the last 8 tokens of each window of the document and not a "
            "question's; heads and layer errors are calibrated on books and never on "
            "evaluation data; what is not kept stays on the host and comes back with a larger "
            "budget",
        ),
        Method(
            name="compresskv-strict",
            segmenter=Fixed(1),
            summariser=Mean(),
            codec=HalfRows(sparse=True),
            router=RetrievalHeads(rows=8, kernel=5),
            selector=Once(alike=True),
            sinks=0,
            local=8,
            keep=0.2,
            source="CompressKV (arXiv 2606.24467)",
            differs="as compresskv, but all except a fifth of the tokens is dropped for good when "
            "the document is read, as published; so there is no --full",
        ),
        Method(
            name="sentkvcompress",
            segmenter=Punctuated(target=32, slack=16),
            summariser=Mean(),
            codec=HalfRows(),
            router=KeyBox(),
            selector=Blocks(overlap=0.7),
            sinks=4,
            local=32,
            source="SentKVCompress (withdrawn from ICLR 2026, OpenReview T0ii3nAxk4)",
            differs="our reading of its abstract and reviews: neither text nor code is public. The "
            "weights of punctuation and length, the bound that scores a box and the rule of "
            "reuse are ours",
        ),
        Method(
            name="dynsplit",
            segmenter=Delimiters(target=32, slack=16),
            summariser=Mean(),
            codec=HalfRows(),
            router=PartMeans(count=4),
            selector=Blocks(),
            sinks=4,
            local=32,
            source="DynSplit-KV (arXiv 2602.03184)",
            differs="our reading: only its abstract and one formula are public. Delimiters are "
            "scored one by one by the document's own attention in two middle layers; "
            "the price of a distance, the four rows per block and the choice among them are ours",
        ),
        Method(
            name="streaming",
            segmenter=Fixed(1),
            summariser=Mean(),
            codec=HalfRows(),
            router=Recency(),
            selector=Once(),
            sinks=4,
            local=8,
            source="StreamingLLM (arXiv 2309.17453)",
            differs="positions are those of the document and not of the cache",
        ),
        Method(
            name="snapkv",
            segmenter=Fixed(1),
            summariser=Mean(),
            codec=HalfRows(),
            router=Observed(rows=32, kernel=5),
            selector=Once(),
            sinks=0,
            local=32,
            source="SnapKV (arXiv 2404.14469)",
            differs="the observers are the last 32 tokens of each window of the document and not a "
            "question's; one choice per KV head, by the mean of its query heads",
        ),
    )
}

METHODS["zoomr"] = replace(
    METHODS["sekv"],
    name="zoomr",
    output=Thoughts(),
    source="ZoomR (arXiv 2604.10898) for the answer, sekv for the document",
    differs="no model is trained to write summaries: a thought is a run of sentences and its end "
    "is its summary; the document is held by method sekv and not whole; at most 16 summaries are "
    "shown",
)


MOST_SETTING = 1 << 20
"""Settings of a method are below it: they are tokens, bits or shares."""


def named(name: str) -> Method:
    """The recipe of that name.

    What follows a "+" changes it: "sekv+codec.bits=4+local=64" has other settings, and
    "NAME+zoomr" compresses long answers beside the memory of NAME.

    Raises:
        BudgetError: there is none, or it has no such setting; the line lists what is known.
    """
    base, *changes = name.split("+")
    method_names.check(base, METHODS)
    recipe = METHODS[base]
    for change in changes:
        if change == "zoomr":
            recipe = replace(recipe, output=METHODS["zoomr"].output)
        else:
            recipe = _changed(recipe, change)
    return replace(recipe, name=name) if changes else recipe


def _changed(recipe: Method, change: str) -> Method:
    """A recipe with one setting of another value, written as FIELD=VALUE or PART.FIELD=VALUE.

    Raises:
        BudgetError: it has no such number, or this is none.
    """
    path, _, value = change.partition("=")
    part, _, field_name = path.rpartition(".")
    if part not in ("", *_Kinds().parts):
        raise BudgetError(f"method {recipe.name} has no part '{part}'")
    owner: Any = getattr(recipe, part) if part else recipe
    before = vars(owner).get(field_name) if owner is not None else None
    if type(before) not in (int, float):
        held = {} if owner is None else vars(owner)
        known = [key for key, value in held.items() if type(value) in (int, float)]
        there = ", ".join(known) or "none"
        raise BudgetError(f"method {recipe.name} has no setting '{path}'; known there: {there}")
    try:
        number = float(value)
        if not 0 <= number < MOST_SETTING or (type(before) is int and not number.is_integer()):
            raise ValueError
        changed = replace(owner, **{field_name: (int if type(before) is int else float)(number)})
    except ValueError:
        kind = "a whole number" if type(before) is int else "a number"
        raise BudgetError(
            f"'{change}': {path} of method {recipe.name} is {kind} from 0 to below {MOST_SETTING}"
        ) from None
    return replace(recipe, **{part: changed}) if part else changed


def with_router(recipe: Method, router: TrainedRouter) -> Method:
    """The same method with what was learnt; unchanged where nothing was learnt for it."""
    if recipe.whole:
        return recipe
    choice = router.in_place_of(recipe.router)
    codec = router.lends_to(recipe.codec, recipe.router)
    return replace(recipe, router=choice or recipe.router, codec=codec or recipe.codec)


def from_settings(name: str, settings: dict[str, Any]) -> Method:
    """The recipe a manifest records, field by field, so that a store opens as it was written.

    Raises:
        KeyError, TypeError, ValueError: the settings name an unknown choice or field, or give one
            a value of another type.
    """
    settings = {"selector": {"kind": "ByShare"}, "keep": 1.0, **settings}  # stores of version 0.1
    parts = {}
    for part, kinds in _Kinds().parts.items():
        if part == "output" and part not in settings:
            continue
        fields = dict(settings[part])
        kind = kinds[fields.pop("kind")]
        for field_name, hint in get_type_hints(kind).items():
            if hint in _PLAIN and type(fields.get(field_name, hint())) not in _PLAIN[hint]:
                raise TypeError(f"{part}.{field_name} is {fields[field_name]!r}")
        parts[part] = kind(**fields)
    return Method(
        name=name,
        **parts,
        sinks=int(settings["sinks"]),
        local=int(settings["local"]),
        whole=bool(settings["whole"]),
        half_rows=bool(settings["half_rows"]),
        keep=float(settings["keep"]),
        source="store",
    )
