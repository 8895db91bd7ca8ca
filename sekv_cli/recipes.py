"""docs/recipes.md, written from the table of methods (`make docs`).

A test compares the two, so the page cannot say what the program does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.recipe import RECIPES, Recipe

PREFACE = """\
# Methods

Written from the table in `engine/recipe.py` by `make docs`; edit the table, not this page.

A method is a few choices: where the document is cut, what stands for a span, how its tokens are
kept on the host, how a query finds spans, and when and by which query a layer chooses anew. All
run in one engine with one budget in bytes, everything counted. None of them knows a question while
it reads; where a published method does, the document's own end takes the question's place, and
the line says so. `NAME+zoomr` folds long answers beside the document memory of NAME.

`compresskv` needs to know the model's retrieval heads: `sekv train heads`.
"""

PARTS = ("segmenter", "summariser", "codec", "router", "selector", "output")


def page() -> str:
    """The whole page."""
    return "\n".join([PREFACE, *(line for r in RECIPES.values() for line in _method(r))])


def _method(recipe: Recipe) -> Iterator[str]:
    yield f"## {recipe.name}\n"
    yield f"Source: {recipe.source}.\n"
    if recipe.differs:
        yield f"Differs: {recipe.differs}.\n"
    yield "| part | choice | settings |"
    yield "|---|---|---|"
    settings = recipe.settings()
    for part in PARTS:
        if part not in settings:
            continue
        chosen = dict(settings[part])
        kind = chosen.pop("kind")
        yield f"| {part} | `{kind}` | {_settings(chosen)} |"
    rest = {name: settings[name] for name in ("sinks", "local", "keep", "whole")}
    yield f"| exact | | {_settings(rest)} |"
    yield ""


def _settings(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


if __name__ == "__main__":
    print(page(), end="")
