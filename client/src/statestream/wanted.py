"""What a value is read for, and numbers as they are wanted: converted in their kind, none to an infinity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.signature import TensorSpec, numpy_dtype, step_shape
from statestream.contract.tensors import Array

_SHOWN = 12
"""Names in a message; a table may have thousands of columns."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a value is read for.

    Attributes:
        name: What messages call it.
        field: The input or the state, as errors name it to programs.
        dtype: What it becomes.
        columns: Names along the last axis; none where the signature has none.
        width: Length of the last axis, -1 where it is free; None where a step is a single number.
        times: Whether it is the time of a step, that the server tells the model as the time since the one before.
    """

    name: str
    field: str
    dtype: np.dtype[Any]
    columns: tuple[str, ...] = ()
    width: int | None = None
    times: bool = False

    @staticmethod
    def of(spec: TensorSpec) -> Wanted:
        """An input of a model."""
        shape = step_shape(spec)
        width, times = shape[-1] if shape else None, spec.HasField("elapsed")
        return Wanted(spec.name, spec.name, numpy_dtype(spec.dtype), tuple(spec.columns), width, times)

    @property
    def names(self) -> list[str]:
        """The names of the features, made up where the signature has none."""
        if self.columns:
            return list(self.columns)
        if self.width is None or self.width == 1:
            return [self.name]
        return [f"{self.name}_{n}" for n in range(max(0, self.width))]

    def bad(self, message: str) -> BadTensor:
        """An error about it."""
        return BadTensor(message, metadata={"field": self.field})


def listed(names: Iterable[object]) -> str:
    """Names for a message."""
    every = [repr(name) for name in names]
    return ", ".join(every[:_SHOWN]) + (f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else "")


def place(wanted: Wanted, index: Sequence[int], shape: Sequence[int]) -> str:
    """An entry for a message: its feature by name where it has one."""
    if wanted.columns and shape and shape[-1] == len(wanted.columns):
        column = f"column {wanted.columns[index[-1]]!r}"
        return f"{column} at {list(index[:-1])}" if len(index) > 1 else column
    return f"{list(index)}"


def converted(wanted: Wanted, array: Array, column: object = None) -> Array:
    """An array of the wanted dtype.

    Raises:
        BadTensor: It has no numbers, or some that the dtype has not.
    """
    dtype = wanted.dtype
    if array.dtype == dtype:
        return array
    if array.dtype.kind == "O":
        array = _numbers(wanted, array, _called(wanted, column))
    elif array.dtype.kind == "V" and array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        array = array.astype(np.float32)
    kinds = "biuf" if dtype.kind == "f" else "biu" if dtype.kind in "iu" else "b"
    if array.dtype.kind not in kinds and array.size:
        raise wanted.bad(f"{_called(wanted, column)} has dtype {array.dtype}; expected {dtype.name}")
    try:
        with np.errstate(over="raise", invalid="ignore"):
            found: Array = array.astype(dtype)
    except FloatingPointError:
        largest = np.max(np.abs(array[np.isfinite(array)]))
        raise wanted.bad(
            f"{_called(wanted, column)} has {largest:g} (by size); {dtype.name} ends at {np.finfo(dtype).max:g}"
        ) from None
    if dtype.kind in "iu" and array.size and not (found == array).all():
        raise wanted.bad(f"{_called(wanted, column)} has values outside {dtype.name}")
    return found


def _called(wanted: Wanted, column: object) -> str:
    """What messages call an array, or a column of one."""
    return wanted.name if column is None else f"column {column!r} of {wanted.name}"


def _numbers(wanted: Wanted, array: Array, name: str) -> Array:
    """An array of objects that are numbers, all of them, as one of numbers."""
    for index, value in np.ndenumerate(array):
        if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            at = place(wanted, index, array.shape) if index else ""
            raise wanted.bad(
                f"{name} has {short(value)}{' at ' + at if at else ''} (dtype object);"
                f" expected numbers of dtype {wanted.dtype.name}"
            )
    try:
        found = np.array(array.tolist())
        return found.astype(np.float64) if found.dtype == object else found
    except (ValueError, OverflowError) as error:
        raise wanted.bad(f"{name} is not an array: {first_line(error)}") from error


def stacked(wanted: Wanted, columns: Sequence[Array]) -> Array:
    """Columns along a last axis, each number converted from what its own column has."""
    if wanted.width is None and len(columns) == 1:
        return columns[0]
    shapes = {column.shape for column in columns}
    if len(shapes) > 1:
        raise wanted.bad(f"the columns of {wanted.name} have shapes {sorted(map(list, shapes))}; expected one for all")
    return np.stack([converted(wanted, column) for column in columns], axis=-1)


def short(value: object) -> str:
    """A value for a message, with its type."""
    text = repr(value)
    return f"{text[:40]}{'…' if len(text) > 40 else ''} of type {type(value).__name__}" if value is not None else "None"


def first_line(error: Exception) -> str:
    """What another library says, as far as it fits a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
