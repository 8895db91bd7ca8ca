"""A method is a table row: where to cut, how to summarise, code and route, what to pin.

RECIPES is the one place where methods are named; docs and `--method` are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from engine.errors import BudgetError
from engine.policies.codec import Codec, Raw, SharedBasis, SpanSVD
from engine.policies.route_baselines import Box, Representatives, SecondOrder
from engine.policies.rows import Rows
from engine.policies.segment import Entropy, Fixed, Peaks, Segmenter
from engine.policies.select import MeanKey, Router, Sketch
from engine.policies.summarise import Mean, Summariser, SurprisalMean
from engine.policies.zoom import LearnedSketch, SpanZoom
from engine.router import TrainedRouter


@dataclass(frozen=True)
class Recipe:
    """One method.

    sinks, local: first tokens of a window and last of the document kept exact.
    whole: everything stays in full, nothing is summarised or routed (the reference).
    half_rows: exact rows of a float32 model are kept in float16.
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

    def settings(self) -> dict[str, Any]:
        """The choices with their fields, as the manifest records them."""
        parts = {
            part: {"kind": type(choice).__name__, **vars(choice)}
            for part, choice in (
                ("segmenter", self.segmenter),
                ("summariser", self.summariser),
                ("codec", self.codec),
                ("router", self.router),
            )
        }
        return {
            **parts,
            "sinks": self.sinks,
            "local": self.local,
            "whole": self.whole,
            "half_rows": self.half_rows,
        }

    @property
    def weighs_keys(self) -> bool:
        """Whether keys are coded by what queries see of them; see `queries`."""
        return isinstance(self.codec, SharedBasis) and self.codec.bits < 32

    def expected_shares(self, size: int) -> tuple[float, float]:
        """About what a store and its device section take of the 16-bit keys and values of a
        model with heads of `size`, for `--dry-run`: (store, device)."""
        if self.whole:
            return 1.0, 1.0
        span = 9.0
        device = self.router.device_share(size, span) + self.summariser.value_bits / 32 / span
        device += self.segmenter.exact_share()
        return self.codec.host_share(size, span) + device, device


ROUTERS = (MeanKey, Box, Representatives, SecondOrder, Sketch, SpanZoom, LearnedSketch)


@dataclass(frozen=True)
class _Kinds:
    """The classes a manifest may name, by part."""

    parts: dict[str, dict[str, type]] = field(
        default_factory=lambda: {
            "segmenter": {c.__name__: c for c in (Entropy, Peaks, Fixed)},
            "summariser": {c.__name__: c for c in (SurprisalMean, Mean)},
            "codec": {c.__name__: c for c in (Raw, Rows, SharedBasis, SpanSVD)},
            "router": {c.__name__: c for c in ROUTERS},
        }
    )


_PLAIN: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (float, int),
    str: (str,),
}
"""What JSON may give for a field of a type."""


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="sekv",
            segmenter=Peaks(),
            summariser=Mean(value_bits=1.0),
            codec=SharedBasis(bits=3.0, outlier=4.0),
            router=Sketch(bits=1.0),
            local=8,
            source="ours, after SeKV (arXiv 2606.31145)",
            differs="rare anchors, a sketch of every key as router, bases that ask the document",
        ),
        Recipe(
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
        Recipe(
            name="full",
            segmenter=Fixed(64),
            summariser=Mean(),
            codec=Raw(),
            router=MeanKey(),
            whole=True,
            half_rows=False,
            source="the model's own full cache",
        ),
    )
}


def named(name: str) -> Recipe:
    """The recipe of that name. Raises BudgetError's sibling line listing the known ones."""
    if name not in RECIPES:
        raise BudgetError(f"unknown method '{name}'; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def with_router(recipe: Recipe, router: TrainedRouter) -> Recipe:
    """The same method routed by what was learnt; unchanged where nothing was learnt for it."""
    choice = None if recipe.whole else router.in_place_of(recipe.router)
    return recipe if choice is None else replace(recipe, router=choice)


def from_settings(name: str, settings: dict[str, Any]) -> Recipe:
    """The recipe a manifest records, field by field, so that a store opens as it was written.

    Raises:
        KeyError, TypeError, ValueError: the settings name an unknown choice or field, or give one
            a value of another type.
    """
    parts = {}
    for part, kinds in _Kinds().parts.items():
        fields = dict(settings[part])
        kind = kinds[fields.pop("kind")]
        for field_name, hint in get_type_hints(kind).items():
            if hint in _PLAIN and type(fields.get(field_name, hint())) not in _PLAIN[hint]:
                raise TypeError(f"{part}.{field_name} is {fields[field_name]!r}")
        parts[part] = kind(**fields)
    return Recipe(
        name=name,
        **parts,
        sinks=int(settings["sinks"]),
        local=int(settings["local"]),
        whole=bool(settings["whole"]),
        half_rows=bool(settings["half_rows"]),
        source="store",
    )
