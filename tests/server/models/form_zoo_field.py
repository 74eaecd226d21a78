"""More files of the field: those of FIELD's rows whose axes or names no other file of the zoo has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from tests.server.models.form_zoo import Case, Value, ints, model
from tests.server.models.graphs import Builder

_F: Final = "float32"


def silero_4() -> Case:
    """Silero VAD 4: `h, c` → `hn, cn` [2, B, 8], frames of a length that is told, a rate that is the same for all."""
    b, hidden = Builder(51), 8
    frames = b.add("Unsqueeze", ["input", ints(b, 0)])
    news: dict[str, list[str]] = {"hn": [], "cn": []}
    for layer, width in enumerate((16, hidden)):
        olds = [b.add("Slice", [name, ints(b, layer), ints(b, layer + 1), ints(b, 0)]) for name in ("h", "c")]
        weights = [b.weight(1, 4 * hidden, width), b.weight(1, 4 * hidden, hidden), b.weight(1, 8 * hidden)]
        made, *ends = b.add("LSTM", [frames, *weights, "", *olds], 3, hidden_size=hidden)
        frames = b.add("Squeeze", [made, ints(b, 1)])
        for name, end in zip(news, ends, strict=True):
            news[name].append(end)
    for name, ends in news.items():
        b.add("Concat", ends, [name], axis=0)
    rate = b.add("Div", [b.add("Cast", ["sr"], to=TensorProto.FLOAT), b.constant(np.float32(16000))])
    score = b.add("MatMul", [b.add("Squeeze", [frames, ints(b, 0)]), b.weight(hidden, 1)])
    b.add("Sigmoid", [b.add("Mul", [score, rate])], ["output"])
    state: Value = ("h", _F, [2, None, hidden])
    made = model(
        b,
        [("input", _F, [None, None]), ("sr", "int64", []), state, ("c", *state[1:])],
        [("output", _F, [None, 1]), ("hn", *state[1:]), ("cn", *state[1:])],
    )
    told = 'shapes = { input = ["batch", 16] }\nconstants = { sr = 8000 }\n'
    return Case(made, {"h": "hn", "c": "cn"}, {"input": (16,)}, told, fixed={"sr": 8000})


def conformer() -> Case:
    """A streaming Conformer: caches of keys [layers, left, N, 4] and of a convolution [layers, N, 4, left]."""
    b = Builder(52)
    keys = b.add("Concat", ["cached_attn", b.add("Unsqueeze", ["x", ints(b, 0, 1)])], axis=1)
    b.add("Slice", [keys, ints(b, -3), ints(b, 1 << 62), ints(b, 1)], ["next_cached_attn"])
    value = b.add("Tanh", [b.add("ReduceMean", [keys], axes=[0, 1], keepdims=0)])
    frames = b.add("Concat", ["cached_cnn", b.add("Unsqueeze", [value, ints(b, 0, 3)])], axis=3)
    b.add("Slice", [frames, ints(b, -2), ints(b, 1 << 62), ints(b, 3)], ["next_cached_cnn"])
    b.add("MatMul", [b.add("ReduceMean", [frames], axes=[0, 3], keepdims=0), b.weight(4, 2)], ["y"])
    states: dict[str, list[int | str | None]] = {"cached_attn": [1, 3, "N", 4], "cached_cnn": [1, "N", 4, 2]}
    made = model(
        b,
        [("x", _F, ["N", 4]), *((name, _F, dims) for name, dims in states.items())],
        [("y", _F, ["N", 2]), *((f"next_{name}", _F, dims) for name, dims in states.items())],
    )
    return Case(made, {name: f"next_{name}" for name in states}, {"x": (4,)})


def projected() -> Case:
    """An LSTM transducer's encoder by plain operators: h [layers, N, 3] and c [layers, N, 5] of other widths."""
    b, value = Builder(53), "x"
    news: dict[str, list[str]] = {"next_h": [], "next_c": []}
    for layer in range(2):
        h, c = (b.add("Gather", [name, b.constant(np.int64(layer))], axis=0) for name in ("h", "c"))
        total = b.add("Add", [b.add("MatMul", [value, b.weight(3, 20)]), b.add("MatMul", [h, b.weight(3, 20)])])
        i, f, g, o = b.add("Split", [total, ints(b, 5, 5, 5, 5)], 4, axis=1)
        kept = b.add("Mul", [b.add("Sigmoid", [f]), c])
        cell = b.add("Add", [kept, b.add("Mul", [b.add("Sigmoid", [i]), b.add("Tanh", [g])])])
        value = b.add("MatMul", [b.add("Mul", [b.add("Sigmoid", [o]), b.add("Tanh", [cell])]), b.weight(5, 3)])
        for name, new in (("next_h", value), ("next_c", cell)):
            news[name].append(b.add("Unsqueeze", [new, ints(b, 0)]))
    for name, layers in news.items():
        b.add("Concat", layers, [name], axis=0)
    b.add("Identity", [value], ["encoder_out"])
    h_dims: list[int | str | None] = [2, "N", 3]
    c_dims: list[int | str | None] = [2, "N", 5]
    made = model(
        b,
        [("x", _F, ["N", 3]), ("h", _F, h_dims), ("c", _F, c_dims)],
        [("encoder_out", _F, ["N", 3]), ("next_h", _F, h_dims), ("next_c", _F, c_dims)],
    )
    return Case(made, {"h": "next_h", "c": "next_c"}, {"x": (3,)})


