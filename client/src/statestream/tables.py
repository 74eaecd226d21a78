"""What callers give becomes arrays: tables by the names of their columns, and nothing is dropped on the way.

`np.asarray` takes a table for its numbers and a masked array for what lies under the mask. So `read` is the one place
where a caller's value becomes an array, wherever one comes in. It imports no library of tables or tensors: an object
of one was made by a program that has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.tensors import Array
from statestream.times import nanoseconds
from statestream.wanted import Wanted, converted, first_line, listed, place, short, stacked


class HasArray(Protocol):
    """What NumPy takes for an array: arrays and scalars, tensors, pictures, Series and DataFrames."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Its numbers."""


class HasDlpack(Protocol):
    """A tensor of any other library."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        """Its numbers."""


class HasArrowStream(Protocol):
    """A table of Arrow's."""

    def __arrow_c_stream__(self, *args: Any, **kwargs: Any) -> Any:
        """Its columns."""


class HasDataFrame(Protocol):
    """A table of any other library."""

    def __dataframe__(self, *args: Any, **kwargs: Any) -> Any:
        """Its columns."""


_SCALARS = (bool, int, float, complex, np.generic)
_PLAIN = frozenset((float, int, bool, np.float64, np.float32, np.int64))
_NUMPY = (np.ndarray, *_SCALARS)
_KNOWN = (list, tuple, str, bytes, Mapping, type(None), *_NUMPY)


def read(wanted: Wanted, value: Any) -> Array:
    """A value as an array of the wanted dtype: the value itself where it is one.

    Tables (pandas, polars and what else narwhals reads), rows of them (a pandas Series with the columns' names, a
    named tuple, a dict) and arrays with named fields are put into the order of `wanted.columns` by name. Where the
    signature has no names they are taken by position, if there are as many. A Series of a model with one feature is
    [T, 1]. Tensors come detached and from their device, bfloat16 as float32. Numbers are converted in their kind,
    integers upwards, none to an infinity.

    Raises:
        BadTensor: Names the column or the entry, what came, and what was expected.
    """
    if wanted.times:
        return nanoseconds(wanted, value)
    array: Array
    kind = type(value)
    if kind is np.ndarray:
        array = value
        if array.dtype == wanted.dtype:
            return array
        if array.dtype.names is not None:
            array = _fields(wanted, array)
    elif kind is list or kind is tuple:
        array = _sequence(wanted, value)
    else:
        array = _plain(wanted, value)
    return converted(wanted, array)


def is_table(value: object) -> bool:
    """Whether iterating over it gives something else than its rows."""
    return _native(value) is not None


def frame_of(value: object) -> Any:
    """A DataFrame as narwhals has it; None for anything else."""
    found = _native(value)
    return found if found is not None and hasattr(found, "columns") else None


def order(wanted: Wanted, names: Sequence[object], what: str = "table") -> list[int]:
    """Where each feature is among the columns that came.

    Raises:
        BadTensor: Some are missing, unknown, or come twice.
    """
    came = [str(name) for name in names]
    expected = wanted.names
    if not wanted.columns and set(came) != set(expected):
        if wanted.width == -1 or len(came) == len(expected):
            return list(range(len(came)))
        raise wanted.bad(
            f"the {what} for {wanted.name} has {len(came)} columns ({listed(came)}); expected {len(expected)}."
            " The model's signature has no names for them, so they are taken by position"
        )
    twice = sorted({name for name in came if came.count(name) > 1}) if len(set(came)) < len(came) else []
    missing = [name for name in expected if name not in came]
    unknown = [name for name in came if name not in expected]
    if twice or missing or unknown:
        wrong = [
            f"{word} {listed(some)}"
            for word, some in (("missing:", missing), ("unknown:", unknown), ("more than once:", twice))
            if some
        ]
        many = ". A table of many sessions is what a pool steps: client.sessions" if "unique_id" in unknown else ""
        raise wanted.bad(
            f"the {what} for {wanted.name} has the columns {listed(came)}; expected {listed(expected)}, in any order"
            f" ({'; '.join(wrong)}). Rename or select them by name; only an array is taken by position{many}"
        )
    place = {name: number for number, name in enumerate(came)}
    return [place[name] for name in expected]


# ── kinds of values ────────────────────────────────────────────────────────────────────────────────


def _plain(wanted: Wanted, value: Any) -> Array:
    """The value as an array of its own dtype."""
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(wanted, value)
    if isinstance(value, _NUMPY):
        return _fields(wanted, np.asarray(value))
    if value is None or isinstance(value, str | bytes | bytearray):
        raise wanted.bad(
            f"{wanted.name} is {short(value)}; expected numbers of dtype {wanted.dtype.name}{_coding(wanted, value)}"
        )
    record = _record(value)
    if record is not None:
        return _row(wanted, record)
    if isinstance(value, list | tuple):
        return _sequence(wanted, value)
    if all(hasattr(value, name) for name in ("detach", "cpu", "numpy")):
        return _tensor(wanted, value)
    native = _native(value)
    if native is None:
        return _foreign(wanted, value)
    return _frame(wanted, native) if hasattr(native, "columns") else _series(wanted, native)


