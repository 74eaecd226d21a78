"""Specs: one tensor or state of a signature: its type, axes and shapes, and whether it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from statestream.v1.signature_pb2 import StateCheck, StateSpec, TensorSpec

DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
}
"""The element types that travel, by their NumPy names: little-endian."""


class SignatureError(ValueError):
    """The signature contradicts itself or cannot be read; the message says where."""


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The little-endian NumPy dtype of a wire name.

    Raises:
        SignatureError: The name is not one of `DTYPES`.
    """
    found = DTYPES.get(name)
    if found is None:
        raise SignatureError(f"dtype {name!r} does not exist; expected one of {', '.join(sorted(DTYPES))}")
    return found


def step_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one step of one session: `spec.shape` without batch and time axes (-1 where free)."""
    taken = {axis for axis in (batch_axis_of(spec), time_axis_of(spec)) if axis is not None}
    return tuple(size for axis, size in enumerate(spec.shape) if axis not in taken)


def row_shape(spec: StateSpec) -> tuple[int, ...]:
    """The shape of one session's state: `spec.shape` without the batch axis."""
    return tuple(size for axis, size in enumerate(spec.shape) if axis != batch_axis_of(spec))


def start_row(spec: StateSpec) -> np.ndarray:
    """One session's state at position 0, shape `row_shape(spec)`, dtype `spec.dtype`."""
    shape, dtype = row_shape(spec), numpy_dtype(spec.dtype)
    if len(spec.start) <= 1:
        return np.full(shape, spec.start[0] if spec.start else 0, dtype)
    return np.asarray(spec.start, np.float64).astype(dtype).reshape(shape)


def batch_axis_of(spec: TensorSpec | StateSpec) -> int | None:
    """The batch axis of a tensor; None where it has none."""
    return spec.batch_axis if spec.HasField("batch_axis") else None


def time_axis_of(spec: TensorSpec) -> int | None:
    """The time axis of a tensor; None where it has none."""
    return spec.time_axis if spec.HasField("time_axis") else None


def check_axis(where: str, axis: int | None, rank: int) -> None:
    """Checks that a tensor of a rank has an axis.

    Raises:
        SignatureError: It has not.
    """
    if axis is not None and not 0 <= axis < rank:
        raise SignatureError(f"{where} is {axis}; the tensor has {rank} axes, expected 0 to {rank - 1}")


def check_tensor(where: str, spec: TensorSpec) -> None:
    """Checks that an input or output does not contradict itself; `where` names it.

    Raises:
        SignatureError: It does.
    """
    if not spec.name:
        raise SignatureError(f"{where}.name is empty")
    numpy_dtype(spec.dtype)
    batch, time = batch_axis_of(spec), time_axis_of(spec)
    check_axis(f"{where}.batch_axis", batch, len(spec.shape))
    check_axis(f"{where}.time_axis", time, len(spec.shape))
    if batch is not None and batch == time:
        raise SignatureError(f"{where}: batch_axis and time_axis are both {batch}")
    if spec.columns and (not step_shape(spec) or step_shape(spec)[-1] not in (-1, len(spec.columns))):
        raise SignatureError(f"{where}.columns has {len(spec.columns)} names for a step of shape {step_shape(spec)}")
    _check_ranges(where, spec, step_shape(spec))
    if any(known.counts_steps for known in spec.ranges) and (time is not None or len(spec.ranges) > 1):
        raise SignatureError(
            f"{where}.ranges count steps; only one range of an input without a time axis may"
            f" ({len(spec.ranges)} ranges, time_axis {time})"
        )


def _check_ranges(where: str, spec: TensorSpec | StateSpec, step: tuple[int, ...]) -> None:
    if len(spec.ranges) > 1 and (not step or step[-1] != len(spec.ranges)):
        raise SignatureError(
            f"{where}.ranges has {len(spec.ranges)} entries for a step of shape {step}; expected none, one, or one for"
            " every place along its last axis"
        )
    dtype = numpy_dtype(spec.dtype)
    for number, known in enumerate(spec.ranges):
        place = f"{where}.ranges[{number}]"
        if not known.lowest <= known.highest:
            raise SignatureError(f"{place} goes from {known.lowest} to {known.highest}; expected lowest ≤ highest")
        bounds = (known.lowest, known.highest)
        if (known.whole or known.counts_steps or dtype.kind != "f") and any(
            np.isfinite(bound) and bound != np.floor(bound) for bound in bounds
        ):
            raise SignatureError(f"{place} goes from {bounds[0]} to {bounds[1]}; expected whole numbers")
        if dtype.kind != "f":
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype.name).min, np.iinfo(dtype.name).max)
            # A double holds the limits of 64 bits only rounded.
            if not float(least) <= known.lowest <= known.highest <= float(most):
                raise SignatureError(f"{place} goes from {bounds[0]} to {bounds[1]}; {spec.dtype} does not hold that")


def check_state(where: str, spec: StateSpec) -> None:
    """Checks that a state does not contradict itself; `where` names it.

    Raises:
        SignatureError: It does.
    """
    if not spec.input or not spec.output:
        raise SignatureError(f"{where}: input and output must be named; they are {spec.input!r}, {spec.output!r}")
    dtype = numpy_dtype(spec.dtype)
    check_axis(f"{where}.batch_axis", batch_axis_of(spec), len(spec.shape))
    shape = row_shape(spec)
    if any(size < 0 for size in shape):
        raise SignatureError(f"{where}.shape is {list(spec.shape)}; only the batch axis may be free (-1)")
    if len(spec.start) > 1 and len(spec.start) != int(np.prod(shape)):
        raise SignatureError(
            f"{where}.start has {len(spec.start)} numbers; expected none, one or {int(np.prod(shape))}"
        )
    if dtype.kind != "f" and any(value != int(value) for value in spec.start):
        raise SignatureError(f"{where}.start has fractions; dtype is {spec.dtype}")
    if spec.check not in StateCheck.values():
        raise SignatureError(f"{where}.check is {spec.check}; expected 0 to {max(StateCheck.values())}")
    _check_ranges(where, spec, shape)
    if any(known.counts_steps for known in spec.ranges):
        raise SignatureError(f"{where}.ranges count steps; only inputs may")
    if spec.constant and spec.from_encoder:
        raise SignatureError(f"{where} is constant and starts from encoder output {spec.from_encoder!r}; expected one")


def check_unique(kind: str, names: list[str]) -> None:
    """Checks that no name of a kind comes twice.

    Raises:
        SignatureError: One does.
    """
    for name in names:
        if names.count(name) > 1:
            raise SignatureError(f"{kind} {name!r} is listed {names.count(name)} times; expected once")
