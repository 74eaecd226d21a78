"""What is typed or piped: lines of CSV or JSON become inputs of a model, answers become lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import TensorSpec
from statestream.views import Model

PIPED: Final = "-"
"""What stands for standard input wherever a file or a text is named."""


class LineError(ValueError):
    """A line is no input of the model: what it is, what was expected."""


def expected(model: Model) -> str:
    """What one line has to be, in words."""
    told = [_told(spec) for spec in model.signature.inputs]
    return (
        told[0]
        if len(told) == 1
        else "a JSON object of " + ", ".join(f'"{spec.name}"' for spec in model.signature.inputs)
    )


def _told(spec: TensorSpec) -> str:
    if is_text(spec):
        return "text"
    size = int(np.prod([max(1, each) for each in signatures.step_shape(spec)], initial=1))
    called = f" ({', '.join(spec.columns)})" if spec.columns else ""
    return ("a number" if size == 1 else f"{size} numbers") + called


def is_text(spec: TensorSpec) -> bool:
    """Whether a line is its value as it stands."""
    return spec.HasField("text") or spec.dtype in ("string", "str", "object")


class Reader:
    """Lines, one after the other: a header of names in the first tells the order of those that follow."""

    def __init__(self, model: Model) -> None:
        """The lines are inputs of a model."""
        self._model = model
        self._header: list[str] | None = None

    def __call__(self, line: str) -> Any | None:
        """One step: an array, a text, or a dict by input; None where the line has none.

        Raises:
            LineError: It is none.
        """
        text = line.strip()
        if not text:
            return None
        inputs = self._model.signature.inputs
        value = self._json(text)
        if isinstance(value, Mapping):
            return self._by_name(value)
        if len(inputs) > 1:
            raise LineError(f"{text[:60]!r} is not {expected(self._model)}, which this model takes")
        if is_text(inputs[0]):
            return _encoded(inputs[0], value if isinstance(value, str) else text)
        if isinstance(value, list | int | float):
            return self._array(inputs[0], value, text)
        return self._row(inputs[0], text)

    @staticmethod
    def _json(text: str) -> Any:
        if text[0] not in '[{"':
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise LineError(f"{text[:60]!r} is no JSON: {error}") from error

    def _by_name(self, value: Mapping[str, Any]) -> Any:
        names = [spec.name for spec in self._model.signature.inputs]
        if set(value) == set(names):
            found = {spec.name: self._named(spec, value[spec.name]) for spec in self._model.signature.inputs}
            return found if len(found) > 1 else found[names[0]]
        spec = self._model.signature.inputs[0]
        if len(names) == 1 and set(value) == set(spec.columns):
            return self._array(spec, [value[name] for name in spec.columns], str(value))
        wanted = [*spec.columns] if len(names) == 1 and spec.columns else names
        raise LineError(f"the line names {', '.join(map(repr, value))}; expected {', '.join(map(repr, wanted))}")

    def _named(self, spec: TensorSpec, value: Any) -> Any:
        if is_text(spec) and isinstance(value, str):
            return _encoded(spec, value)
        return self._array(spec, value, str(value))

    def _row(self, spec: TensorSpec, text: str) -> Any:
        cells = [cell.strip() for cell in (next(csv.reader([text])) if "," in text else text.split())]
        if self._header is None and spec.columns and set(spec.columns) <= set(cells):
            self._header = cells
            return None
        if self._header is not None:
            if len(cells) != len(self._header):
                raise LineError(f"{text[:60]!r} has {len(cells)} values; the header has {len(self._header)}")
            by_name = dict(zip(self._header, cells, strict=True))
            cells = [by_name[name] for name in spec.columns]
        wanted = expected(self._model)
        if not spec.columns and not any(map(_is_number, cells)):
            wanted += ", and no header, as the model has no names for its columns"
        return self._array(spec, [_number(cell, wanted) for cell in cells], text)

    def _array(self, spec: TensorSpec, value: Any, text: str) -> np.ndarray:
        try:
            array = np.asarray(value, signatures.numpy_dtype(spec.dtype))
        except (TypeError, ValueError) as error:
            raise LineError(f"{text[:60]!r} is not {expected(self._model)}, in numbers: {error}") from error
        step = signatures.step_shape(spec)
        if array.size == int(np.prod([max(1, each) for each in step], initial=1)) and array.ndim <= 1:
            return array.reshape([max(1, each) for each in step])
        return array


def _encoded(spec: TensorSpec, text: str) -> Any:
    """A text as the numbers of its symbols, where the model says which these are."""
    symbols = [*spec.text.vocabulary]
    if not symbols:
        return text
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    unknown = numbers.get(spec.text.unknown) if spec.text.unknown else None
    parts = text.split(spec.text.separator) if spec.text.separator else [*text]
    strange = [part for part in parts if part not in numbers]
    if strange and unknown is None:
        raise LineError(f"{strange[0]!r} is none of the {len(symbols)} symbols of {spec.name}")
    return np.asarray([numbers.get(part, unknown) for part in parts], signatures.numpy_dtype(spec.dtype))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, wanted: str) -> float | int:
    try:
        return int(cell)
    except ValueError:
        pass
    try:
        return float(cell or "nan")
    except ValueError:
        raise LineError(f"{cell!r} is no number; expected {wanted}") from None


def plain(value: Any) -> Any:
    """An answer as JSON values."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None  # JSON has neither NaN nor infinities.
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def shown(value: Any) -> str:
    """An answer for people: names where there are several, numbers as they are."""
    if isinstance(value, Mapping):
        return "  ".join(f"{key}: {shown(one)}" for key, one in value.items())
    if isinstance(value, np.ndarray):
        return " ".join(f"{each:.6g}" if isinstance(each, float) else str(each) for each in value.ravel().tolist())
    return str(value)


