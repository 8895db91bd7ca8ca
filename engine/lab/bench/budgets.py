"""Budgets as the command line of `sekv bench` has them: a share, tokens, or everything."""

from __future__ import annotations

from engine.types import AskOptions

ALL = "all"
"""The budget that zooms everything, as `sekv ask --full` does: what the codes alone lose."""


def options_of(budget: str, coverage: float, most: int) -> AskOptions:
    """How to ask at a budget; "" stands for a method that keeps everything.

    Args:
        coverage: as `AskOptions`.  most: tokens of an answer.
    """
    if budget == ALL:
        return AskOptions(budget="100%", full=True, max_new_tokens=most, whole=False)
    return AskOptions(budget=budget or "100%", coverage=coverage, max_new_tokens=most, whole=False)