def cache_aware() -> Case:
    """NeMo's cache-aware encoder: caches and their length, sessions first; a chunk has its length, too."""
    b = Builder(54)
    joined = b.add("Concat", ["cache_last_channel", b.add("Unsqueeze", ["audio_signal", ints(b, 1, 2)])], axis=2)
    b.add("Slice", [joined, ints(b, -3), ints(b, 1 << 62), ints(b, 2)], ["cache_last_channel_next"])
    b.add("Min", [b.add("Add", ["cache_last_channel_len", ints(b, 1)]), ints(b, 3)], ["cache_last_channel_next_len"])
    known = b.add("Cast", ["cache_last_channel_next_len"], to=TensorProto.FLOAT)
    value = b.add(
        "Div", [b.add("ReduceSum", [joined, ints(b, 1, 2)], keepdims=0), b.add("Unsqueeze", [known, ints(b, 1)])]
    )
    b.add("Tanh", [value], ["outputs"])
    b.add("Add", ["length", ints(b, -1)], ["encoded_lengths"])
    cache: list[int | str | None] = ["batch", 1, 3, 4]
    made = model(
        b,
        [("audio_signal", _F, ["batch", 4]), ("length", "int64", ["batch"]), ("cache_last_channel", _F, cache),
         ("cache_last_channel_len", "int64", ["batch"])],
        [("outputs", _F, ["batch", 4]), ("encoded_lengths", "int64", ["batch"]),
         ("cache_last_channel_next", _F, cache), ("cache_last_channel_next_len", "int64", ["batch"])],
    )  # fmt: skip
    states = {"cache_last_channel": "cache_last_channel_next", "cache_last_channel_len": "cache_last_channel_next_len"}
    told = "[states]\n" + "".join(f'{old} = "{new}"\n' for old, new in states.items())  # Is the length memory, too?
    return Case(made, states, {"audio_signal": (4,), "length": ()}, told)


def prediction() -> Case:
    """NeMo's decoder: tokens of whole numbers, `input_states_1` → `output_states_1` [layers, B, H], a batch of 1."""
    b = Builder(55)
    vectors = b.add("Transpose", [b.add("Gather", [b.weight(64, 3, scale=1.0), "targets"])], perm=[1, 0, 2])
    weights = [b.weight(1, 20, 3), b.weight(1, 20, 5)]
    made, h, c = b.add("LSTM", [vectors, *weights, "", "", "input_states_1", "input_states_2"], 3, hidden_size=5)
    b.add("Identity", [h], ["output_states_1"])
    b.add("Identity", [c], ["output_states_2"])
    b.add("Transpose", [b.add("Squeeze", [made, ints(b, 1)])], ["outputs"], perm=[1, 2, 0])
    state: list[int | str | None] = [1, 1, 5]
    names = {f"input_states_{i}": f"output_states_{i}" for i in (1, 2)}
    proto = model(
        b,
        [("targets", "int32", [1, 1]), *((name, _F, state) for name in names)],
        [("outputs", _F, [1, 5, 1]), *((name, _F, state) for name in names.values())],
    )
    return Case(proto, names, {"targets": (1,)})


def by_order() -> Case:
    """TEN-VAD: four states of one shape whose names say nothing: as only their order tells them, they are told."""
    b = Builder(56)
    names = {f"input_{i}": f"output_{i}" for i in range(1, 5)}
    joined = b.add("Concat", ["input", *names], axis=1)
    for new in names.values():
        b.add("Tanh", [b.add("MatMul", [joined, b.weight(6 + 4 * 8, 8)])], [new])
    b.add("Sigmoid", [b.add("MatMul", [joined, b.weight(6 + 4 * 8, 1)])], ["prob"])
    made = model(
        b,
        [("input", _F, [1, 6]), *((name, _F, [1, 8]) for name in names)],
        [("prob", _F, [1, 1]), *((name, _F, [1, 8]) for name in names.values())],
    )
    told = "[states]\n" + "".join(f'{old} = "{new}"\n' for old, new in names.items())
    return Case(made, names, {"input": (6,)}, told)


def _double_lstm(*, single: bool) -> onnx.ModelProto:
    b, given = Builder(57), ["frames", "h", "c"]
    weights = [b.weight(1, 20, 3, dtype="float32"), b.weight(1, 20, 5, dtype="float32")]
    b.add("Unsqueeze", ["x", ints(b, 0)], ["frames"])
    if single:
        given = [b.add("Cast", [name], to=TensorProto.FLOAT) for name in given]
    else:
        weights = [b.add("Cast", [name], to=TensorProto.DOUBLE) for name in weights]
    made = b.add("LSTM", [given[0], *weights, "", "", *given[1:]], 3, hidden_size=5)
    if single:
        made = [b.add("Cast", [name], to=TensorProto.DOUBLE) for name in made]
    b.add("MatMul", [b.add("Squeeze", [made[0], ints(b, 0, 1)]), b.weight(5, 2, dtype="float64")], ["y"])
    for name, end in (("hn", made[1]), ("cn", made[2])):
        b.add("Identity", [end], [name])
    f = "float64"
    state: list[int | str | None] = [1, "N", 5]
    return model(
        b,
        [("x", f, ["N", 3]), ("h", f, state), ("c", f, state)],
        [("y", f, ["N", 2]), ("hn", f, state), ("cn", f, state)],
    )


def double_lstm() -> Case:
    """An LSTM of float64, which ONNX Runtime has not: by hand, it is one of float32 between casts."""
    made = _double_lstm(single=False)
    return Case(made, {"h": "hn", "c": "cn"}, {"x": (3,)}, by_hand=_double_lstm(single=True))


FIELD: Final[Mapping[str, Callable[[], Case]]] = {
    "silero 4": silero_4,
    "conformer": conformer,
    "projected lstm": projected,
    "cache-aware": cache_aware,
    "prediction network": prediction,
    "by order": by_order,
    "double lstm": double_lstm,
}
