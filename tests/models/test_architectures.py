"""Every causal architecture of the installed transformers is served, or refused for a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import CONFIG_MAPPING

from architectures import KINDS, REFUSED, SERVED, by_configuration, known, release, walk
from engine.api import check_model
from engine.models.identity import of_configuration
from models_page import CHECKPOINTS
from repository import ROOT
from tiny_architectures import configuration, save

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 10000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "rope_theta": 10000.0,
    },
    "proportional": {
        "rope_type": "proportional",
        "factor": 2.0,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + i for i in range(8)],
        "original_max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
}


def test_the_walk_is_of_this_release() -> None:
    """Another release may have other architectures: walk again and look at what changed."""
    if release() != transformers.__version__:
        pytest.skip(f"walked with transformers {release()}")
    assert list(known()) == list(KINDS)


def test_most_architectures_are_served_and_others_refused_in_one_line() -> None:
    found = known()
    assert sum(each.outcome == SERVED for each in found.values()) >= 55
    for each in found.values():
        assert "\n" not in each.detail
        assert bool(each.detail) == (each.outcome != SERVED)
        assert each.outcome != SERVED or (each.difference or 0.0) <= 1e-4


def test_the_page_of_models_is_the_walk() -> None:
    """Written by `make docs`."""
    from models_page import page

    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page()


def test_checkpoints_whose_configuration_is_the_library_s_default_have_its_shape(
    subtests: pytest.Subtests,
) -> None:
    for entry in json.loads(CHECKPOINTS.read_text(encoding="utf-8")):
        assert entry["checked"], entry["id"]
        if entry["checked"].startswith("transformers"):
            settings = dict(entry["config"])
            kind = CONFIG_MAPPING[settings.pop("model_type")]
            with subtests.test(entry["id"]):
                assert of_configuration(kind(**settings)) == of_configuration(kind())


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_scaled_positions_are_exact(rope: str, tmp_path: Path) -> None:
    """Where frequencies do not depend on the length, the text is longer than what the scaling
    begins at; where they do, they are those of the longest context (see test_rope_length)."""
    config = configuration("llama", rope_parameters=ROPES[rope])
    found = check_model(str(save(config, tmp_path / "model")))
    assert found.passed
    assert found.tokens > 512


@pytest.mark.slow
def test_a_walk_finds_what_is_written(subtests: pytest.Subtests, tmp_path: Path) -> None:
    """Some minutes. What is refused by its configuration is refused with the same words."""
    for kind, before in known().items():
        with subtests.test(kind):
            if before.outcome == REFUSED and by_configuration(kind) == before.detail:
                continue
            found = walk(kind, tmp_path / kind)
            assert (found.outcome, found.detail) == (before.outcome, before.detail)
