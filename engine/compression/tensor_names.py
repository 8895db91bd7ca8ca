"""Names of a store's tensors that more than one file spells. torch-free."""

from __future__ import annotations

KEYS, VALUES, SKETCH, SUMMARIES = "k", "v", "sketch", "value"
"""How the names of a layer's parameters begin: of what codes keys and values, of the sketch, and of
the values that stand for spans."""

CALIBRATED = ("retrieval_heads", "layer_share")
"""What was measured of a layer of the model beforehand; see `params.LayerCalibration`."""

CODING_ERRORS = "error.s"
"""What the codes of each span lost; see `span_tables.DeviceLayer`."""


def bits_of(part: str) -> str:
    """The bits that a quantizer gives every component, uint8 [Hkv, R]."""
    return f"{part}_bits"


def of_layer(layer: int, name: str) -> str:
    """A layer's tensor in a section of all layers."""
    return f"{layer}.{name}"
