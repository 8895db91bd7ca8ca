"""Tensors in, bytes out and back: the only place of the store that knows torch.

Converts between torch or numpy arrays and the blocks of `container`. torch is imported when a torch
tensor is wanted, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.store.container import Block

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import torch

    from engine.store.container import TensorInfo

    Array = torch.Tensor | npt.NDArray[Any]

_NUMPY = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _NUMPY.items()}

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}


def to_block(array: Array) -> Block:
    """The bytes of one tensor, row-major, on the CPU; no copy where it is that already.

    Raises:
        ValueError: a dtype that a store cannot hold.
    """
    if isinstance(array, np.ndarray):
        return _numpy_block(array)
    import torch

    names = {getattr(torch, attribute): name for name, attribute in _TORCH.items()}
    if array.dtype not in names:
        raise ValueError(f"a store cannot hold {array.dtype}")
    flat = array.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
    return Block(names[array.dtype], tuple(array.shape), data)


def to_blocks(arrays: Mapping[str, Array]) -> dict[str, Block]:
    """`to_block` of every member."""
    return {name: to_block(array) for name, array in arrays.items()}


def to_numpy(data: npt.NDArray[np.uint8], info: TensorInfo) -> npt.NDArray[Any]:
    """View the bytes of one tensor as numpy. data: [info.bytes] uint8.

    Raises:
        ValueError: numpy has no such dtype (bfloat16 and the 8-bit floats).
    """
    if info.dtype not in _NUMPY:
        raise ValueError(f"numpy has no {info.dtype}")
    return data.view(_NUMPY[info.dtype]).reshape(info.shape)


def to_torch(data: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """View the bytes of one tensor as torch. data: [info.bytes] uint8."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH[info.dtype])
    return data.view(dtype).reshape(info.shape)


def _numpy_block(array: npt.NDArray[Any]) -> Block:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise ValueError(f"a store cannot hold {array.dtype}")
    flat = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
    data = flat.view(np.uint8).data if flat.size else memoryview(b"")
    return Block(_NAMES[dtype], tuple(array.shape), data)
