"""Messages to arrays and back, checked against what was expected. Views, not copies, on the way in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from statestream.contract import errors
from statestream.contract.errors import quoted, shortened
from statestream.contract.signature import TensorSpec
from statestream.contract.tensors import MAX_CURSOR_BYTES, view_of
from statestream.v1.inference_pb2 import OpenMode
from statestream.v1.tensor_pb2 import RowError, Tensor
from statestream_server.arrays import Array
from statestream_server.edges.grpc.caps import MAX_AXES
from statestream_server.engine.table import Table
from statestream_server.refusals import recent
from statestream_server.sessions.ownership.openings import check_initial_states
from statestream_server.settings import Settings
from statestream_server.shapes import check_steps
from statestream_server.stores.base import Mode


class _Tensors(Protocol):
    """The tensors of a message."""

    def add(self) -> Tensor: ...


def column(data: bytes, dtype: str, count: int, field: str) -> Array:
    """A column of a frame.

    Raises:
        BadFrame: It has not `count` items.
    """
    width = np.dtype(dtype).itemsize
    if len(data) != count * width:
        raise errors.BadFrame(f"{field} has {len(data)} bytes; expected {count} × {width}", metadata={"field": field})
    return np.frombuffer(data, dtype)


def optional_column(data: bytes, dtype: str, count: int, field: str) -> Array:
    """A column that may be left out, which means zeros.

    Raises:
        BadFrame: It has neither 0 nor `count` items.
    """
    return column(data, dtype, count, field) if data else np.zeros(count, dtype)


def check_cursor(cursor: bytes, field: str) -> bytes:
    """A caller's cursor, which is no longer than one may be.

    Raises:
        BadFrame: It is.
    """
    if len(cursor) > MAX_CURSOR_BYTES:
        raise errors.BadFrame(
            f"a cursor has {len(cursor)} bytes; expected at most {MAX_CURSOR_BYTES}", metadata={"field": field}
        )
    return cursor


def array_of(tensor: Tensor) -> Array:
    """A tensor's array, a read-only view.

    Raises:
        BadTensor: It has too many axes, its dtype is unknown or its bytes do not fit its shape.
    """
    if len(tensor.shape) > MAX_AXES:
        raise errors.BadTensor(
            f"tensor {quoted(tensor.name)} has {len(tensor.shape)} axes; expected at most {MAX_AXES}",
            metadata={"field": tensor.name},
        )
    return view_of(tensor)


def named(tensors: Sequence[Tensor], names: Sequence[str], what: str) -> list[Array]:
    """Tensors in the order of `names`, each exactly once.

    Raises:
        BadTensor: One is missing, unknown or there twice, or cannot be read.
    """
    given = {tensor.name: tensor for tensor in tensors[: len(names) + 1]}
    if len(given) != len(tensors) or given.keys() != set(names):
        came = ", ".join(map(shortened, given)) or "none"
        more = f" and {len(tensors) - len(given)} more" if len(tensors) > len(given) else ""
        raise errors.BadTensor(f"{what} are {came}{more}; expected {', '.join(names)}", metadata={"field": what})
    return [array_of(given[name]) for name in names]


def packed_inputs(specs: Sequence[TensorSpec], tensors: Sequence[Tensor], steps: int) -> list[Array]:
    """The inputs of chunks: one array [steps, ...one step] for every input of the signature.

    Raises:
        BadTensor: One has the wrong name, dtype or shape.
    """
    return inputs_with_axes(specs, tensors, (steps,), "steps")


def inputs_with_axes(
    specs: Sequence[TensorSpec], tensors: Sequence[Tensor], leading: tuple[int, ...], what: str
) -> list[Array]:
    """Inputs of shape [*leading, ...one step]; -1 in `leading` stands for any length of 1 or more.

    Raises:
        BadTensor: One has the wrong name, dtype or shape.
    """
    arrays = named(tensors, [spec.name for spec in specs], "inputs")
    check_steps(specs, arrays, leading, what)
    return arrays


def initial_states(table: Table, tensors: Sequence[Tensor], count: int) -> list[Array | None]:
    """The start values of `count` new sessions, one item for every state; None where a state starts as the model says.

    Raises:
        BadTensor: One has the wrong name, dtype or shape.
    """
    names, what = [spec.input for spec in table.model.signature.states], "initial_states"
    given = {tensor.name: tensor for tensor in tensors[: len(names) + 1]}
    unknown = [name for name in given if name not in names]
    if unknown or len(given) != len(tensors):
        wrong = f"{shortened(unknown[0])} is no state" if unknown else "a state comes twice"
        raise errors.BadTensor(
            f"{what}: {wrong}; expected any of {', '.join(names)}, each once at most", metadata={"field": what}
        )
    arrays = {name: array_of(tensor) for name, tensor in given.items()}
    check_initial_states(table, arrays, count)
    return [arrays.get(name) for name in names]


def write(tensors: _Tensors, names: Iterable[str], arrays: Iterable[Array]) -> None:
    """Adds arrays to the tensors of a message; in place, because they are copied with every message they are put in."""
    for name, array in zip(names, arrays, strict=True):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        tensor = tensors.add()
        tensor.name, tensor.dtype, tensor.data = name, array.dtype.name, little.tobytes()
        tensor.shape.extend(array.shape)


def durability(settings: Settings) -> str:
    """How steps become durable: the name of the enum's value on the wire."""
    return f"DURABILITY_MODE_{settings.durability.name}"


def open_mode(number: int) -> Mode:
    """How a session is to be opened; not saying is EITHER.

    Raises:
        BadFrame: There is no such mode.
    """
    return Mode(check_enum(number, OpenMode, "mode") or Mode.EITHER)


def check_enum(number: int, kind: EnumTypeWrapper, field: str) -> int:
    """The number of an enum's value. What this release does not know asks for what it does not do.

    Raises:
        BadFrame: It is none of the enum's.
    """
    known = kind.values()
    if number not in known:
        raise errors.BadFrame(f"{field} is {number}; expected 0 to {max(known)}", metadata={"field": field})
    return number


def row_errors(handles: Array, error: errors.StatestreamError) -> list[RowError]:
    """One error that concerns several sessions of a frame."""
    if len(handles):
        recent.note(error)
    status = errors.to_status(error)
    return [RowError(handle=handle, status=status) for handle in handles.tolist()]


def row_error(handle: int, position: int, error: errors.StatestreamError) -> RowError:
    """An error that concerns one session of a frame."""
    recent.note(error)
    return RowError(handle=handle, position=position, status=errors.to_status(error))
