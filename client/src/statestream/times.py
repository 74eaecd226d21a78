"""Times: what callers have of them (dates, seconds) becomes whole nanoseconds, as a model is sent them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from statestream.contract.tensors import Array
from statestream.wanted import Wanted, first_line, short

_MOST: Final = 9.2e9
"""Seconds that int64 holds as nanoseconds."""
_EXPECTED: Final = "expected times (datetime64, datetime), or seconds since any moment"


def nanoseconds(wanted: Wanted, value: Any) -> Array:
    """Times as int64: of dates since 1970 (those with a time zone in UTC), of numbers from seconds.

    Raises:
        BadTensor: They are no times, or one is missing.
    """
    array = _array(wanted, value)
    if array.dtype.kind in "iuf" and array.dtype != bool:
        seconds = array.astype(np.float64)
        if not (np.abs(seconds) < _MOST).all():
            raise wanted.bad(
                f"{wanted.name} has {_first(array, ~(np.abs(seconds) < _MOST))}; expected seconds between"
                f" {-_MOST:.3g} and {_MOST:.3g}"
            )
        if array.dtype.kind in "iu":
            return np.asarray(array.astype(np.int64) * 1_000_000_000)
        whole = np.floor(seconds)
        return np.asarray(whole.astype(np.int64) * 1_000_000_000 + np.rint((seconds - whole) * 1e9).astype(np.int64))
    if array.dtype.kind not in "Mm":
        raise wanted.bad(f"{wanted.name} has dtype {array.dtype}; {_EXPECTED}")
    gone = np.isnat(array)
    if gone.any():
        at = np.argwhere(gone)[0].tolist() if gone.ndim else []
        raise wanted.bad(f"{wanted.name} has no time (NaT){f' at {at}' if at else ''}; {_EXPECTED}")
    with np.errstate(over="raise"):
        try:
            found: Array = array.astype(f"{array.dtype.kind}8[ns]")
        except (OverflowError, FloatingPointError) as error:
            raise wanted.bad(f"{wanted.name} has a time that nanoseconds do not hold: {first_line(error)}") from error
    return found.view(np.int64)


def _array(wanted: Wanted, value: Any) -> Array:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    native = getattr(value, "to_numpy", None)
    if callable(native):
        zoned = getattr(getattr(value, "dt", None), "tz", None)
        if zoned is not None and callable(getattr(value.dt, "tz_convert", None)):
            value = value.dt.tz_convert(None)
        found = np.asarray(value.to_numpy())
        return found if found.dtype != object else _dates(wanted, found.ravel().tolist(), found.shape)
    if isinstance(value, datetime):
        return _dates(wanted, [value], ())
    found = np.asarray(value) if not isinstance(value, str | bytes) else np.empty((), "U")
    return found if found.dtype != object else _dates(wanted, found.ravel().tolist(), found.shape)


def _dates(wanted: Wanted, values: Sequence[Any], shape: tuple[int, ...]) -> Array:
    made = []
    for value in values:
        if hasattr(value, "to_datetime64"):
            made.append(value.tz_convert(None).to_datetime64() if value.tzinfo is not None else value.to_datetime64())
        elif isinstance(value, datetime):
            plain = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo is not None else value
            made.append(np.datetime64(plain, "us"))
        elif isinstance(value, np.datetime64):
            made.append(value)
        else:
            raise wanted.bad(f"{wanted.name} has {short(value)}; {_EXPECTED}")
    return np.array(made, "datetime64[ns]").reshape(shape)


def _first(array: Array, which: Array) -> Any:
    return array[which].ravel()[0] if array.ndim else array
