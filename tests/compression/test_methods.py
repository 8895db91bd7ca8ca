"""Methods: one table, settings that come back, names that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.compression import method_names
from engine.compression.codecs.raw import Raw
from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.methods import METHODS, CacheShape, Method, from_settings, named
from engine.compression.routers.sketch import MeanKey, Sketch
from engine.compression.spans import Entropy, Fixed, Peaks
from engine.compression.summaries import Mean, SurprisalMean
from engine.errors import BudgetError


def test_the_first_methods_are_there() -> None:
    assert {"sekv", "sekv-paper", "full"} <= set(METHODS)
    assert all(recipe.name == name for name, recipe in METHODS.items())
    assert all(recipe.source for recipe in METHODS.values())


def test_the_published_settings_are_the_published_ones() -> None:
    paper = METHODS["sekv-paper"]
    assert paper.segmenter == Entropy(alpha=1.0, shortest=16)
    assert paper.summariser == SurprisalMean(value_bits=16)
    assert isinstance(paper.codec, SpanSVD)
    assert paper.codec.rank == 32
    assert paper.router == MeanKey()


@pytest.mark.parametrize("recipe", METHODS.values(), ids=str)
def test_a_recipe_comes_back_from_its_settings(recipe: Method) -> None:
    """Through JSON, field by field; only what it is called and where it is from is not in them."""
    settings = json.loads(json.dumps(recipe.settings()))
    assert from_settings(recipe.name, settings) == replace(recipe, source="store", differs="")


@pytest.mark.parametrize(
    "recipe",
    [
        Method("a", Fixed(7), Mean(2.0), Raw(), Sketch(3.0), "test", 1, 2, False, False),
        Method("b", Peaks(1, 2, 0.5), SurprisalMean(), SharedBasis(3), MeanKey(), "test"),
        Method("c", Entropy(), Mean(), SpanSVD(5, 0.9, True), MeanKey(), "test", whole=True),
    ],
    ids=lambda recipe: recipe.name,
)
def test_any_choice_comes_back(recipe: Method) -> None:
    settings = json.loads(json.dumps(recipe.settings()))
    assert from_settings(recipe.name, settings) == replace(recipe, source="store")


def change(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(METHODS["sekv"].settings()))
    at = settings
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return settings


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("codec", "kind"), "Nonsense"),
        (("codec", "kind"), "Peaks"),
        (("codec", "colour"), 1),
        (("codec",), {}),
        (("codec",), "SharedBasis"),
        (("codec",), None),
        (("router", "kind"), "__import__"),
        (("codec", "bits"), "8"),
        (("codec", "bits"), None),
        (("segmenter", "distance"), 4.5),
        (("segmenter", "longest"), True),
        (("sinks",), "many"),
        (("local",), None),
    ],
)
def test_what_no_recipe_is_is_refused(path: tuple[str, ...], value: Any) -> None:
    """By the errors that `recipe_of` turns into one line."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_settings("x", change(path, value))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BudgetError) as caught:
        named("sekv2")
    assert str(caught.value) == f"unknown method 'sekv2'; known: {', '.join(METHODS)}"
    assert named("full") is METHODS["full"]


@pytest.mark.parametrize("recipe", METHODS.values(), ids=str)
def test_expected_bytes_are_a_share(recipe: Method) -> None:
    """The device takes no more than the store, and only the reference takes everything."""
    for size in (16, 64, 128):
        shape = CacheShape(layers=4, heads=2, size=size)
        store, device = recipe.expected_bytes(shape, tokens=100_000, windows=50)
        assert 0 < device <= store
        assert (store == 100_000 * shape.row_bytes) == recipe.whole


def test_the_names_that_are_known_without_torch_are_the_table() -> None:
    assert tuple(METHODS) == method_names.NAMES