def read_table(path: str, text: str) -> tuple[list[str], list[list[str]]]:
    """The header and rows of CSV.

    Raises:
        LineError: There is no header or no row.
    """
    reader = csv.reader(text.splitlines())
    rows = list[list[str]]()
    for row in filter(None, reader):
        if rows and len(row) != len(rows[0]):
            raise LineError(
                f"{called(path)}, line {reader.line_num} has {len(row)} values; the header has {len(rows[0])}"
            )
        rows.append(row)
    if len(rows) < 2:
        raise LineError(f"{called(path)} has {len(rows)} lines; expected CSV with a header and rows below it")
    return [name.strip() for name in rows[0]], rows[1:]


def read_bytes(file: str) -> bytes:
    """What a file has; for `-` what is piped in."""
    return sys.stdin.buffer.read() if file == PIPED else Path(file).read_bytes()


def read_array(data: bytes) -> np.ndarray | None:
    """What the bytes of a .npy file say; None for any others.

    Raises:
        LineError: They begin as such a file and are none, or one of Python's objects.
    """
    if not data.startswith(b"\x93NUMPY"):
        return None
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise LineError(f"these {len(data):,} bytes begin as a .npy file and cannot be read as one: {error}") from error


def read_text(data: bytes, file: str) -> str:
    """The text that a file has.

    Raises:
        LineError: It is none in UTF-8.
    """
    return "".join(_decoded(io.BytesIO(data), file))


def read_lines(file: str) -> Iterator[str]:
    """The lines of a file; for `-` those that are piped in, as they come.

    Raises:
        LineError: One is no text in UTF-8.
    """
    if file == PIPED:
        yield from _decoded(sys.stdin.buffer, file)
    else:
        with Path(file).open("rb") as read:
            yield from _decoded(read, file)


def called(file: str) -> str:
    """What a file is called in messages."""
    return "standard input" if file == PIPED else file


def _decoded(source: Iterable[bytes], file: str) -> Iterator[str]:
    for number, line in enumerate(source, 1):
        try:
            # Spreadsheets put a mark before the first line, which is not part of the first name.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LineError(
                f"{called(file)}, line {number}: byte {error.object[error.start]:#04x} is no text in UTF-8; save it as"
                " that, for instance with iconv"
            ) from error


def columns_of(header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str], path: str) -> np.ndarray:
    """[T, F] of the columns that a model has, by name; of one without names all of them.

    Raises:
        LineError: One is missing, or has what is no number.
    """
    wanted = [*names] or [*header]
    missing = [name for name in wanted if name not in header]
    if missing:
        if len(wanted) == 1 and "y" in header:
            wanted = ["y"]
        else:
            raise LineError(f"{called(path)} has the columns {', '.join(header)}; missing: {', '.join(missing)}")
    places = [header.index(name) for name in wanted]
    found = list[list[float | int]]()
    for number, row in enumerate(rows, 1):
        try:
            found.append([_number(row[place], wanted[at]) for at, place in enumerate(places)])
        except LineError as error:
            raise LineError(f"{called(path)}, row {number} below the header: {error}") from error
    return np.asarray(found)
