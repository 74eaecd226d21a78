"""What a person tells of a file: the entries of model.toml, read strictly."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any, Final, TypeVar

NAME: Final = "model.toml"
"""The file beside model.onnx."""
BATCH, TIME = "batch", "time"
"""The words for axes in shapes."""
START, PAD, HOLD = "start", "pad", "hold"
"""The words for what stands before the first step of a window."""
Shape = tuple[int | str, ...]
MOST_SIZES: Final = 64
"""Of one file: each is a model of its own, with the weights in memory once more."""
_DEEPEST: Final = 16
"""Tables and lists in each other; a wire's name without quotes is a table for every dot."""
_MOST_PARTS: Final = 64
_LONG_KEY: Final = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){%d}""" % _MOST_PARTS  # noqa: UP031
)
"""A key of many parts: it takes tomllib their cube."""
_SHOWN: Final = 1000
_LARGEST: Final = 1 << 64
_T = TypeVar("_T")


class ToldError(ValueError):
    """What is told contradicts itself or the file; the message says where, and what was expected."""

    def __init__(self, text: str) -> None:
        """What is wrong; of what came in a message as long as a file, its begin and end are shown."""
        super().__init__(text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} … {text[-_SHOWN:]}")


@dataclass(frozen=True, slots=True)
class Context:
    """How many of the last values along an axis an input is given again before new ones; `axis` None: the last."""

    keep: int
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """A window of past steps that an input takes, while callers send one step at a time.

    Attributes:
        steps: How many it takes, the newest included.
        axis: Where they are in the graph; None for the only axis that fits.
        before: What stands there for steps that did not come yet: the START value, the first step again and again
            (PAD); or HOLD: there is no answer yet.
    """

    steps: int
    axis: int | None = None
    before: str = START


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a file. All names are those of its graph.

    Attributes:
        stateless: Whether it has no memory, whatever it looks like.
        states: The states: the input that takes the old value to the output that gives the new one; None where it is
            to be found out.
        start: What states start from: one number, or all of a row in C order; zeros where nothing is said. What is
            kept of an input with a context or window has the input's name.
        shapes: The shapes of inputs, outputs and states, all axes: a length, "batch" or "time". Of an input with a
            context or window as callers send it.
        sizes: Shapes of inputs, several of each: the file is served once for every one, with its length in its name.
        context: Inputs that are given their last values again.
        window: Inputs that take a window of past steps.
        constants: Inputs that have one value for all sessions, which becomes part of the graph.
        session: Inputs that have one value for all of a session: it is opened with one, else this.
        counters: Inputs that count: what is added at every step.
        columns: The names of features along an input's or output's last axis.
        chain: The files that are one model, in the order in which they run, where they are several.
        wires: Of a chain, inputs by the output of an earlier file that they take, or by its input that both take; None
            where they are to be found out.
    """

    stateless: bool = False
    states: Mapping[str, str] | None = None
    start: Mapping[str, Sequence[float]] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    sizes: Mapping[str, Sequence[Shape]] = field(default_factory=dict)
    context: Mapping[str, Context] = field(default_factory=dict)
    window: Mapping[str, Window] = field(default_factory=dict)
    constants: Mapping[str, Sequence[float]] = field(default_factory=dict)
    session: Mapping[str, Sequence[float]] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    chain: Sequence[str] = ()
    wires: Mapping[str, str] | None = None

    def check(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Checks that all names are of the graph, and that none is told two things.

        Raises:
            ToldError: One is not.
        """
        given, made = list(inputs), list(outputs)
        for old, new in (self.states or {}).items():
            _known("states", old, given, "input")
            _known("states", new, made, "output")
        for table in ("sizes", "context", "window", "constants", "session", "counters"):
            for name in getattr(self, table):
                _known(table, name, given, "input")
        for name in (*self.shapes, *self.columns):
            _known("shapes" if name in self.shapes else "columns", name, [*given, *made], "input or output")
        roles = [*(self.states or {}), *self.constants, *self.session, *self.counters, *self.context, *self.window]
        twice = sorted({name for name in roles if roles.count(name) > 1})
        if twice:
            raise ToldError(f"{twice[0]!r} is told two things; an input is one of states, constants, session, counters")
        kept = [*(self.states or {}), *self.session, *self.counters, *self.context, *self.window]
        for name in self.start:
            _known("start", name, kept if self.states is not None else given, "state")
        both = sorted({*self.start} & {*self.session})
        if both:
            raise ToldError(f"{both[0]!r} is told two things; session says what it is where nothing is said, not start")
        news = list((self.states or {}).values())
        if len(set(news)) < len(news):
            raise ToldError("states: two of them have the same output; each needs its own")
        if self.stateless and kept:
            raise ToldError("stateless = true, and yet there are states, session, counters, context or window")
        for name, window in self.window.items():
            if name in self.start and window.before != START:
                raise ToldError(f"window.{name}: before is {window.before!r}, and yet there is start.{name}")

    def by_size(self) -> dict[str, Told]:
        """What is told of each of several sizes, by what tells them apart, as in 288x512; nothing where there is one.

        Raises:
            ToldError: Inputs have not as many of them, or two are the same.
        """
        if not self.sizes:
            return {}
        counts = {len(shapes) for shapes in self.sizes.values()}
        if len(counts) > 1 or counts == {1}:
            raise ToldError(f"sizes has {sorted(counts)} shapes; expected as many of every input, 2 or more")
        both = next((name for name in self.sizes if name in self.shapes), None)
        if both is not None:
            raise ToldError(f"{both!r} stands in shapes and in sizes; expected one of them")
        places = [(name, axis) for name, shapes in self.sizes.items()
                  for axis, lengths in enumerate(zip(*shapes, strict=False)) if len(set(lengths)) > 1]  # fmt: skip
        found = dict[str, Told]()
        for number in range(*counts):
            shapes = {name: shapes[number] for name, shapes in self.sizes.items()}
            key = "x".join(str(shapes[name][axis]) for name, axis in places)
            if key in found or not key:
                raise ToldError(f"sizes has {shapes} twice; expected each once")
            found[key] = replace(self, shapes={**self.shapes, **shapes}, sizes={})
        return found


def loads(text: str) -> Told:
    """Reads the text of a model.toml.

    Raises:
        ToldError: It is no TOML, or an entry is unknown or of a wrong kind.
    """
    values = _parsed(text)
    known = [each.name for each in fields(Told)]
    for key in values:
        if key not in known:
            raise ToldError(f"unknown entry {key!r}{_meant(key, known)}; there are {', '.join(known)}")
    stateless = values.pop("stateless", False)
    if not isinstance(stateless, bool):
        raise ToldError(f"stateless is {stateless!r}; expected true or false")
    chain = _chain(values.pop("chain", []))
    if isinstance(values.get("wires"), dict):
        values["wires"] = _flat(values["wires"])
    return Told(
        stateless,
        chain=chain,
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
    if key in ("states", "wires"):
        return text
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
    for entry in fields(Told):
        table = getattr(told, entry.name) if entry.name not in ("stateless", "chain") else None
        if table is not None and (table or entry.name in ("states", "wires")):
            lines += [
                f"[{entry.name}]",
                *(f"{quoted(name)} = {_text(entry.name, value)}" for name, value in table.items()),
            ]
    return "\n".join([*lines, ""])


def quoted(name: str) -> str:
    """A name as TOML's string, escaped where that is needed."""
    escaped = "".join(
        f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else "\\" + char if char in '"\\' else char
        for char in name
    )
    return f'"{escaped}"'


def _text(table: str, value: Any) -> str:
    if isinstance(value, Context):
        return str(value.keep) if value.axis is None else f"{{ keep = {value.keep}, axis = {value.axis} }}"
    if isinstance(value, Window):
        entries = [f"steps = {value.steps}", *([] if value.axis is None else [f"axis = {value.axis}"])]
        entries += [f"before = {quoted(value.before)}"] * (value.before != START)
        return str(value.steps) if len(entries) == 1 else f"{{ {', '.join(entries)} }}"
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


def _one(value: Any, where: str) -> float:
    (found, *more) = numbers(value, where)
    if more or not math.isfinite(found):
        raise ToldError(f"{where} is {value!r}; expected one number")
    return found


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
    "wires": _name,
}


def _table(key: str, value: Any, read: Callable[[Any, str], _T]) -> Mapping[str, _T]:
    if not isinstance(value, dict):
        raise ToldError(f"{key} is {value!r}; expected a table by the names of tensors")
    return {name: read(each, f"{key}.{name}") for name, each in value.items()}


def unknown(name: str, names: Iterable[str]) -> str:
    """What there is in place of a name that there is not, and which may be meant."""
    there = sorted(names)
    return f"{_meant(name, there)}; there are {there}"


def _known(table: str, name: str, names: Sequence[str], kind: str) -> None:
    if name not in names:
        raise ToldError(f"{table} names {name!r}, which is no {kind}{unknown(name, names)}")


def _meant(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f" (is it {close[0]!r}?)" if close else ""
