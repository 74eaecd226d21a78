"""Entries: the text of a model.toml, read strictly and written."""

from __future__ import annotations

import contextlib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any, Final, TypeVar

from statestream.contract.observations import POLICIES, UNITS
from statestream_server.models.form.told import (
    BATCH,
    GENERATE,
    HOLD,
    PAD,
    START,
    TIME,
    Context,
    Elapsed,
    Shape,
    Told,
    ToldError,
    Window,
    meant,
    quoted,
    unknown,
)

MOST_SIZES: Final = 64
"""Of one file: each is a model of its own, with the weights in memory once more."""
_DEEPEST: Final = 16
"""Tables and lists in each other; a wire's name without quotes is a table for every dot."""
_MOST_PARTS: Final = 64
_LONG_KEY: Final = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){%d}""" % _MOST_PARTS  # noqa: UP031
)
"""A key of many parts: it takes tomllib their cube."""
_LARGEST: Final = 1 << 64
_MOST_AXES: Final = 32
_MOST_TOKENS: Final = 1 << 31
_T = TypeVar("_T")


def loads(text: str) -> Told:
    """Reads the text of a model.toml.

    Raises:
        ToldError: It is no TOML, or an entry is unknown or of a wrong kind.
    """
    values = _parsed(text)
    known = [each.name for each in fields(Told)]
    for key in values:
        if key not in known:
            raise ToldError(f"unknown entry {key!r}{meant(key, known)}; there are {', '.join(known)}")
    stateless = values.pop("stateless", False)
    if not isinstance(stateless, bool):
        raise ToldError(f"stateless is {stateless!r}; expected true or false")
    chain = _chain(values.pop("chain", []))
    ahead = _names(values.pop("ahead"), "ahead") if "ahead" in values else ()
    if isinstance(values.get("wires"), dict):
        values["wires"] = _flat(values["wires"])
    return Told(
        stateless,
        chain=chain,
        ahead=ahead,
        **{key: _table(key, value, _READ[key]) for key, value in values.items()},
    )


def _parsed(text: str) -> dict[str, Any]:
    """The values of a TOML text, with nothing in them that whoever looks at it would choke on.

    Raises:
        ToldError: It is none, or there is.
    """
    if _LONG_KEY.search(text):
        raise ToldError(f"has a key of more than {_MOST_PARTS} parts; put a tensor's name in quotes")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # A number of 5,000 digits is a ValueError.
        raise ToldError(f"is no TOML ({error})") from error
    level: list[Any] = [values]
    for _ in range(_DEEPEST + 1):
        level = [one for each in level for one in (each.values() if isinstance(each, dict) else each)]
        if not all(-_LARGEST < each < _LARGEST for each in level if isinstance(each, int)):
            raise ToldError("has a whole number of more than 64 bits")
        level = [each for each in level if isinstance(each, dict | list)]
    if level:
        raise ToldError(f"has lists or tables more than {_DEEPEST} deep in each other")
    return values


def added(told: Told, entries: Mapping[str, Sequence[tuple[str, str]]], *, stateless: bool = False) -> Told:
    """What is told with more entries, as a command line has them: by table names and texts; lists have commas.

    Raises:
        ToldError: A value is of a wrong kind.
    """
    more: dict[str, Any] = {}
    for key, given in entries.items():
        before = getattr(told, key) or {}
        after = {name: _READ[key](_value(key, text), f"{key}.{name}") for name, text in given}
        more[key] = {**before, **after}
        if key == "shapes":
            more["sizes"] = {name: shapes for name, shapes in told.sizes.items() if name not in after}
    return replace(told, stateless=told.stateless or stateless, **more)


def _value(key: str, text: str) -> Any:
    """What a text of a command line is in TOML."""
    if key in ("states", "wires", "feedback", "missing"):
        return text
    if key == "elapsed":
        unit, sign, first = text.partition(",")
        return {"unit": _number(unit)} | ({"first": _number(first)} if sign else {})
    if key == "columns":
        return text.split(",")
    if key == "window":
        steps, sign, before = text.partition(",")
        return {"steps": _number(steps)} | ({"before": before} if sign else {})
    values = [_number(each) for each in text.split(",")]
    return values if key == "shapes" or len(values) > 1 else values[0]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text.strip()


def dumps(told: Told) -> str:
    """The text of a model.toml that tells the same."""
    lines = ["stateless = true"] * told.stateless
    if told.chain:
        lines.append(f"chain = [{', '.join(map(quoted, told.chain))}]")
    if told.ahead:
        lines.append(f"ahead = [{', '.join(map(quoted, told.ahead))}]")
    for entry in fields(Told):
        table = getattr(told, entry.name) if entry.name not in ("stateless", "chain", "ahead") else None
        if table is not None and (table or entry.name in ("states", "wires")):
            lines += [
                f"[{entry.name}]",
                *(f"{quoted(name)} = {_text(entry.name, value)}" for name, value in table.items()),
            ]
    return "\n".join([*lines, ""])


def _text(table: str, value: Any) -> str:
    if isinstance(value, Context):
        return str(value.keep) if value.axis is None else f"{{ keep = {value.keep}, axis = {value.axis} }}"
    if isinstance(value, Window):
        entries = [f"steps = {value.steps}", *([] if value.axis is None else [f"axis = {value.axis}"])]
        entries += [f"before = {quoted(value.before)}"] * (value.before != START)
        return str(value.steps) if len(entries) == 1 else f"{{ {', '.join(entries)} }}"
    if isinstance(value, Elapsed):
        unit = quoted(value.unit) if isinstance(value.unit, str) else repr(value.unit)
        return f"{{ unit = {unit}, first = {value.first!r} }}" if value.first else unit
    if isinstance(value, str):
        return quoted(value)
    if not isinstance(value, Sequence):
        return repr(value)
    listed = len(value) != 1 or table in ("shapes", "sizes", "columns")
    inner = "shapes" if table == "sizes" else ""
    return f"[{', '.join(_text(inner, each) for each in value)}]" if listed else _text("", value[0])


def numbers(value: Any, where: str) -> Sequence[float]:
    """One number, a truth value or a list of them.

    Raises:
        ToldError: It is something else.
    """
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, int | float) for each in values):
        raise ToldError(f"{where} is {value!r}; expected a number or a list of numbers")
    if any(math.isnan(each) for each in values):
        raise ToldError(f"{where} is {value!r}; expected numbers, and NaN is none")
    return tuple(int(each) if isinstance(each, bool) else each for each in values)


def shape(value: Any, where: str) -> Shape:
    """Lengths and the words "batch" and "time", each at most once.

    Raises:
        ToldError: It is something else.
    """
    good = isinstance(value, list) and all(
        each in (BATCH, TIME) if isinstance(each, str) else type(each) is int and each > 0 for each in value
    )
    if not good or value.count(BATCH) > 1 or value.count(TIME) > 1:
        raise ToldError(f'{where} is {value!r}; expected lengths, "batch" and "time", as in ["batch", 512]')
    return tuple(value)


def several(value: Any, where: str) -> Sequence[Shape]:
    """A list of shapes.

    Raises:
        ToldError: It is something else.
    """
    if not isinstance(value, list) or not value or len({len(each) for each in value if isinstance(each, list)}) != 1:
        raise ToldError(
            f'{where} is {value!r}; expected shapes, as in [["batch", 3, 288, 512], ["batch", 3, 144, 256]]'
        )
    if len(value) > MOST_SIZES:
        raise ToldError(f"{where} has {len(value)} shapes; expected {MOST_SIZES} at most: each is a model of its own")
    return tuple(shape(each, f"{where}[{number}]") for number, each in enumerate(value))


def context(value: Any, where: str) -> Context:
    """A number of values, or a table with it and the axis.

    Raises:
        ToldError: It is something else.
    """
    table = value if isinstance(value, dict) else {"keep": value}
    keep, axis = table.get("keep"), table.get("axis")
    if set(table) - {"keep", "axis"} or type(keep) is not int or keep < 1 or not (axis is None or type(axis) is int):
        raise ToldError(f"{where} is {value!r}; expected a number of values, or {{ keep = 64, axis = 1 }}")
    return Context(keep, axis)


def window(value: Any, where: str) -> Window:
    """A number of steps, or a table with it, their axis and what stands before the first.

    Raises:
        ToldError: It is something else.
    """
    table = value if isinstance(value, dict) else {"steps": value}
    steps, axis, before = table.get("steps"), table.get("axis"), table.get("before", START)
    known = not set(table) - {"steps", "axis", "before"} and before in (START, PAD, HOLD)
    if not known or type(steps) is not int or steps < 2 or not (axis is None or type(axis) is int):
        raise ToldError(
            f"{where} is {value!r}; expected a number of steps, 2 or more, or {{ steps = 24, axis = 1, before ="
            f' "{PAD}" }}, where before is "{START}", "{PAD}" or "{HOLD}"'
        )
    return Window(steps, axis, before)


def elapsed(value: Any, where: str) -> Elapsed:
    """A unit of time, or a table with it and what a session's first step is told.

    Raises:
        ToldError: It is something else.
    """
    table = value if isinstance(value, dict) else {"unit": value}
    unit: Any = table.get("unit")
    first: Any = table.get("first", 0.0)
    known = unit in UNITS if isinstance(unit, str) else type(unit) in (int, float) and math.isfinite(unit) and unit > 0
    good = type(first) in (int, float) and math.isfinite(first) and first >= 0
    if set(table) - {"unit", "first"} or not known or not good:
        raise ToldError(
            f"{where} is {value!r}; expected one of {', '.join(UNITS)} or a number of seconds, or"
            ' { unit = "h", first = 24 }'
        )
    return Elapsed(unit, float(first))


def _policy(value: Any, where: str) -> str:
    if value not in POLICIES:
        raise ToldError(f"{where} is {value!r}; expected {', '.join(POLICIES)}")
    return str(value)


def _fed(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ToldError(f"{where} is {value!r}; expected the name of the input that it becomes")
    return value


def _one(value: Any, where: str) -> float:
    (found, *more) = numbers(value, where)
    if more or not math.isfinite(found):
        raise ToldError(f"{where} is {value!r}; expected one number")
    return found


def _count(value: Any, where: str) -> int:
    entry = where.partition(".")[2]
    if entry not in GENERATE:
        raise ToldError(f"{where} is no entry{unknown(entry, GENERATE)}")
    least = entry.startswith("max")
    if type(value) is not int or not least <= value < _MOST_TOKENS:
        raise ToldError(f"{where} is {value!r}; expected a whole number, {int(least)} or more")
    return value


def _axis(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < _MOST_AXES:
        raise ToldError(f"{where} is {value!r}; expected the axis of the steps ahead, as in {{ forecast = 1 }}")
    return value


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ToldError(f"{where} is {value!r}; expected the name of an output")
    return value


def _chain(value: Any) -> Sequence[str]:
    good = isinstance(value, list) and all(
        isinstance(each, str) and each.endswith(".onnx") and PurePath(each).name == each for each in value
    )
    if not good or len(value) == 1:
        raise ToldError(f'chain is {value!r}; expected files of this folder, as in ["model_1.onnx", "model_2.onnx"]')
    if len(set(value)) < len(value):
        raise ToldError("chain: a file stands in it twice; copy it under another name")
    return tuple(value)


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A table of wires by whole names: what TOML makes of `model_2.x = …` without quotes is a table in a table."""
    flat = dict[str, Any]()
    for key, value in table.items():
        flat.update(_flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value})
    return flat


def _names(value: Any, where: str) -> Sequence[str]:
    good = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
    if not good or len(set(value)) < len(value):
        raise ToldError(f"{where} is {value!r}; expected a list of names, each once")
    return tuple(value)


_READ: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "states": _name,
    "start": numbers,
    "shapes": shape,
    "sizes": several,
    "context": context,
    "window": window,
    "constants": numbers,
    "session": numbers,
    "counters": _one,
    "columns": _names,
    "feedback": _fed,
    "missing": _policy,
    "elapsed": elapsed,
    "wires": _name,
    "horizon": _axis,
    "generate": _count,
}


def _table(key: str, value: Any, read: Callable[[Any, str], _T]) -> Mapping[str, _T]:
    if not isinstance(value, dict):
        raise ToldError(f"{key} is {value!r}; expected a table by the names of tensors")
    return {name: read(each, f"{key}.{name}") for name, each in value.items()}
