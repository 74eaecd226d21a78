"""Datatypes: the protocol's words for element types, and elements as bytes.

BYTES are elements of any length, each behind its length as four bytes, little-endian. BF16 has no dtype in NumPy: its
elements are float32 here, and every one of them is a float32 exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import quoted
from statestream_server.arrays import Array

BYTES: Final = "BYTES"
BF16: Final = "BF16"
MOST_TEXTS: Final = 1 << 18
"""Elements of a tensor of BYTES, each of which is an object."""
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The dtype of every datatype but BYTES and BF16."""
_NAMES: Final = {dtype.name: name for name, dtype in DTYPES.items()}


def datatype_of(dtype: str) -> str:
    """The protocol's word for a dtype of a signature."""
    return _NAMES[dtype]


def config_type(datatype: str) -> str:
    """The name of a datatype in a model's configuration."""
    return f"TYPE_{'STRING' if datatype == BYTES else datatype}"


def array_of(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """An array of raw contents: a read-only view, of BYTES an array of bytes objects.

    Raises:
        BadTensor: The datatype does not exist, or the bytes do not fit the shape.
    """
    count = count_of(name, shape)
    if datatype == BYTES:
        if count > MOST_TEXTS:
            raise errors.BadTensor(
                f"input {quoted(name)} has {count} elements of {BYTES}; expected at most {MOST_TEXTS}",
                metadata={"field": name},
            )
        return _objects(_elements(name, data, count), shape)
    dtype = np.dtype("<u2") if datatype == BF16 else dtype_of(name, datatype)
    if len(data) != count * dtype.itemsize:
        raise errors.BadTensor(
            f"input {quoted(name)} has {len(data)} bytes; expected {count * dtype.itemsize} for"
            f" {datatype}{list(shape)}",
            metadata={"field": name},
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    # The upper half of a float32 is a BF16.
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32) if datatype == BF16 else array


def dtype_of(name: str, datatype: str) -> np.dtype[Any]:
    """The dtype of a datatype.

    Raises:
        BadTensor: It does not exist, or has none.
    """
    found = DTYPES.get(datatype)
    if found is None:
        raise errors.BadTensor(
            f"input {quoted(name)} has datatype {quoted(datatype)}; expected one of {', '.join(DTYPES)}, {BF16},"
            f" {BYTES}",
            metadata={"field": name},
        )
    return found


def count_of(name: str, shape: tuple[int, ...]) -> int:
    """The number of elements of a shape.

    Raises:
        BadTensor: An axis is negative, or there are more elements than can be counted.
    """
    count = 1
    for size in shape:
        count *= max(size, 0)
    if min(shape, default=0) < 0 or count >= 1 << 56 or len(shape) > 32:
        raise errors.BadTensor(
            f"input {quoted(name)} has the shape {list(shape)[:32]}; expected up to 32 axes of 0 or more elements",
            metadata={"field": name},
        )
    return count


def raw(array: Array) -> bytes:
    """An array as raw contents."""
    if array.dtype == object:
        return b"".join(len(each).to_bytes(4, "little") + each for each in array.ravel().tolist())
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def texts(elements: Iterable[str], shape: tuple[int, ...]) -> Array:
    """An array of BYTES."""
    return _objects([each.encode() for each in elements], shape)


def _objects(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _elements(name: str, data: bytes, count: int) -> list[bytes]:
    """The elements of raw BYTES.

    Raises:
        BadTensor: They are not so many.
    """
    found, at = list[bytes](), 0
    while at + 4 <= len(data) and len(found) < count:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            break
        found.append(data[at + 4 : end])
        at = end
    if len(found) != count or at != len(data):
        raise errors.BadTensor(
            f"input {quoted(name)} has {len(data)} bytes; expected {count} elements of {BYTES}, each behind its length"
            " as 4 bytes",
            metadata={"field": name},
        )
    return found