def _unmasked(wanted: Wanted, value: Any) -> Array:
    mask = np.ma.getmaskarray(value)
    if mask.dtype.names:
        mask = np.stack([mask[name] for name in mask.dtype.names], axis=-1)
    if mask.any():
        where = f" at {place(wanted, np.argwhere(mask)[0].tolist(), mask.shape)}" if mask.ndim else ""
        raise wanted.bad(
            f"{wanted.name} is masked{where} ({int(mask.sum())} of {mask.size} entries); a model has no masks:"
            " fill them (`x.filled(…)`) or leave those steps out"
        )
    return _fields(wanted, np.asarray(value.data))


def _fields(wanted: Wanted, array: Array) -> Array:
    """An array, its named fields as the last axis."""
    names = array.dtype.names
    if names is None:
        return array
    columns = [converted(wanted, array[names[at]], names[at]) for at in order(wanted, names, "array")]
    return stacked(wanted, columns)


def _record(value: Any) -> Mapping[Any, Any] | None:
    """A row or a table whose columns come by name: a dict, a named tuple, a row of a database."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if type(value).__name__ == "Row" and hasattr(value, "keys"):
        return {name: value[name] for name in value.keys()}  # noqa: SIM118 (sqlite3.Row iterates over its values)
    return None


def _row(wanted: Wanted, record: Mapping[Any, Any]) -> Array:
    if not wanted.columns:
        raise wanted.bad(
            f"a dict with {listed(record)} came for {wanted.name}; expected an array, as the model's signature has no"
            f" names for the columns of {wanted.name}"
        )
    names = list(record)
    columns = []
    for at in order(wanted, names, "dict"):
        one = Wanted(f"column {names[at]!r} of {wanted.name}", wanted.field, wanted.dtype)
        columns.append(read(one, record[names[at]]))
    return stacked(wanted, columns)


def _coding(wanted: Wanted, value: object) -> str:
    """What makes numbers of a text, where whole ones are wanted; of a text for another input nobody knows it."""
    text = isinstance(value, str) and wanted.dtype.kind in "iu"
    return "; statestream.signature.encode_text makes numbers of a text" if text else ""


def _sequence(wanted: Wanted, value: Sequence[Any]) -> Array:
    if _all_plain(value):
        try:
            return _fields(wanted, np.asarray(value))
        except (ValueError, OverflowError) as error:
            ragged = "inhomogeneous" in str(error)
            why = "its entries have different lengths; expected the same of all" if ragged else first_line(error)
            raise wanted.bad(f"{wanted.name} is not an array: {why}") from error
    for at, one in enumerate(value):
        if isinstance(one, str | bytes) or one is np.ma.masked or not (isinstance(one, _SCALARS) or _several(one)):
            raise wanted.bad(
                f"{wanted.name} has {short(one)} at {place(wanted, [at], [len(value)])};"
                f" expected numbers of dtype {wanted.dtype.name}{_coding(wanted, one)}"
            )
    parts = [converted(wanted, _plain(wanted, one)) for one in value]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise wanted.bad(f"{wanted.name} has entries of shapes {[list(shape) for shape in shapes[:3]]}; expected one")
    return np.stack(parts)


def _several(value: object) -> bool:
    """Whether it may stand for an array."""
    return any(hasattr(value, name) for name in ("__len__", "__array__", "__dlpack__", "detach"))


def _all_plain(values: Sequence[Any]) -> bool:
    """Whether np.asarray takes nested sequences for what they are."""
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return True
    for kind in kinds:
        if kind is not list and kind is not tuple and kind is not np.ndarray and not issubclass(kind, _SCALARS):
            return False
    return all(_all_plain(one) for one in values if type(one) is list or type(one) is tuple)


def _tensor(wanted: Wanted, value: Any) -> Array:
    try:
        value = value.detach().cpu()
        for resolve in ("to_dense",) if getattr(value, "is_sparse", False) else ("resolve_conj", "resolve_neg"):
            value = getattr(value, resolve, lambda value=value: value)()
        try:
            array = value.numpy()
        except TypeError:
            # bfloat16 and the eight-bit floats: NumPy has none of them, float32 has all their values.
            if not value.dtype.is_floating_point:
                raise
            array = value.float().numpy()
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise wanted.bad(
            f"{wanted.name} is a tensor of dtype {getattr(value, 'dtype', '?')} that NumPy cannot hold:"
            f" {first_line(error)}; expected numbers of dtype {wanted.dtype.name}"
        ) from error
    return np.asarray(array)


def _foreign(wanted: Wanted, value: Any) -> Array:
    """Whatever else says how it becomes an array."""
    if any(hasattr(value, name) for name in ("__dataframe__", "column_names")):
        raise wanted.bad(
            f"{wanted.name} is a {type(value).__module__}.{type(value).__name__}, whose columns cannot be read by name"
            " here; make it a pandas or polars DataFrame"
        )
    missing = getattr(value, "isna", None) or getattr(value, "is_null", None)
    try:
        if callable(missing):
            gone = np.asarray(missing())
            if gone.any() and not (isinstance(value.dtype, np.dtype) and value.dtype.kind == "f"):
                at = int(np.flatnonzero(gone)[0])
                raise wanted.bad(f"{wanted.name} has no value at {place(wanted, [at], gone.shape)}; {_fill()}")
        if hasattr(value, "toarray"):
            value = value.toarray()
        array = np.asarray(value)
        if array.dtype == object and array.ndim == 0 and hasattr(value, "__dlpack__"):
            array = np.from_dlpack(value)
    except BadTensor:
        raise
    except Exception as error:
        # What another library's objects raise when they are asked for their numbers.
        raise wanted.bad(
            f"{wanted.name} is a {type(value).__name__} that is not an array: {first_line(error)}"
        ) from error
    labels = _labels(value)
    if labels is not None and array.ndim and (wanted.columns or set(labels) == set(wanted.names)):
        array = array[..., order(wanted, labels, "array")]
    return array


def _labels(value: Any) -> list[str] | None:
    """What an array with named coordinates (xarray) has along its last axis."""
    dims, coordinates = getattr(value, "dims", None), getattr(value, "coords", None)
    if not isinstance(dims, tuple) or not dims or coordinates is None or dims[-1] not in coordinates:
        return None
    labels = np.asarray(coordinates[dims[-1]])
    return [str(label) for label in labels] if labels.dtype.kind in "UOT" else None


# ── tables ─────────────────────────────────────────────────────────────────────────────────────────


def _native(value: object) -> Any:
    """A DataFrame, a LazyFrame or a Series as narwhals has it; None where it is none."""
    if isinstance(value, _KNOWN):
        return None
    if not any(hasattr(type(value), name) for name in ("columns", "to_numpy", "collect", "to_pandas")):
        return None
    import narwhals.stable.v2 as narwhals

    try:
        found = narwhals.from_native(value, pass_through=True, allow_series=True)
    except Exception as error:
        # narwhals refuses a table whose columns have one name twice.
        raise BadTensor(f"the table cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not type(found).__module__.startswith("narwhals"):
        return None
    if hasattr(found, "collect"):
        raise BadTensor("a lazy table came; expected one with its rows: call its collect() first")
    return found


def _frame(wanted: Wanted, frame: Any) -> Array:
    names = list(frame.columns)
    columns = [_column(wanted, frame.get_column(names[at]), names[at]) for at in order(wanted, names)]
    if wanted.width is None:
        return columns[0]
    return stacked(wanted, columns)


def _column(wanted: Wanted, series: Any, label: object) -> Array:
    """One column of a table, [T], without gaps."""
    kind, native = series.dtype, series.to_native()
    dtype = getattr(native, "dtype", kind)
    if not (kind.is_integer() or kind.is_float() or str(kind) == "Boolean"):
        raise wanted.bad(
            f"column {label!r} of {wanted.name} has dtype {dtype}; expected numbers of dtype {wanted.dtype.name}."
            " Convert it, or leave it out"
        )
    # Of a column that NumPy holds, NaN is a number like any other.
    if not isinstance(dtype, np.dtype) and (count := series.null_count()):
        first = int(np.flatnonzero(series.is_null().to_numpy())[0])
        raise wanted.bad(
            f"column {label!r} of {wanted.name} has no value at row {first} ({count} of {len(series)}); {_fill()}"
        )
    return converted(wanted, series.to_numpy(), label)


def _series(wanted: Wanted, series: Any) -> Array:
    """A column of a table, or a row of one: what its index and the model's columns say."""
    index = getattr(series.to_native(), "index", None)
    named = [] if index is None or callable(index) else list(index)
    labels = [str(label) for label in named] or None
    texts = all(isinstance(label, str) for label in named) and bool(named)
    expected = wanted.names
    if wanted.width is None:
        return _column(wanted, series, series.name)
    if len(expected) == 1 and labels != expected:
        if wanted.columns and texts and expected[0] in named and str(series.dtype) == "Object":
            raise wanted.bad(
                f"{wanted.name} is a row with {listed(named)}; expected {expected[0]!r} alone: row[[{expected[0]!r}]]"
            )
        if wanted.columns and series.name not in (None, "", *expected):
            raise wanted.bad(
                f"{wanted.name} is the column {series.name!r}; expected {expected[0]!r}. Rename it, or give its numbers"
                " as an array [T, 1]"
            )
        return _column(wanted, series, series.name)[:, np.newaxis]
    if wanted.columns and not texts:
        raise wanted.bad(
            f"{wanted.name} is a Series without the names of its columns; expected {listed(expected)} as its index for"
            f" one step, or a table with these columns for several. An array [{len(expected)}] is taken by position"
        )
    taken = order(wanted, labels if labels is not None else range(len(series)), "Series")
    values = series.to_list()
    for at in taken:
        value = values[at]
        if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
            label = labels[at] if labels is not None else at
            raise wanted.bad(
                f"column {label!r} of {wanted.name} is {short(value)}; expected a number of dtype {wanted.dtype.name}"
            )
    return np.asarray([values[at] for at in taken])


def _fill() -> str:
    return "a model takes no gaps: fill it, or leave that row out"
