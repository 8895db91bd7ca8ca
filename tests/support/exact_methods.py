"""Methods that lose nothing: every row kept at full rank. Not a test itself."""

from __future__ import annotations

from dataclasses import replace

from engine.compression.codecs.shared_basis import SharedBasis
from engine.compression.codecs.span_svd import SpanSVD
from engine.compression.methods import METHODS
from engine.compression.spans import Entropy

EXACT = {
    "sekv": replace(METHODS["sekv"], name="exact", codec=SharedBasis(bits=32), half_rows=False),
    "sekv-paper": replace(
        METHODS["sekv-paper"],
        name="exact",
        segmenter=Entropy(shortest=4),
        codec=SpanSVD(exact=True),
        half_rows=False,
        local=16,
    ),
}
"""By the method they are made of; tests put one into the table as `exact`."""
