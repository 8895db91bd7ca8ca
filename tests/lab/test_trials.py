"""Trials of the laboratory keep to their bytes, and do what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.compression.methods import METHODS
from engine.errors import BudgetError
from engine.lab.bench import peers
from engine.lab.bench.fidelity.found_mass import held_tokens
from engine.lab.bench.peers import attention_matching
from engine.lab.bench.peers.held import HeldLayer, PeerError, allowed_bytes
from engine.lab.bench.peers.reread import reread
from engine.lab.bench.peers.trials import TRIALS, best, most_looked_at
from engine.lab.bench.read_once import ReadOnce
from engine.models.reader import Reader
from tiny_books import QUESTION, log, read, session


@pytest.fixture(scope="module")
def once(reader: Reader) -> ReadOnce:
    return ReadOnce.of(reader, [METHODS["sekv"]])


@pytest.fixture(scope="module")
def whole(model: Path, once: ReadOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the full cache of one window."""
    return read(tmp_path_factory.mktemp("whole"), model, log(12), reader=once, method="full")


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_trial_keeps_to_its_budget_and_answers(
    trial: peers.trials.Trial, once: ReadOnce, whole: Path, tmp_path: Path
) -> None:
    for budget in ("45%", "70%"):
        with session(whole, once, budget="100%") as opened:
            allowed = allowed_bytes(opened, budget)
            trial.hold(opened, budget, tmp_path)
            used = opened.memory.shared.device_bytes
            assert 0.7 * allowed < used <= allowed
            assert opened.ask(QUESTION).memory.device_kv_bytes == used
            tokens = opened.store.manifest.tokens
            for layer in opened.memory.layers:
                assert isinstance(layer, HeldLayer)
                held = held_tokens(layer, tokens)
                assert held is not None
                assert held.shape == (2, tokens)


def test_what_a_repetition_looks_at_is_seen_once_for_all_trials(
    once: ReadOnce, whole: Path, reader: Reader
) -> None:
    """Shares of attention: none above one, and of all tokens together no more than one a query."""
    with session(whole, once, budget="100%") as opened:
        seen = reread(opened)
        assert reread(opened) is seen
        tokens = opened.store.manifest.tokens
        for most, typical in zip(seen.most, seen.typical, strict=True):
            assert most.shape == typical.shape == (2, tokens)
            assert bool((typical <= most).all())
            assert float(most.max()) <= 1
            assert float(typical.square().sum(-1).max()) <= 1


def test_documents_of_several_windows_are_left_to_others(
    model: Path, once: ReadOnce, tmp_path: Path
) -> None:
    store = read(tmp_path, model, log(12), reader=once, method="full", window=400)
    with session(store, once, budget="100%") as opened, pytest.raises(PeerError, match="window"):
        peers.named("trial:kvzip").hold(opened, "50%", tmp_path)


def test_with_all_tokens_kept_matching_changes_nothing() -> None:
    q, k, v = (torch.randn(2, n, 8) for n in (200, 20, 20))
    keep = torch.ones(2, 20, dtype=torch.bool)
    bias, values = attention_matching.match(q, k, v, keep)
    assert float(bias.abs().max()) < 1e-3
    torch.testing.assert_close(values, v, atol=2e-2, rtol=1e-2)


def test_matched_rows_come_nearer_than_the_same_rows_unchanged() -> None:
    """Of queries that were not matched on, the mass of the kept keys and the output over them."""
    torch.manual_seed(0)
    k, v = torch.randn(1, 64, 8), torch.randn(1, 64, 8)
    seen, new = torch.randn(1, 600, 8), torch.randn(1, 100, 8)
    keep = torch.arange(64)[None] % 4 == 0
    bias, values = attention_matching.match(seen, k, v, keep)
    scores = new @ k.mT / 8**0.5
    total, out = scores.logsumexp(-1), scores.softmax(-1) @ v
    plain, mended = scores[..., keep[0]], scores[..., keep[0]] + bias[:, None, keep[0]]
    apart = [(total - s.logsumexp(-1)).abs().mean() for s in (plain, mended)]
    assert apart[1] < 0.2 * apart[0]
    wrong = [
        (out - s.softmax(-1) @ rows[:, keep[0]]).norm()
        for s, rows in ((plain, v), (mended, values))
    ]
    assert wrong[1] < 0.8 * wrong[0]


def test_rows_are_ranked_over_all_layers_and_heads_or_within_each() -> None:
    scores = [torch.tensor([[0.9, 0.1, 0.2]]), torch.tensor([[0.3, 0.8, 0.0]])]
    assert [keep.tolist() for keep in best(scores, 3)] == [
        [[True, False, False]],
        [[True, True, False]],
    ]
    mine = most_looked_at(torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.1, 0.0]]), torch.tensor([2, 1]))
    assert mine.tolist() == [[False, True, True], [True, False, False]]


def test_families_are_written_out_and_trials_are_nobodys_system() -> None:
    assert peers.expand(["trial"]) == tuple(trial.name for trial in TRIALS)
    assert not set(peers.expand(["peers"])) & set(peers.expand(["trial"]))
    with pytest.raises(BudgetError, match="unknown peer 'trial:x'"):
        peers.named("trial:x")
