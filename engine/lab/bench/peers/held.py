"""A document as a peer holds it, in place of a session's own memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from engine.attention.layer import LayerMemory
from engine.attention.shared import Shared
from engine.attention.shares import Limits
from engine.attention.softmax import merge_resolutions
from engine.attention.view import no_spans
from engine.compression.params import LayerParams
from engine.compression.scores import NEG_INF, group_queries
from engine.compression.span_tables import SpanTables
from engine.compression.terms import PLAIN, Terms
from engine.errors import SekvError
from engine.memory.fitting import parse_budget
from engine.memory.open import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from engine.answer.session import Session

FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a library of others may raise when it does not suit a model; it names no errors."""


class PeerError(SekvError):
    """A peer cannot hold this document; its row says why."""


class Peer(Protocol):
    """One system. name: as `--method` has it. whole: it holds everything, so it has no budget.
    source: what it is and where from."""

    @property
    def name(self) -> str: ...
    @property
    def whole(self) -> bool: ...
    @property
    def source(self) -> str: ...

    def missing(self) -> str:
        """Why it cannot run here, "" if it can."""

    def hold(self, session: Session, budget: str, place: Path) -> int:
        """Put what this peer keeps of a session's document in place of the session's memory.

        Args:
            session: open on a store of method `full`.  place: a folder for files of its own.
        Returns:
            Bytes that it keeps on the disk, 0 for peers that keep none.
        Raises:
            PeerError: it cannot.
        """


@dataclass(frozen=True)
class Held:
    """One layer. nbytes: of it that lie on the device while questions are answered.

    rows: k, v [Hkv, P, D] to attend to, made anew where they are kept in another form.
    hidden: bool [Hkv, P], rows that no query may see, or None. bias: [Hkv, P] nats that are added
    to every score of a row, or None. seen: bool [Hkv, N], which document tokens are attended to one
    by one, None where that is not known.
    """

    nbytes: int
    rows: Callable[[], tuple[Tensor, Tensor]]
    hidden: Tensor | None = None
    bias: Tensor | None = None
    seen: Tensor | None = None

    @classmethod
    def plain(cls, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Held:
        """Rows kept as they are; what is hidden has to be known too."""
        return cls(
            k.nbytes + v.nbytes + (0 if hidden is None else hidden.nbytes), lambda: (k, v), hidden
        )


class HeldLayer(LayerMemory):
    """A layer of which only what a peer holds is seen."""

    def __init__(self, layer: LayerMemory, shared: Shared, held: Held):
        rows = (layer.pinned_k[:, :0], layer.pinned_v[:, :0], layer.pinned_token[:0])
        limits, view = Limits(math.inf, 1.0), no_spans(layer.device)
        nothing, recipe = LayerParams(), layer.recipe
        super().__init__(
            layer.layer, recipe, shared, limits, nothing, rows, view, SpanTables(), layer.host
        )
        self.held = held

    @property
    def fixed_bytes(self) -> int:
        return self.held.nbytes

    @property
    def device_bytes(self) -> int:
        return self.held.nbytes  # no tables of ours

    def attend(
        self,
        q: Tensor,
        live_k: Tensor,
        live_v: Tensor,
        seen: Tensor | None,
        terms: Terms = PLAIN,
    ) -> Tensor:
        terms.check_plain("the comparison with peers")
        rows = q.shape[1]
        q = group_queries(q, self.heads)
        scale = 1 / math.sqrt(self.size)
        k, v = self.held.rows()
        far = q @ k.float().mT * scale
        if self.held.bias is not None:
            far = far + self.held.bias[:, None]
        if self.held.hidden is not None:
            far = far.masked_fill(self.held.hidden[:, None], NEG_INF)
        live = q @ live_k.float().mT * scale
        if seen is not None:
            live = live.masked_fill(~seen.repeat(q.shape[1] // rows, 1), NEG_INF)
        out, _ = merge_resolutions([far, live], [v, live_v])
        return out.reshape(-1, rows, self.size)


Make = Callable[[int, LayerMemory, Shared], HeldLayer]
"""A layer by its number, from the session's own and what all share."""


def put(session: Session, held: Sequence[Held]) -> None:
    """Let a session answer from these layers and nothing else."""
    put_layers(session, lambda index, layer, shared: HeldLayer(layer, shared, held[index]))


def put_layers(session: Session, make: Make) -> None:
    """Let a session answer from layers that attend in their own way."""
    whole = session.memory
    shared = Shared(whole.shared.bounds, whole.shared.windows)
    shared.layers = [make(index, layer, shared) for index, layer in enumerate(whole.layers)]
    session.answer_from(Memory(shared.layers, shared, whole.length, whole.states))


def allowed_bytes(session: Session, budget: str) -> float:
    """Device bytes of a budget, as every method has them: of so many 16-bit rows.

    Raises:
        BudgetError: the budget cannot be understood.
    """
    model = session.store.manifest.model
    row = 2 * model.numbers_per_token
    return row * parse_budget(budget, session.store.manifest.tokens)


def failure(peer: Any, error: Exception) -> PeerError:
    """An error of a peer's library as one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    return PeerError(f"{peer.name} failed: {type(error).__name__}: {first[:200]}".rstrip(": "))
