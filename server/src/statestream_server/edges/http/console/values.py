"""Values: fields of JSON, and arrays to and from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, encode_text, numpy_dtype, step_shape
from statestream.contract.specs import batch_axis_of
from statestream_server.arrays import Array


def text(asked: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """A text of a request.

    Raises:
        BadFrame: It is missing, or none.
    """
    found = asked.get(field, default)
    if not isinstance(found, str):
        raise wrong(field, found, "a text")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise wrong(field, "half of a surrogate pair", "a text") from error
    return found


def whole(asked: Mapping[str, Any], field: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number of a request, or of a query, where numbers are texts.

    Raises:
        BadFrame: It is missing, none, or out of range.
    """
    found = asked.get(field, default)
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:
        found = int(found)
    if type(found) is not int or not least <= found <= most:
        raise wrong(field, found, f"a whole number from {least} to {most}")
    return found


def numbers(asked: Mapping[str, Any], field: str, most: int) -> list[float]:
    """Numbers of a request, none where it has none.

    Raises:
        BadFrame: They are none, or too many.
    """
    found = asked.get(field) or []
    expected = f"a list of {most} numbers at most" if most > 1 else "a number"
    if not isinstance(found, list) or len(found) > most or not all(type(each) in (int, float) for each in found):
        raise wrong(field, found, expected)
    try:
        return [float(each) for each in found]
    except OverflowError as error:
        raise wrong(field, found, expected) from error


def wrong(field: str, came: object, expected: str) -> errors.BadFrame:
    """An error about a field."""
    shown = "missing" if came is None else errors.quoted(came if isinstance(came, str) else repr(came)[:80])
    return errors.BadFrame(f"{field} is {shown}; expected {expected}", metadata={"field": field})


def steps_of(specs: Sequence[TensorSpec], asked: Mapping[str, Any], field: str = "inputs") -> tuple[int, list[Array]]:
    """Steps: how many, and for every input an array [steps, ...one step].

    An input may come flat, or without the axis of steps: what it has is divided into steps.

    Raises:
        BadTensor: One is missing, unknown, of another type, or of no whole number of steps.
    """
    found, shapes = _named(specs, asked, field), [step_shape(spec) for spec in specs]
    arrays = list[Array]()
    for spec, array, shape in zip(specs, found, shapes, strict=True):
        fixed = all(size >= 0 for size in shape)
        each = math.prod(shape) if fixed else 0
        if fixed and array.shape[1:] != shape and (not each or array.size % each or not array.size):
            raise errors.BadTensor(
                f"input {spec.name!r} has {array.size} numbers; expected {each} for each step, of shape {list(shape)}",
                metadata={"field": spec.name},
            )
        if not fixed and array.ndim == len(shape):
            array = array[None]
        arrays.append(array.reshape(-1, *shape) if fixed else array)
    return len(arrays[0]) if arrays else 0, arrays


def graph_inputs(specs: Sequence[TensorSpec], asked: Mapping[str, Any]) -> list[Array]:
    """Inputs of a model without memory, with the graph's axes; a lone example gets the axis of the batch.

    Raises:
        BadTensor: One is missing, unknown or of another type.
    """
    arrays = list[Array]()
    for spec, array in zip(specs, _named(specs, asked, "inputs"), strict=True):
        axis = batch_axis_of(spec)
        if axis is not None and array.ndim == len(spec.shape) - 1:
            array = np.expand_dims(array, axis)
        free = [size for size in spec.shape if size < 0]
        fixed = math.prod(size for size in spec.shape if size >= 0)
        if array.ndim == 1 and len(spec.shape) > 1 and len(free) <= 1 and fixed and array.size % fixed == 0:
            array = array.reshape(tuple(spec.shape))  # Flat, as it is typed.
        arrays.append(array)
    return arrays


def future_of(spec: TensorSpec, value: object, horizon: int, shape: tuple[int, ...]) -> Array:
    """[1, horizon, *shape] what is known beforehand of an input; what comes for one step stands for all of them.

    Raises:
        BadTensor: It is of another type, or of another number of steps.
    """
    array, each = _array(spec, value), math.prod(shape)
    if array.size == each:
        return np.broadcast_to(array.reshape(1, 1, *shape), (1, horizon, *shape)).copy()
    if array.size != each * horizon:
        raise errors.BadTensor(
            f"future {spec.name!r} has {array.size} numbers; expected {each} for each of {horizon} steps, or {each}"
            " that stand for all",
            metadata={"field": "future"},
        )
    return array.reshape(1, horizon, *shape)


def _named(specs: Sequence[TensorSpec], asked: Mapping[str, Any], field: str) -> list[Array]:
    came, names = asked.get(field), [spec.name for spec in specs]
    if len(names) == 1 and isinstance(came, list | int | float):
        came = {names[0]: came}
    if not isinstance(came, dict) or came.keys() != set(names):
        shown = ", ".join(map(errors.shortened, came)) if isinstance(came, dict) else type(came).__name__
        raise errors.BadTensor(f"{field} are {shown or 'none'}; expected {', '.join(names)}", metadata={"field": field})
    return [_array(spec, came[spec.name]) for spec in specs]


def _array(spec: TensorSpec, value: object) -> Array:
    """A value as an array of a spec's dtype; null is NaN, and a text is its tokens where a model reads some."""
    dtype = numpy_dtype(spec.dtype)
    try:
        if isinstance(value, str) and spec.HasField("text"):
            value = encode_text(spec.text, value)
    except ValueError as error:
        raise errors.BadTensor(f"input {spec.name!r}: {error}", metadata={"field": spec.name}) from error
    try:
        found = np.array(value, np.float64 if dtype.kind == "f" else None)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.BadTensor(
            f"input {spec.name!r} cannot be read as numbers; expected lists of equal length, of {spec.dtype}",
            metadata={"field": spec.name},
        ) from error
    kinds = {"f": "f", "b": "b"}.get(dtype.kind, "iu")
    if found.dtype.kind not in kinds or _has_texts(value):
        raise errors.BadTensor(
            f"input {spec.name!r} came as {'texts' if _has_texts(value) else found.dtype}; expected {spec.dtype}",
            metadata={"field": spec.name},
        )
    with np.errstate(over="ignore"):
        array: Array = found.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(array, found):
        raise errors.BadTensor(f"input {spec.name!r} has a number out of range of {spec.dtype}")
    return array


def _has_texts(value: object) -> bool:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, str | dict):
            return True
    return False


def plain(array: Array) -> Any:
    """An array as nested lists, in which what is not finite is null."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    found = array.astype(np.object_)
    found[~np.isfinite(array)] = None
    return found.tolist()
