"""Evidence: which document tokens an answer was read from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.answer.evidence import COPY, EARLY, GLANCE, Evidence
from tiny_steps import step

IDS = torch.tensor([7, 8, 7, 9, 8, 7])


def test_attention_to_the_token_that_is_said_counts_in_full() -> None:
    """A query head's other attention counts by the share it copied; query heads add up."""
    evidence = Evidence(IDS)
    evidence.record(step([[0, 3, 4]], [[[0.1, 0.2, 0.2], [0.4, 0.0, 0.1]]]))
    assert torch.equal(evidence.weight, torch.zeros(6))
    evidence.add_token(7)
    expected = torch.zeros(6)
    expected[[0, 3, 4]] = torch.tensor([0.5 * COPY, 0.2 * 0.2, 0.2 * 0.2 + 0.8 * 0.1])
    torch.testing.assert_close(evidence.weight, expected)
    evidence.add_token(7)
    torch.testing.assert_close(evidence.weight, expected)


def test_layers_heads_and_steps_add_up() -> None:
    evidence = Evidence(IDS)
    for layer in range(2):
        evidence.record(step([[0], [0]], [[[0.25]], [[0.5]]], layer=layer))
    evidence.add_token(7)
    evidence.record(step([[0], [1]], [[[1.0]], [[1.0]]]))
    evidence.add_token(8)
    # Layer 0 has copied a quarter and a half so far: of its last looks each head copied one.
    assert float(evidence.weight[0]) == pytest.approx(2 * 0.75 * COPY + 0.25 / 1.25)
    assert float(evidence.weight[1]) == pytest.approx(COPY)


def test_heads_that_copy_tell_the_evidence_and_others_hardly() -> None:
    """Two heads look at different places; only the one that copied before is believed."""
    evidence = Evidence(IDS)
    evidence.record(step([[0], [3]], [[[0.5]], [[0.5]]]))
    evidence.add_token(7)  # which stands at 0
    evidence.record(step([[1], [3]], [[[0.5]], [[0.5]]]))
    evidence.add_token(4095)  # which stands nowhere
    assert evidence.weight[1] == pytest.approx(0.5 * 0.5)
    assert evidence.weight[3] == pytest.approx(2 * 0.5 * GLANCE)


def test_rows_that_are_no_document_tokens_are_no_evidence() -> None:
    """The prompt's prefix and the padding between heads."""
    evidence = Evidence(IDS)
    evidence.record(step([[-1, 2, -1]], [[[0.9, 0.1, 0.5]]]))
    evidence.add_token(7)
    assert evidence.weight.tolist() == pytest.approx([0, 0, 0.1, 0, 0, 0])


def test_measured_heads_count_by_their_weight_and_with_all_rows_of_the_question() -> None:
    """Two KV heads of two query heads each; the second layer has no head that counts."""
    heads = torch.tensor([[0.5, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    evidence = Evidence(IDS, heads)
    for layer in (0, 1):
        seen = [[[0.2, 0.4], [0.9, 0.9]], [[0.7, 0.7], [0.1, 0.3]]]
        evidence.record(step([[0, 3], [3, -1]], seen, layer=layer))
    evidence.add_token(7)  # a token that stands at 0 counts no more than another
    expected = torch.zeros(6)
    expected[[0, 3]] = torch.tensor([2 * 0.5 * 0.2, 2 * 0.5 * 0.4 + 2 * 0.1])
    torch.testing.assert_close(evidence.weight, expected)
    evidence.record(step([[5], [5]], [[[0.5], [0.5]], [[0.5], [0.5]]]))
    evidence.add_token(7)
    torch.testing.assert_close(evidence.of_question, expected)  # the question's part stays
    assert float(evidence.weight[5]) == pytest.approx(2 * 0.5 * 0.5 + 2 * 0.5)
    assert float(evidence.answered[5]) == pytest.approx((2 * 0.5 * 0.5 + 2 * 0.5) / 1.5)


def test_support_is_judged_by_the_first_tokens_of_an_answer() -> None:
    """However long it goes on, looking elsewhere."""
    evidence = Evidence(IDS, torch.tensor([[1.0]]))
    for row in range(3 * EARLY):
        evidence.record(step([[1 if row < EARLY else 4]], [[[0.3]]]))
        evidence.add_token(8)
    assert evidence.answered.tolist() == pytest.approx([0, 0.6, 0, 0, 0, 0])
    assert float(evidence.weight[4]) == pytest.approx(2 * EARLY * 0.6)


def test_attention_to_a_summary_counts_for_all_tokens_of_its_span() -> None:
    heads = torch.tensor([[0.5, 1.0]])
    evidence = Evidence(IDS, heads)
    seen = replace(
        step([[-1]], [[[0.3], [0.3]]]),
        spans=torch.tensor([1, 2]),
        starts=torch.tensor([1, 3]),
        lengths=torch.tensor([2, 3]),
        summary=torch.tensor([[[0.2, 0.0], [0.4, 0.3]]]),
    )
    evidence.record(seen)
    evidence.add_token(7)
    assert evidence.weight.tolist() == pytest.approx([0, 0.25, 0.25, 0.1, 0.1, 0.1])


def test_what_led_to_no_token_is_forgotten() -> None:
    evidence = Evidence(IDS)
    evidence.record(step([[0]], [[[1.0]]]))
    evidence.forget()
    evidence.add_token(7)
    assert torch.equal(evidence.weight, torch.zeros(6))
