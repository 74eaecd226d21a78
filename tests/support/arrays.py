"""Arrays as tests name them: chunks by input, the columns of frames, tensors of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from statestream.v1.tensor_pb2 import Tensor

Arrays = Mapping[str, np.ndarray]


def u32(*values: int) -> bytes:
    return np.asarray(values, "<u4").tobytes()


def u64(*values: int) -> bytes:
    return np.asarray(values, "<u8").tobytes()


def tensor(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def array_of(message: Tensor) -> np.ndarray:
    return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))


def arrays_of(messages: Iterable[Tensor]) -> dict[str, np.ndarray]:
    return {message.name: array_of(message) for message in messages}


def pack(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Chunks of several sessions, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def length(chunk: Arrays) -> int:
    return len(next(iter(chunk.values())))


def cut(inputs: Arrays, start: int, end: int) -> dict[str, np.ndarray]:
    return {name: array[start:end] for name, array in inputs.items()}


def same_bits(one: Arrays, other: Arrays) -> bool:
    """Whether two sets of arrays are equal in every bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
