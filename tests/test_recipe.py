"""Methods: one table, settings that come back, names that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import BudgetError
from engine.policies.codec import Raw, SharedBasis, SpanSVD
from engine.policies.segment import Entropy, Fixed, Peaks
from engine.policies.select import MeanKey, Sketch
from engine.policies.summarise import Mean, SurprisalMean
from engine.recipe import RECIPES, Recipe, from_settings, named


def test_the_first_methods_are_there() -> None:
    assert {"sekv", "sekv-paper", "full"} <= set(RECIPES)
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert all(recipe.source for recipe in RECIPES.values())


def test_the_published_settings_are_the_published_ones() -> None:
    paper = RECIPES["sekv-paper"]
    assert paper.segmenter == Entropy(alpha=1.0, shortest=16)
    assert paper.summariser == SurprisalMean(value_bits=16)
    assert isinstance(paper.codec, SpanSVD)
    assert paper.codec.rank == 32
    assert paper.router == MeanKey()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_a_recipe_comes_back_from_its_settings(recipe: Recipe) -> None:
    """Through JSON, field by field; only what it is called and where it is from is not in them."""
    settings = json.loads(json.dumps(recipe.settings()))
    assert from_settings(recipe.name, settings) == replace(recipe, source="store", differs="")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("a", Fixed(7), Mean(2.0), Raw(), Sketch(3.0), "test", 1, 2, False, False),
        Recipe("b", Peaks(1, 2, 0.5), SurprisalMean(), SharedBasis(3), MeanKey(), "test"),
        Recipe("c", Entropy(), Mean(), SpanSVD(5, 0.9, True), MeanKey(), "test", whole=True),
    ],
    ids=lambda recipe: recipe.name,
)
def test_any_choice_comes_back(recipe: Recipe) -> None:
    settings = json.loads(json.dumps(recipe.settings()))
    assert from_settings(recipe.name, settings) == replace(recipe, source="store")


def change(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(RECIPES["sekv"].settings()))
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
    """By the errors that `recall` turns into one line."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_settings("x", change(path, value))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BudgetError) as caught:
        named("sekv2")
    assert str(caught.value) == f"unknown method 'sekv2'; known: {', '.join(RECIPES)}"
    assert named("full") is RECIPES["full"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_expected_shares_are_shares(recipe: Recipe) -> None:
    """The device takes no more than the store, and only the reference takes everything."""
    for size in (16, 64, 128):
        store, device = recipe.expected_shares(size)
        assert 0 < device <= store
        assert (store == 1.0) == recipe.whole
