"""Other people's systems as rows of our tables: the one place where they are named.

A peer is handed a document that the model has read, holds it in its own way without having seen
any question, and is then asked through the same session as every store: the same prompt and greedy
decoding. Its bytes are those that really lie on the device and on
the disk. The engine never imports this package, and a peer's own library is imported only when
its row is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import BudgetError
from engine.lab.bench.llamacpp import KINDS
from engine.lab.bench.peers.caches import QUANTISED, Quantized, Reloaded
from engine.lab.bench.peers.llama import LLAMA, LlamaCpp
from engine.lab.bench.peers.plain import PlainTransformers
from engine.lab.bench.peers.presses import PRESSES
from engine.lab.bench.peers.trials import TRIALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.lab.bench.peers.held import Peer

ALL = "peers"
TRIAL = "trial"
_KNOWN: tuple[Peer, ...] = (
    PlainTransformers(), Reloaded(), *map(Quantized, QUANTISED), *PRESSES,
    *(LlamaCpp("", kind) for kind in KINDS), *TRIALS,
)  # fmt: skip
PEERS = {peer.name: peer for peer in _KNOWN}


def is_peer(method: str) -> bool:
    """Whether a name of `--method` means a peer; no recipe has a colon in its name."""
    return ":" in method or is_llama(method)


def is_llama(method: str) -> bool:
    """Whether a name means llama.cpp, with or without a kind of cache and its model file."""
    return method.partition("@")[0].partition(":")[0] == LLAMA


def named(method: str) -> Peer:
    """The peer of that name.

    Raises:
        BudgetError: there is none; the line lists the known ones.
    """
    base, _, file = method.partition("@")
    if is_llama(base) and base in PEERS and file:
        return LlamaCpp(file, base.partition(":")[2] or KINDS[0])
    if method not in PEERS:
        raise BudgetError(f"unknown peer '{method}'; known: {', '.join(PEERS)}")
    return PEERS[method]


def expand(methods: Sequence[str]) -> tuple[str, ...]:
    """Names with families written out: "kvpress" is all its presses, "trial" what the laboratory
    tries, "peers" all systems of others."""
    families: dict[str, list[str]] = {}
    for name in PEERS:
        family = name.partition(":")[0]
        families.setdefault(family, []).append(name)
        if family != TRIAL:
            families.setdefault(ALL, []).append(name)
    found: list[str] = []
    for method in methods:
        found += families.get(method, [method])
    return tuple(dict.fromkeys(found))
