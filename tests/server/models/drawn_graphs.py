"""Graphs that are drawn: builds what a spec says, with names and orders by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from statestream_server.arrays import Array
from tests.server.models.drawn import FEATURES, Drawn, Spec, State
from tests.server.models.graphs import Builder


class _Graph(Builder):
    """A builder with names of its own, and of one type."""

    def __init__(self, spec: Spec, prefix: str = "") -> None:
        super().__init__(spec.seed)
        self._prefix, self.dtype = prefix, spec.dtype

    def name(self) -> str:
        return f"{self._prefix}{super().name()}"

    def ints(self, *values: int) -> str:
        return str(self.constant(np.asarray(values, np.int64)))

    def number(self, value: float) -> str:
        return str(self.constant(np.asarray(value, self.dtype)))

    def dense(self, value: str, wide: int, to: int) -> str:
        return str(self.add("MatMul", [value, self.weight(wide, to, dtype=self.dtype, scale=0.5)]))


def _onnx_type(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class _Maker:
    """Builds one graph. Inside, values are [t, b, …], without the axes that there are not."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.b, self.draw = spec, _Graph(spec), random.Random(spec.seed)
        self.batched = "b" in spec.layout
        self.infos: tuple[list[Any], list[Any]] = ([], [])
        self.made = Drawn(onnx.ModelProto())
        self.layers: dict[int, list[str]] = {}
        self.count = 0

    # ---- the edges

    def axis(self, letter: str, sizes: Mapping[str, int]) -> int | str | None:
        """What the graph says of the length of an axis."""
        if letter == "b":
            if self.spec.told == "other" and self.spec.batch not in ("", "1"):
                return f"{self.spec.batch}_{len(self.infos[0]) + len(self.infos[1])}"
            return 1 if self.spec.batch == "1" else self.spec.batch or None
        return "T" if letter == "t" else 1 if letter == "1" else sizes[letter]

    def info(self, side: int, name: str, dtype: str, layout: str, sizes: Mapping[str, int]) -> None:
        dims: Any = [self.axis(letter, sizes) for letter in layout]
        if side and self.spec.told in ("ranks", "nothing"):
            dims = [None] * len(dims) if self.spec.told == "ranks" else None
        self.infos[side].append(helper.make_tensor_value_info(name, _onnx_type(dtype), dims))

    def enter(self, name: str, layout: str, sizes: Mapping[str, int], dtype: str) -> str:
        """An input; its value inside, axes in the order t, b, then the others."""
        self.info(0, name, dtype, layout, sizes)
        return self.turned(name, layout)

    def turned(self, value: str, layout: str) -> str:
        left = layout.replace("1", "")
        if "1" in layout:
            value = self.b.add("Squeeze", [value, self.b.ints(layout.index("1"))])
        inner = sorted(left, key="tbhkf".index)
        if list(left) == inner:
            return value
        return str(self.b.add("Transpose", [value], perm=[left.index(letter) for letter in inner]))

    def leave(self, value: str, name: str, layout: str, sizes: Mapping[str, int], dtype: str) -> None:
        """An output of a value inside."""
        left = layout.replace("1", "")
        inner = sorted(left, key="tbhkf".index)
        if list(left) != inner:
            value = self.b.add("Transpose", [value], perm=[inner.index(letter) for letter in left])
        if "1" in layout:
            value = self.b.add("Unsqueeze", [value, self.b.ints(layout.index("1"))])
        self.b.add("Identity", [value], [name])
        self.info(1, name, dtype, layout, sizes)

    def send(self, name: str, layout: str, sizes: Mapping[str, int]) -> None:
        """Notes how a step is sent: its axes but b, t and those of length 1, in the graph's order."""
        step = tuple(sizes[letter] for letter in layout if letter not in "tb1")

        def lay(value: Array) -> Array:
            whole = [1 if letter in "tb1" else sizes[letter] for letter in layout]
            return value.reshape(whole)

        self.made.inputs[name] = (step, lay)
        lengths = {"b": 1 if self.spec.batch == "1" else 3, "t": 4, "1": 1, **sizes}
        self.made.calls[name] = tuple(lengths[letter] for letter in layout)

    def state(self, stored: str, row: Sequence[int], dtype: str) -> tuple[str, Callable[[str], None]]:
        """A state: its value inside [b, *row], and what takes its new one."""
        if self.spec.joined and dtype == self.spec.dtype and len(row) == 1:
            return self.shared(row[0])
        letters = "hk"[: len(row)] if len(row) < 2 else "kh"
        layout, sizes = stored.replace("h", letters), dict(zip(letters, row, strict=True))
        self.count += 1
        old, new = f"s{self.count}", f"s{self.count}_new"
        inner = self.enter(old, layout, sizes, dtype)
        if sorted(layout.replace("1", ""), key="tbhkf".index) != list("b" * self.batched + letters):
            inner = self.b.add("Transpose", [inner], perm=[0, 2, 1] if self.batched else [1, 0])
        shape = [1 if letter in "b1" else sizes[letter] for letter in layout]
        self.made.states.append(State(old, new, np.zeros(shape, dtype)))

        def take(value: str) -> None:
            if sorted(layout.replace("1", ""), key="tbhkf".index) != list("b" * self.batched + letters):
                value = self.b.add("Transpose", [value], perm=[0, 2, 1] if self.batched else [1, 0])
            self.leave(value, new, layout, sizes, dtype)

        return inner, take

    def shared(self, wide: int) -> tuple[str, Callable[[str], None]]:
        """A layer of a state of several [layers, b, wide]; the last to come writes it."""
        if wide not in self.layers:
            self.layers[wide] = []
        news, place = self.layers[wide], len(self.layers[wide])
        news.append("")
        inner = self.b.add("Gather", [f"joined{wide}", self.b.ints(place)], axis=0)
        inner = self.b.add("Squeeze", [inner, self.b.ints(0)])

        def take(value: str) -> None:
            news[place] = value

        return inner, take

    def join(self) -> None:
        """Writes the states of several layers."""
        for wide, news in self.layers.items():
            layout, sizes, name = "lbh" if self.batched else "lh", {"l": len(news), "h": wide}, f"joined{wide}"
            self.info(0, name, self.spec.dtype, layout, sizes)
            self.info(1, f"{name}_new", self.spec.dtype, layout, sizes)
            self.b.add("Concat", [self.b.add("Unsqueeze", [new, self.b.ints(0)]) for new in news], [f"{name}_new"],
                       axis=0)  # fmt: skip
            shape = [len(news), *([1] * self.batched), wide]
            self.made.states.append(State(name, f"{name}_new", np.zeros(shape, self.spec.dtype)))

    # ---- cells of one step: [b, wide] to [b, hidden]

    def wide(self) -> int:
        return self.spec.hidden or self.draw.choice([2, 4, 5])

    def primitive(self, g: _Graph, value: str, old: str, wide: int, hidden: int) -> str:
        total = g.add("Add", [g.dense(value, wide, hidden), g.dense(old, hidden, hidden)])
        return str(g.add("Tanh", [total]))

    def gated(self, g: _Graph, value: str, old: str, wide: int, hidden: int) -> str:
        gate = g.add("Sigmoid", [g.add("Add", [g.dense(value, wide, hidden), g.dense(old, hidden, hidden)])])
        kept = g.add("Mul", [gate, old])
        return str(
            g.add("Add", [kept, g.add("Mul", [g.add("Sub", [g.number(1), gate]), g.dense(value, wide, hidden)])])
        )

    def average(self, g: _Graph, value: str, old: str, wide: int, hidden: int) -> str:
        return str(g.add("Add", [g.add("Mul", [old, g.number(0.75)]), g.dense(value, wide, hidden)]))

    def stepped(self, kind: str, stored: str, value: str, wide: int) -> tuple[str, int]:
        """Adds a cell that takes one step a run."""
        b, hidden, dtype = self.b, self.wide(), self.spec.dtype
        if kind in ("primitive", "gated", "average"):
            old, take = self.state(stored, [hidden], dtype)
            new = getattr(self, kind)(b, value, old, wide, hidden)
            take(new)
            return new, hidden
        if kind == "queue":
            keep = self.draw.choice([1, 2, 3])
            old, take = self.state(stored, [keep, wide], dtype)
            place = 1 if self.batched else 0
            joined = b.add("Concat", [old, b.add("Unsqueeze", [value, b.ints(place)])], axis=place)
            take(b.add("Slice", [joined, b.ints(-keep), b.ints(1 << 62), b.ints(place)]))
            weights = b.weight(keep + 1, 1, dtype=dtype, scale=1.0)
            return str(b.add("ReduceSum", [b.add("Mul", [joined, weights]), b.ints(place)], keepdims=0)), wide
        if kind == "delay":
            old, take = self.state(stored, [wide], dtype)
            take(value)
            return str(b.add("Sub", [value, b.add("Mul", [old, b.number(0.5)])])), wide
        if kind == "constant":
            old, take = self.state(stored, [wide], dtype)
            take(b.add("Identity", [old]))
            return str(b.add("Add", [value, old])), wide
        if kind in ("count", "flag"):
            whole = "int64" if kind == "count" else "bool"
            old, take = self.state(stored, [1], whole)
            if kind == "count":
                take(b.add("Add", [old, b.constant(np.asarray(1, np.int64))]))
            else:
                first = b.add("Gather", [value, b.ints(0)], axis=1 if self.batched else 0)
                take(b.add("Or", [old, b.add("Greater", [first, b.number(1)])]))
            return str(b.add("Add", [value, b.add("Cast", [old], to=_onnx_type(dtype))])), wide
        lead = b.ints(0) if self.batched else b.ints(0, 1)
        result, width = self.recurrent(kind, stored, b.add("Unsqueeze", [value, lead]), wide)
        return str(b.add("Squeeze", [result, lead])), width

    def recurrent(self, kind: str, stored: str, value: str, wide: int) -> tuple[str, int]:
        """Adds a recurrent operator over [t, b, wide]; without sessions b is 1."""
        b, hidden = self.b, self.wide()
        gates, lead = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind], b.ints(0) if self.batched else b.ints(0, 1)
        states = [self.state(stored, [hidden], self.spec.dtype) for _ in range(2 if kind == "LSTM" else 1)]
        starts = [b.add("Unsqueeze", [old, lead]) for old, _ in states]
        weights = [b.weight(1, gates * hidden, wide), b.weight(1, gates * hidden, hidden)]
        result, *ends = b.add(kind, [value, *weights, "", "", *starts], 1 + len(states), hidden_size=hidden)
        for (_, take), end in zip(states, ends, strict=True):
            take(b.add("Squeeze", [end, lead]))
        return str(b.add("Squeeze", [result, b.ints(1)])), hidden

    # ---- cells of any number of steps: [t, b, wide] to [t, b, hidden]

    def over_time(self, kind: str, stored: str, value: str, wide: int) -> tuple[str, int]:
        b, hidden, dtype = self.b, self.wide(), self.spec.dtype
        if kind in ("RNN", "GRU", "LSTM"):
            given = value if self.batched else b.add("Unsqueeze", [value, b.ints(1)])
            result, hidden = self.recurrent(kind, stored, given, wide)
            return (result if self.batched else str(b.add("Squeeze", [result, b.ints(1)]))), hidden
        if kind == "cumulated":
            old, take = self.state(stored, [hidden], dtype)
            dense = b.dense(value, wide, hidden)
            take(b.add("Add", [old, b.add("ReduceSum", [dense, b.ints(0)], keepdims=0)]))
            sums = b.add("CumSum", [dense, b.constant(np.asarray(0, np.int64))])
            return str(b.add("Add", [sums, b.add("Unsqueeze", [old, b.ints(0)])])), hidden
        old, take = self.state(stored, [hidden], dtype)
        self.count += 1
        inner = _Graph(self.spec, f"inner{self.count}_")
        cell = getattr(self, self.draw.choice(["primitive", "gated", "average"]))
        kept, each, end, out = (f"inner{self.count}_{what}" for what in ("kept", "each", "end", "out"))
        kinds, rows = _onnx_type(dtype), [None] * self.batched
        states = [helper.make_tensor_value_info(kept, kinds, [*rows, hidden])]
        results = [helper.make_tensor_value_info(name, kinds, [*rows, hidden]) for name in (end, out)]
        if kind == "scan":
            new = cell(inner, each, kept, wide, hidden)
            states.append(helper.make_tensor_value_info(each, kinds, [*rows, wide]))
        else:
            turn, more, still = (f"inner{self.count}_{what}" for what in ("turn", "more", "still"))
            new = cell(inner, inner.add("Gather", [value, turn], axis=0), kept, wide, hidden)
            inner.add("Identity", [more], [still])
            states = [
                helper.make_tensor_value_info(turn, TensorProto.INT64, []),
                helper.make_tensor_value_info(more, TensorProto.BOOL, []),
                *states,
            ]
            results = [helper.make_tensor_value_info(still, TensorProto.BOOL, []), *results]
        inner.add("Identity", [new], [end])
        inner.add("Identity", [new], [out])
        body = helper.make_graph(inner.nodes, "body", states, results, inner.weights)
        if kind == "scan":
            last, stacked = b.add("Scan", [old, value], 2, body=body, num_scan_inputs=1)
        else:
            turns = b.add("Gather", [b.add("Shape", [value]), b.constant(np.asarray(0, np.int64))])
            last, stacked = b.add("Loop", [turns, b.constant(np.asarray(True)), old], 2, body=body)
        take(last)
        return str(stacked), hidden

    # ---- the whole

    def make(self) -> Drawn:
        spec, b = self.spec, self.b
        sizes = {"f": FEATURES, "k": 2}
        value, wide = self.enter("x", spec.layout, sizes, spec.dtype), FEATURES
        self.send("x", spec.layout, sizes)
        first = value
        if "k" in spec.layout:
            wide = FEATURES * sizes["k"]
            value = b.add("Reshape", [value, b.ints(-1, wide)])
        if spec.extra == "pair":
            # Computed from what is sent alone, step by step: no memory, whatever its type.
            self.enter("z", spec.layout, sizes, spec.dtype)
            self.send("z", spec.layout, sizes)
            b.add("Tanh", ["z"], ["w"])
            self.info(1, "w", spec.dtype, spec.layout, sizes)
        if spec.extra == "echo":
            self.leave(b.add("Identity", [first]), "again", spec.layout, sizes, spec.dtype)
        for kind, stored in zip(spec.cells, spec.stored, strict=True):
            value, wide = (self.over_time if spec.timed else self.stepped)(kind, stored, value, wide)
        self.join()
        if spec.weak:
            value = self.spoiled(value)
        if spec.head != "state" or set(spec.cells) <= {"count", "flag", "delay", "constant"}:
            layout = spec.layout.replace("k", "")
            if spec.extra == "mask":
                gate = self.enter("m", layout, {"f": 2}, spec.dtype)
                self.send("m", layout, {"f": 2})
                value = b.add("Mul", [b.dense(value, wide, 2), gate])
            else:
                value = b.dense(value, wide, 2)
            self.leave(value, "y", layout, {"f": 2}, spec.dtype)
            if spec.head == "both":
                self.leave(b.add("Abs", [value]), "size", layout, {"f": 2}, spec.dtype)
        return self.named()

    def spoiled(self, value: str) -> str:
        """A value with a little of what it should not depend on."""
        b, axis = self.b, 1 if self.spec.timed and self.spec.weak == "rows" else 0
        if self.spec.weak == "behind":
            rank = 3 if self.batched else 2
            pads = b.ints(*(int(place == 0) for place in range(2 * rank)))
            other = b.add("Slice", [b.add("Pad", [value, pads]), b.ints(0), b.ints(-1), b.ints(0)])
        elif self.spec.weak == "rows" and not self.batched:
            return value
        else:
            other = b.add("ReduceMean", [value], axes=[axis], keepdims=1)
        return str(b.add("Add", [value, b.add("Mul", [other, b.number(1e-2)])]))

    def named(self) -> Drawn:
        """The graph with its names and the order of its inputs and outputs by chance."""
        given, made = self.infos
        self.draw.shuffle(given)
        self.draw.shuffle(made)
        graph = helper.make_graph(self.b.nodes, "drawn", given, made, self.b.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        names = self.names()
        for value in (*graph.input, *graph.output):
            value.name = names[value.name]
        for node in graph.node:
            _rename(node, names)
        model.graph.CopyFrom(graph)
        if self.spec.told != "nothing":  # The checker asks for shapes, ONNX Runtime does not.
            onnx.checker.check_model(model)
        drawn = self.made
        drawn.model = model
        drawn.states = [State(names[each.old], names[each.new], each.start) for each in drawn.states]
        drawn.inputs = {names[name]: how for name, how in drawn.inputs.items()}
        drawn.calls = {names[name]: shape for name, shape in drawn.calls.items()}
        return drawn

    def names(self) -> dict[str, str]:
        used = set[str]()

        def word() -> str:
            while True:
                made = "".join(self.draw.choices("abcdefghijklmnopqrstuvwxyz", k=self.draw.randint(6, 10)))
                if made not in used:
                    used.add(made)
                    return made

        values = [value.name for side in self.infos for value in side]
        names = {name: word() for name in values}
        if self.spec.names != "words":
            way = self.draw.choice(
                [("{}", "{}_out"), ("{}", "new_{}"), ("{}_in", "{}_out"), ("{}_0", "{}_n"), ("{}", "{}N")]
            )
            for each in self.made.states:
                stem = word()
                names[each.old], names[each.new] = (form.format(stem) for form in way)
            if self.spec.names == "lies" and self.made.states:
                ends = [each.new for each in self.made.states]
                names.update(zip(ends, [names[end] for end in [*ends[1:], ends[0]]], strict=True))
        return names


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _rename(inner, names)


def drawn(spec: Spec) -> Drawn:
    """The graph of a spec."""
    return _Maker(spec).make()
