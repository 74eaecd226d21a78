"""Arrays that travel in parts: cut into ranges of bytes, one array after the other, and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from statestream.contract.errors import BadFrame
from statestream.contract.signature import DTYPES, numpy_dtype
from statestream.contract.tensors import Array
from statestream.v1.inference_pb2 import PartFrame
from statestream.v1.tensor_pb2 import Tensor

PART: Final = 1 << 20
"""Bytes of a part, the last one of an answer or a call excepted."""


_MOST: Final = 1 << 58
"""Elements that NumPy can count, whatever their size."""


class Cut:
    """Arrays as the bytes of parts, which are cut out when they are needed.

    Attributes:
        size: The bytes of all.
        count: How many parts there are.
    """

    def __init__(self, names: Iterable[str], arrays: Iterable[Array]) -> None:
        """Arrays by name."""
        self._arrays = [
            (name, array.astype(array.dtype.newbyteorder("<"), copy=False))
            for name, array in zip(names, arrays, strict=True)
        ]
        self._data = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, array in self._arrays]
        self.size = sum(map(len, self._data))
        self.count = max(1, -(-self.size // PART))

    def tensors(self) -> list[Tensor]:
        """The arrays without their data."""
        return [Tensor(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in self._arrays]

    def part(self, number: int) -> PartFrame:
        """One part, without what it is a part of."""
        low = number * PART
        high, begin, pieces = low + PART, 0, list[bytes]()
        for data in self._data:
            end = begin + len(data)
            if begin < high and low < end:
                pieces.append(data[max(low - begin, 0) : high - begin].tobytes())
            begin = end
        return PartFrame(part=number, parts=self.count, offset=low, size=self.size, data=b"".join(pieces))


class Partial:
    """The parts that came so far, put where they belong.

    Attributes:
        arrays: [n] by name, of which the bytes that did not come are not set.
        size: The bytes of all.
        came: Those that came.
    """

    def __init__(self, tensors: Sequence[Tensor], what: str) -> None:
        """None came; `tensors` are without data, `what` names them in messages.

        Raises:
            BadFrame: A tensor cannot be.
        """
        self.arrays: dict[str, Array] = {}
        self.came = self.number = 0
        self._bytes: list[Array] = []
        for tensor in tensors:
            longest = math.prod(max(1, size) for size in tensor.shape)
            if tensor.dtype not in DTYPES or min(tensor.shape, default=0) < 0 or longest > _MOST:
                raise BadFrame(
                    f"{what} {tensor.name} is {tensor.dtype}{list(tensor.shape)}, which no array can be",
                    metadata={"field": what},
                )
        self.size = sum(math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize for tensor in tensors)
        self._tensors = tensors

    def put(self, part: PartFrame) -> bool:
        """Takes the next part; whether it was the last.

        Raises:
            BadFrame: It is not the part that had to come, or does not fit the others.
        """
        if not self.number:
            self._begin()
        data, begin = np.frombuffer(part.data, np.uint8), 0
        at, last = part.offset, part.part + 1 == part.parts
        if part.part != self.number or at != self.came or part.size != self.size or at + len(data) > self.size:
            raise BadFrame(
                f"part {part.part} of {part.parts} came, from byte {at} on; expected part {self.number},"
                f" from byte {self.came} on, of {self.size} in {part.parts} parts",
                metadata={"field": "part"},
            )
        for target in self._bytes:
            end = begin + len(target)
            low, high = max(at, begin), min(at + len(data), end)
            if low < high:
                target[low - begin : high - begin] = data[low - at : high - at]
            begin = end
        self.came += len(data)
        self.number += 1
        if last and self.came != self.size:
            raise BadFrame(f"the parts have {self.came} bytes; expected {self.size}", metadata={"field": "part"})
        return last

    def _begin(self) -> None:
        for tensor in self._tensors:
            array = np.empty(tensor.shape, numpy_dtype(tensor.dtype).newbyteorder("<"))
            self.arrays[tensor.name] = array
            self._bytes.append(array.reshape(-1).view(np.uint8))
