"""NumPy arrays and columns as they travel: `Tensor` messages and little-endian byte columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from statestream.contract.errors import BadFrame, BadTensor, quoted
from statestream.contract.signature import DTYPES
from statestream.v1.tensor_pb2 import Tensor

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

HANDLE: Final = np.dtype("<u4")
"""A column of handles or lengths."""

POSITION: Final = np.dtype("<i8")
"""A column of positions or epochs; read as signed, so that differences are signed too."""

MAX_CURSOR_BYTES: Final = 256
"""The longest cursor that travels with a chunk or a mark."""

_MOST_BYTES = 1 << 62
"""What NumPy can count."""

# NumPy works a dtype's name out anew each time, which costs as much as the rest of a small message.
_NAMES: dict[np.dtype[Any], str] = {}


def to_tensor(name: str, array: Array) -> Tensor:
    """Writes an array; a big-endian or strided one is copied into wire order first.

    Raises:
        BadTensor: The dtype does not travel.
    """
    dtype = array.dtype
    known = _NAMES.get(dtype)
    if known is None:
        if dtype.name not in DTYPES:
            raise BadTensor(
                f"{name} has dtype {dtype}; expected one of {', '.join(sorted(DTYPES))}", metadata={"field": name}
            )
        known = _NAMES[dtype] = dtype.name
    if dtype.byteorder == ">":
        array = array.astype(dtype.newbyteorder("<"))
    return Tensor(name=name, dtype=known, shape=array.shape, data=array.tobytes())


def from_tensor(tensor: Tensor) -> Array:
    """Reads a tensor as a writable array of its own.

    Raises:
        BadTensor: The dtype is unknown, or the data is not as long as dtype and shape say.
    """
    # Repeated fields are sliced, here and below: that copies them in one call, where a loop asks for item after item.
    shape, data = tensor.shape[:], tensor.data
    try:
        # One call in place of frombuffer, reshape and copy.
        array: Array = np.ndarray(shape, DTYPES[tensor.dtype], bytearray(data))
    except (KeyError, TypeError, ValueError):
        raise _refusal(tensor) from None
    # To NumPy a lone -1 is as many as there are.
    if array.nbytes != len(data) or -1 in shape:
        raise _refusal(tensor)
    return array


def view_of(tensor: Tensor) -> Array:
    """Reads a tensor as a read-only view of its bytes.

    Raises:
        BadTensor: The dtype is unknown, or the data is not as long as dtype and shape say.
    """
    shape, data = tensor.shape[:], tensor.data  # Once: every look at the data is a copy.
    try:
        array: Array = np.ndarray(shape, DTYPES[tensor.dtype], data)
    except (KeyError, TypeError, ValueError):
        raise _refusal(tensor) from None
    if array.nbytes != len(data) or -1 in shape:
        raise _refusal(tensor)
    return array


def _refusal(tensor: Tensor) -> BadTensor:
    """Why a tensor is none."""
    shape, dtype = list(tensor.shape), DTYPES.get(tensor.dtype)
    if dtype is None:
        why = f"dtype {quoted(tensor.dtype)}; expected one of {', '.join(sorted(DTYPES))}"
    # An axis without anything does not make the others any shorter for NumPy.
    elif math.prod(max(size, 1) for size in shape) * dtype.itemsize > _MOST_BYTES:
        why = f"the shape {shape}, which is longer than anything can be"
    else:
        expected = math.prod(max(size, 0) for size in shape) * dtype.itemsize
        why = f"{len(tensor.data)} bytes; expected {expected} for {tensor.dtype}{shape}"
    return BadTensor(f"tensor {quoted(tensor.name)} has {why}", metadata={"field": tensor.name})


def from_tensors(tensors: Sequence[Tensor]) -> dict[str, Array]:
    """Reads tensors by name."""
    return {tensor.name: from_tensor(tensor) for tensor in tensors[:]}


def handles_column(handles: Ints) -> bytes:
    """Writes handles or lengths."""
    return handles.astype(HANDLE).tobytes()


def positions_column(positions: Ints) -> bytes:
    """Writes positions or epochs."""
    return positions.astype(POSITION, copy=False).tobytes()


def read_handles(column: bytes) -> Ints:
    """Reads handles or lengths.

    Raises:
        BadFrame: The column is not a whole number of entries.
    """
    if len(column) % 4:
        raise BadFrame(f"a column of uint32 has {len(column)} bytes; expected a multiple of 4")
    return np.frombuffer(column, HANDLE).astype(np.int64)


def read_positions(column: bytes, count: int) -> Ints:
    """Reads positions or epochs of `count` rows; an empty column stands for zeros.

    Raises:
        BadFrame: The column does not have `count` entries.
    """
    if not column:
        return np.zeros(count, np.int64)
    if len(column) != 8 * count:
        raise BadFrame(f"a column of uint64 has {len(column)} bytes; expected {8 * count} for {count} rows")
    return np.frombuffer(column, POSITION)
