"""Weights of a CPU model in the 16 bits that they were published in.

A float32 model reads twice the bytes that its checkpoint has, and on many processors torch's
float32 products are the slower ones, too. FBGEMM, which torch ships, multiplies float32 activations
with float16 weights in float32 arithmetic. Only weights that float16 holds are packed, so that
results differ from the float32 model's only by the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 512
"""Inputs that FBGEMM packs together: 576 take as many bytes as 1,024."""

TALL = 8192
"""Outputs from which on the inputs that fill no block are kept apart in float32. Of a smaller
matrix the second product takes longer than the bytes are worth."""

OUTPUTS = 4096
"""Outputs of a tall matrix that are packed at once: a third of the time that all take together, and
no float32 copy of all of it."""

PACKERS = 4
"""Threads that pack at most, where torch has as many."""

ENGINES = {"fbgemm", "x86"}
"""Quantized engines of torch that have the product."""

LOST = 2.0**-20
"""What float16 may take from any weight, over the largest of its matrix. bfloat16 weights pass, as
only tiny ones lose bits. Weights trained in float32 do not: they lose 2^-12 of themselves."""


class HalfLinear(nn.Module):
    """`nn.Linear` with packed float16 weights: float32 [..., in] -> float32 [..., out]."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach().float()
        weight, whole = linear.weight.detach(), _packed_inputs(linear)
        parts = [weight] if self.out_features < TALL else torch.split(weight, OUTPUTS)
        biases = [None] * len(parts) if bias is None else torch.split(bias, [len(x) for x in parts])
        pack = torch.ops.quantized.linear_prepack_fp16
        self._packed = [
            pack(part[:, :whole].float().contiguous(), beside)
            for part, beside in zip(parts, biases, strict=True)
        ]
        self._whole = whole
        self._rest = None if whole == linear.in_features else weight[:, whole:].T.float()

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16
        packed = x if self._rest is None else x[..., : self._whole]
        parts = [product(packed, part) for part in self._packed]
        out: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if self._rest is not None:
            out.view(-1, self.out_features).addmm_(x.flatten(0, -2)[:, self._whole :], self._rest)
        return out

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, float16"


class HalfEmbedding(nn.Module):
    """`nn.Embedding` with float16 rows: ids [...] -> float32 [..., d].

    Rows that are float16 already stay where they are, in the checkpoint's mapped file: only the
    pages of those that are looked up are ever in memory.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.weight = embedding.weight.detach().half()

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


PACKED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: HalfLinear,
    nn.Embedding: HalfEmbedding,
}
"""What takes the place of which module. A subclass may compute otherwise and is left as it is."""


def pack_weights(model: nn.Module, read: Callable[[Tensor], None] = lambda weight: None) -> None:
    """Have the linear layers and embeddings of a CPU model hold float16, where that loses nothing,
    and all else in float32. Gradients do not pass through what is packed.

    read: called with every weight that was packed and is not needed here any more.
    """
    places = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) in PACKED
    ]

    def pack(place: tuple[nn.Module, str]) -> None:
        child = getattr(*place)
        if _fits_half(child.weight):
            setattr(*place, PACKED[type(child)](child))
            read(child.weight)

    # Each lets go of what it has packed; torch packs on one core and without Python's lock.
    with ThreadPoolExecutor(min(PACKERS, torch.get_num_threads())) as threads:
        for _ in threads.map(pack, places):
            pass
    model.float()


def _packed_inputs(linear: nn.Linear) -> int:
    """How many of a layer's inputs are packed. The rest of a block is kept apart where that takes
    fewer bytes in float32 than a whole block does in float16."""
    rest = linear.in_features % BLOCK
    if linear.out_features < TALL or linear.in_features < BLOCK or 2 * rest >= BLOCK:
        return linear.in_features
    return linear.in_features - rest


def can_pack() -> bool:
    """Whether torch has the products on this machine."""
    return torch.backends.quantized.engine in ENGINES


def _fits_half(weight: Tensor) -> bool:
    if weight.dtype == torch.float16:
        return True
    exact = weight.detach().float()
    lost = (exact - exact.half().float()).abs().amax()
    return bool(lost <= LOST * exact.abs().amax())
