"""Answers that came in part: what is there of each, until the last part is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from statestream.contract.errors import BadFrame
from statestream.contract.signature import DTYPES, numpy_dtype
from statestream.contract.tensors import HANDLE, POSITION, Array
from statestream.core.tickets import Outputs
from statestream.v1.inference_pb2 import PartFrame, ResultFrame


class Whole(NamedTuple):
    """An answer of which all parts came: the result frame that it would have been, and its outputs."""

    result: ResultFrame
    outputs: Outputs


class _Partial:
    """The parts that came so far, put where they belong."""

    def __init__(self, first: PartFrame) -> None:
        self.steps = first.steps
        self.came = 0
        self.outputs: Outputs = {}
        self._bytes: list[Array] = []
        for tensor in first.outputs:
            if tensor.dtype not in DTYPES or min(tensor.shape, default=0) < 0:
                raise BadFrame(f"output {tensor.name} is {tensor.dtype}{list(tensor.shape)}, which no output can be")
        size = sum(math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize for tensor in first.outputs)
        if size != first.size:
            raise BadFrame(f"an answer in parts has {first.size} bytes; its outputs have {size}")
        for tensor in first.outputs:
            array = np.empty(tensor.shape, numpy_dtype(tensor.dtype).newbyteorder("<"))
            self.outputs[tensor.name] = array
            self._bytes.append(array.reshape(-1).view(np.uint8))

    def put(self, part: PartFrame) -> None:
        """Takes the next part."""
        data, at, begin = np.frombuffer(part.data, np.uint8), part.offset, 0
        for target in self._bytes:
            end = begin + len(target)
            low, high = max(at, begin), min(at + len(data), end)
            if low < high:
                target[low - begin : high - begin] = data[low - at : high - at]
            begin = end
        self.came += len(data)


class Parts:
    """Answers whose last part is still to come, by frame, session and position."""

    def __init__(self) -> None:
        self._partial: dict[tuple[int, int, int], tuple[int, _Partial]] = {}

    def __len__(self) -> int:
        return len(self._partial)

    def clear(self) -> None:
        """The stream is gone: on the next one answers begin anew."""
        self._partial.clear()

    def take(self, frame: int, part: PartFrame) -> Whole | None:
        """Takes a part; the answer, where it was the last one.

        Raises:
            BadFrame: It is not the part that had to come, or does not fit the first one.
        """
        key = (frame, part.handle, part.position)
        number, partial = self._partial.pop(key, (0, None))
        if part.part == 0:
            number, partial = 0, _Partial(part)
        if partial is None or part.part != number or part.offset != partial.came:
            raise BadFrame(
                f"part {part.part} of {part.parts} came, from byte {part.offset} on; expected part {number}, from byte"
                f" {partial.came if partial is not None else 0} on"
            )
        partial.put(part)
        if number + 1 < part.parts:
            self._partial[key] = number + 1, partial
            return None
        if partial.came != part.size:
            raise BadFrame(f"the parts of an answer have {partial.came} bytes; expected {part.size}")
        result = ResultFrame(
            handles=np.array([part.handle], HANDLE).tobytes(),
            positions=np.array([part.position], POSITION).tobytes(),
            steps=partial.steps,
            durable_positions=np.array([part.durable_position], POSITION).tobytes(),
        )
        return Whole(result, partial.outputs)
