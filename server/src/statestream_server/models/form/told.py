"""What a person tells of a file: in a model.toml, whose text `entries` reads, or in options of a command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from statestream.contract.observations import UNITS

NAME: Final = "model.toml"
"""The file beside model.onnx."""
BATCH, TIME = "batch", "time"
"""The words for axes in shapes."""
START, PAD, HOLD = "start", "pad", "hold"
"""The words for what stands before the first step of a window."""
GENERATE: Final = ("start_token", "end_token", "pad_token", "max_tokens", "max_source_tokens")
"""What may be told of how an encoder-decoder generates."""
Shape = tuple[int | str, ...]
_SHOWN: Final = 1000


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
class Elapsed:
    """In which unit an input is the time since the step before, and what a session's first step is told."""

    unit: str | float
    first: float = 0.0

    @property
    def seconds(self) -> float:
        """How many seconds the unit has."""
        return UNITS[self.unit] if isinstance(self.unit, str) else self.unit


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
        horizon: Outputs that have several steps ahead at once, the next one first: along which axis.
        feedback: Which output becomes which input when it forecasts; what arrives there is scored by it.
        ahead: Inputs known beforehand whose value at a step is that of the step which is predicted there.
        missing: What becomes of NaN in inputs: "refuse", "hold" or "predict".
        elapsed: Inputs that are the time since the step before.
        chain: The files that are one model, in the order in which they run, where they are several.
        wires: Of a chain, inputs by the output of an earlier file that they take, or by its input that both take; None
            where they are to be found out. Of a pair, the decoder's inputs by the encoder's output.
        generate: Of a pair, what is not read beside it; see `GENERATE`.
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
    horizon: Mapping[str, int] = field(default_factory=dict)
    feedback: Mapping[str, str] = field(default_factory=dict)
    ahead: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    elapsed: Mapping[str, Elapsed] = field(default_factory=dict)
    chain: Sequence[str] = ()
    wires: Mapping[str, str] | None = None
    generate: Mapping[str, int] = field(default_factory=dict)

    def check(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Checks that all names are of the graph, and that none is told two things.

        Raises:
            ToldError: One is not.
        """
        given, made = list(inputs), list(outputs)
        for old, new in (self.states or {}).items():
            _known("states", old, given, "input")
            _known("states", new, made, "output")
        for table in ("sizes", "context", "window", "constants", "session", "counters", "missing", "elapsed"):
            for name in getattr(self, table):
                _known(table, name, given, "input")
        for table in ("horizon", "feedback"):
            for name in getattr(self, table):
                _known(table, name, made, "output")
        for table, names in (("feedback", [*self.feedback.values()]), ("ahead", self.ahead)):
            for name in names:
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


def quoted(name: str) -> str:
    """A name as TOML's string, escaped where that is needed."""
    escaped = "".join(
        f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else "\\" + char if char in '"\\' else char
        for char in name
    )
    return f'"{escaped}"'


def unknown(name: str, names: Iterable[str]) -> str:
    """What there is in place of a name that there is not, and which may be meant."""
    there = sorted(names)
    return f"{meant(name, there)}; there are {there}"


def _known(table: str, name: str, names: Sequence[str], kind: str) -> None:
    if name not in names:
        raise ToldError(f"{table} names {name!r}, which is no {kind}{unknown(name, names)}")


def meant(name: str, names: Sequence[str]) -> str:
    """The name that may be meant by one that there is not, in brackets; "" where none is close."""
    close = difflib.get_close_matches(name, names, 1)
    return f" (is it {close[0]!r}?)" if close else ""
