"""Files without a signature as the field has them: small graphs with the names, shapes and axes of real ones.

Each is built by onnx.helper and says what it is; none is signed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from statestream_server.arrays import Array
from tests.server.models import graphs
from tests.server.models.graphs import Builder

Dims = Sequence[int | str | None]
Value = tuple[str, str, Dims]


@dataclass(frozen=True)
class Case:
    """One file, and what is known of it.

    Attributes:
        model: The file.
        states: Its states: input to output.
        inputs: What callers send, by name the shape of a step.
        told: The text of its model.toml.
        batched: Whether sessions share runs.
        start: What states start from, where that is not 0.
        fixed: Inputs that are the same at every step.
        context: How many values an input is given again.
        counts: Inputs that grow by so much a step.
        left_out: Outputs that tell of the model only.
        by_hand: What the loop runs, where ONNX Runtime does not take the file or NumPy not its types; else the file.
    """

    model: onnx.ModelProto
    states: Mapping[str, str]
    inputs: Mapping[str, tuple[int, ...]]
    told: str = ""
    batched: bool = True
    start: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    by_hand: onnx.ModelProto | None = None

    @property
    def files(self) -> Mapping[str, onnx.ModelProto]:
        """What lies in its folder, by name."""
        return {"model.onnx": self.model}

    def loop(self, steps: Sequence[Mapping[str, Array]]) -> list[Array]:
        """What a loop over ONNX Runtime makes of one session's steps, which keeps its state by hand: all outputs."""
        model = self.by_hand or self.model
        runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        given = {value.name: value for value in model.graph.input}
        feeds: dict[str, Array] = {}
        for name in self.states:
            dims = given[name].type.tensor_type.shape.dim
            feeds[name] = np.full([size.dim_value or 1 for size in dims], self.start.get(name, 0), _dtype(given[name]))
        for name, value in self.fixed.items():
            feeds[name] = np.asarray(value, _dtype(given[name]))
        for name in self.counts:
            feeds[name] = np.zeros((), _dtype(given[name]))
        last = {name: np.zeros((1, keep), np.float32) for name, keep in self.context.items()}
        told = list[Array]()
        for step in steps:
            for name, value in step.items():
                rank = len(given[name].type.tensor_type.shape.dim)
                shaped = np.reshape(value, (1,) * (rank - np.ndim(value)) + np.shape(value))
                feeds[name] = np.asarray(shaped, _dtype(given[name]))
                if name in last:
                    feeds[name] = np.concatenate([last[name], feeds[name]], axis=-1)
                    last[name] = feeds[name][..., -self.context[name] :]
            results = dict(zip([v.name for v in model.graph.output], runtime.run(None, feeds), strict=True))
            seen = [name for name in results if name not in (*self.states.values(), *self.left_out)] or results
            told.append(np.concatenate([results[name].reshape(-1) for name in sorted(seen)]))
            feeds.update({old: results[new] for old, new in self.states.items()})
            for name, by in self.counts.items():
                feeds[name] = np.asarray(feeds[name] + by, feeds[name].dtype)
        return told


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def model(b: Builder, inputs: Sequence[Value], outputs: Sequence[Value], opset: int = 17) -> onnx.ModelProto:
    """A graph of a builder's nodes with these inputs and outputs: name, dtype and axes."""

    def info(value: Value) -> onnx.ValueInfoProto:
        name, dtype, dims = value
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)

    graph = helper.make_graph(b.nodes, "g", [info(v) for v in inputs], [info(v) for v in outputs], b.weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def ints(b: Builder, *values: int) -> str:
    return str(b.constant(np.asarray(values, np.int64)))


def recurrent(op: str, axis: int = 1, time: int = 1) -> Case:
    """LSTM and GRU as exporters write them, batch or time first, states [L, B, H], [B, L, H] or [L, H, B]."""
    made, signature = graphs.recurrent(op, layers=2, state_axis=axis, input_time=time, hidden=6)
    made.ClearField("metadata_props")
    return Case(made, {s.input: s.output for s in signature.states}, {"x": (3,)})


def silero(*, sr: bool = True) -> Case:
    """`state` → `stateN` [2, B, 8] whose output says nothing of its shape, `sr`, and a context before each frame."""
    b = Builder(1)
    hidden = 8
    olds = [b.add("Slice", ["state", ints(b, i), ints(b, i + 1), ints(b, 0)]) for i in (0, 1)]
    frames = b.add("Unsqueeze", ["input", ints(b, 0)])
    _, h, c = b.add(
        "LSTM",
        [frames, b.weight(1, 4 * hidden, 20), b.weight(1, 4 * hidden, hidden), b.weight(1, 8 * hidden), "", *olds],
        3,
        hidden_size=hidden,
    )
    b.add("Concat", [h, c], ["stateN"], axis=0)
    flat = b.add("Squeeze", [h, ints(b, 0)])
    score = b.add("MatMul", [flat, b.weight(hidden, 1)])
    rate = b.add("Cast", ["sr"], to=TensorProto.FLOAT) if sr else b.constant(np.float32(16000))
    b.add("Sigmoid", [b.add("Mul", [score, b.add("Div", [rate, b.constant(np.float32(16000))])])], ["output"])
    inputs: list[Value] = [("input", "float32", [None, None]), ("state", "float32", [2, None, hidden])]
    if sr:
        inputs.append(("sr", "int64", []))
    made = model(b, inputs, [("output", "float32", [None, 1]), ("stateN", "float32", [None, None, None])])
    told = 'context = { input = 4 }\nshapes = { input = ["batch", 16] }\n' + "constants = { sr = 16000 }\n" * sr
    fixed = {"sr": 16000} if sr else {}
    return Case(made, {"state": "stateN"}, {"input": (16,)}, told, fixed=fixed, context={"input": 4})


def session_constant() -> Case:
    """The same, but each session says its own rate: one row a run."""
    case = silero()
    return dataclasses.replace(case, told=case.told.replace("constants", "session"), batched=False)


def language() -> Case:
    """A recurrent tagger for many languages: each session says its own once, as int64 [B]; sessions share runs."""
    b = Builder(13)
    known = b.add("Gather", [b.weight(3, 4), "lang"], axis=0)
    steps = b.add("Unsqueeze", [b.add("Concat", ["x", known], axis=1), ints(b, 0)])
    _, new = b.add("GRU", [steps, b.weight(1, 15, 7), b.weight(1, 15, 5), "", "", "h"], 2, hidden_size=5)
    b.add("Identity", [new], ["hn"])
    b.add("MatMul", [b.add("Squeeze", [new, ints(b, 0)]), b.weight(5, 2)], ["tags"])
    f = "float32"
    made = model(
        b, [("x", f, ["N", 3]), ("lang", "int64", ["N"]), ("h", f, [1, "N", 5])],
        [("tags", f, ["N", 2]), ("hn", f, [1, "N", 5])],
    )  # fmt: skip
    return Case(made, {"h": "hn"}, {"x": (3,)}, "session = { lang = 1 }", fixed={"lang": [1]})


def gtcrn() -> Case:
    """Three caches of a batch of 1: a queue of frames, a GRU's state, and one folded; names end in _out."""
    b = Builder(2)
    joined = b.add("Concat", ["conv_cache", "mix"], axis=1)
    b.add("Slice", [joined, ints(b, -2), ints(b, 1 << 62), ints(b, 1)], ["conv_cache_out"])
    mean = b.add("ReduceMean", [joined], axes=[1], keepdims=0)
    steps = b.add("Unsqueeze", [mean, ints(b, 0)])
    _, new = b.add("GRU", [steps, b.weight(1, 15, 4), b.weight(1, 15, 5), "", "", "tra_cache"], 2, hidden_size=5)
    b.add("Identity", [new], ["tra_cache_out"])
    faded = b.add("Mul", [b.add("Reshape", ["inter_cache", ints(b, 1, 4)]), b.constant(np.float32(0.9))])
    folded = b.add("Reshape", [b.add("Add", [faded, mean]), ints(b, 4, 1)])
    b.add("Identity", [folded], ["inter_cache_out"])
    head = b.add("MatMul", [b.add("Squeeze", [new, ints(b, 0)]), b.weight(5, 4)])
    b.add("Unsqueeze", [b.add("Add", [head, b.add("Reshape", [folded, ints(b, 1, 4)])]), ints(b, 1)], ["enh"])
    f = "float32"
    made = model(
        b,
        [("mix", f, [1, 1, 4]), ("conv_cache", f, [1, 2, 4]), ("tra_cache", f, [1, 1, 5]), ("inter_cache", f, [4, 1])],
        [("enh", f, [1, 1, 4]), ("conv_cache_out", f, [1, 2, 4]), ("tra_cache_out", f, [1, 1, 5]),
         ("inter_cache_out", f, [4, 1])],
    )  # fmt: skip
    names = ("conv_cache", "tra_cache", "inter_cache")
    return Case(made, {name: f"{name}_out" for name in names}, {"mix": (1, 4)}, batched=False)


def video_matting(sizes: Sequence[tuple[int, int]] = ((4, 6),)) -> Case:
    """States that are gated by products, found by name alone: `r1i` → `r1o`; they start as [1, 1, 1, 1].

    From then on they have the size of the frame, and half of it; the graph takes frames of any size, and a ratio.
    """
    b = Builder(3)
    value, ratio = "src", "downsample_ratio"
    for i in (1, 2):
        if i == 2:
            value = b.add("AveragePool", [value], kernel_shape=[2, 2], strides=[2, 2])
        pooled = b.add("Mul", [value, ratio])
        gate = b.add("Sigmoid", [pooled])
        # As it is exported: what the state is at first is spread over the frame.
        old = b.add("Expand", [f"r{i}i", b.add("Shape", [pooled])])
        value = b.add("Add", [b.add("Mul", [gate, old]), b.add("Tanh", [pooled])], [f"r{i}o"])
    b.add("Sigmoid", ["r2o"], ["pha"])
    dims: Dims = ["batch", 3, "height", "width"]
    free: Dims = [None, None, None, None]
    case = model(
        b,
        [("src", "float32", dims), ("r1i", "float32", free), ("r2i", "float32", free), (ratio, "float32", [1])],
        [("pha", "float32", free), ("r1o", "float32", free), ("r2o", "float32", free)],
    )
    listed = [f'["batch", 3, {height}, {width}]' for height, width in sizes]
    shapes = f"sizes = {{ src = [{', '.join(listed)}] }}" if len(listed) > 1 else f"shapes = {{ src = {listed[0]} }}"
    told = f"constants = {{ downsample_ratio = 0.5 }}\n{shapes}\n"
    fixed = {"downsample_ratio": [0.5]}
    return Case(case, {"r1i": "r1o", "r2i": "r2o"}, {"src": (3, *sizes[0])}, told, fixed=fixed)


def zipformer() -> Case:
    """Many caches, axes of sessions mixed, lengths as int64 [B]; `cached_*` → `new_cached_*`."""
    b = Builder(4)
    inputs: list[Value] = [("x", "float32", ["N", 3])]
    outputs: list[Value] = [("encoder_out", "float32", ["N", 3])]
    states, value = dict[str, str](), "x"
    for i in range(3):
        kinds: list[tuple[str, Dims]] = [("key", [1, "N", 3]), ("conv", ["N", 3, 2])]
        for kind, dims in kinds:
            name = f"cached_{kind}_{i}"
            if kind == "key":
                old = b.add("Squeeze", [name, ints(b, 0)])
                value = b.add("Tanh", [b.add("Add", [b.add("MatMul", [value, b.weight(3, 3)]), old])])
                b.add("Unsqueeze", [value, ints(b, 0)], [f"new_{name}"])
            else:
                joined = b.add("Concat", [name, b.add("Unsqueeze", [value, ints(b, 2)])], axis=2)
                b.add("Slice", [joined, ints(b, 1), ints(b, 3), ints(b, 2)], [f"new_{name}"])
                value = b.add("ReduceMean", [joined], axes=[2], keepdims=0)
            inputs.append((name, "float32", dims))
            outputs.append((f"new_{name}", "float32", dims))
            states[name] = f"new_{name}"
    b.add("Add", ["processed_lens", ints(b, 4)], ["new_processed_lens"])
    inputs.append(("processed_lens", "int64", ["N"]))
    outputs.append(("new_processed_lens", "int64", ["N"]))
    states["processed_lens"] = "new_processed_lens"
    length = b.add("Unsqueeze", [b.add("Cast", ["processed_lens"], to=TensorProto.FLOAT), ints(b, 1)])
    b.add("Add", [value, length], ["encoder_out"])
    return Case(model(b, inputs, outputs), states, {"x": (3,)})


def wenet() -> Case:
    """No batch axis, time first, and an `offset` that the caller counts up."""
    b = Builder(5)
    _, new = b.add(
        "GRU", [b.add("Unsqueeze", ["chunk", ints(b, 1)]), b.weight(1, 15, 4), b.weight(1, 15, 5), "", "", "att_cache"],
        2, hidden_size=5,
    )  # fmt: skip
    b.add("Identity", [new], ["r_att_cache"])
    place = b.add("Cast", ["offset"], to=TensorProto.FLOAT)
    b.add("Add", [b.add("Reshape", [new, ints(b, 1, 5)]), place], ["output"])
    made = model(
        b,
        [("chunk", "float32", [4, 4]), ("att_cache", "float32", [1, 1, 5]), ("offset", "int64", [])],
        [("output", "float32", [1, 5]), ("r_att_cache", "float32", [1, 1, 5])],
    )
    told = "counters = { offset = 4 }"
    return Case(made, {"att_cache": "r_att_cache"}, {"chunk": (4, 4)}, told, batched=False, counts={"offset": 4})


def policy(fixed: bool = False) -> Case:
    """An LSTM policy with states that are cleared where an episode starts: `h_in, c_in` → `h_out, c_out`."""
    b, size = Builder(6), 1 if fixed else "batch"
    keep = b.add("Unsqueeze", [b.add("Sub", [b.constant(np.float32(1)), "starts"]), ints(b, 0, 2)])
    olds = [b.add("Mul", [name, keep]) for name in ("h_in", "c_in")]
    y, h, c = b.add(
        "LSTM", [b.add("Unsqueeze", ["obs", ints(b, 0)]), b.weight(1, 24, 4), b.weight(1, 24, 6), "", "", *olds], 3,
        hidden_size=6,
    )  # fmt: skip
    b.add("Identity", [h], ["h_out"])
    b.add("Identity", [c], ["c_out"])
    b.add("MatMul", [b.add("Squeeze", [y, ints(b, 0, 1)]), b.weight(6, 3)], ["logits"])
    f = "float32"
    made = model(
        b,
        [("obs", f, [size, 4]), ("starts", f, [size]), ("h_in", f, [1, size, 6]), ("c_in", f, [1, size, 6])],
        [("logits", f, [size, 3]), ("h_out", f, [1, size, 6]), ("c_out", f, [1, size, 6])],
    )
    inputs = {"obs": (4,), "starts": ()}
    return Case(made, {"h_in": "h_out", "c_in": "c_out"}, inputs)


def ml_agents() -> Case:
    """`recurrent_in` → `recurrent_out` [B, 1, M] with masks, and constants among the outputs."""
    b = Builder(7)
    old = b.add("Transpose", ["recurrent_in"], perm=[1, 0, 2])
    _, new = b.add(
        "GRU", [b.add("Unsqueeze", ["obs_0", ints(b, 0)]), b.weight(1, 12, 3), b.weight(1, 12, 4), "", "", old], 2,
        hidden_size=4,
    )  # fmt: skip
    b.add("Transpose", [new], ["recurrent_out"], perm=[1, 0, 2])
    b.add("Mul", [b.add("MatMul", [b.add("Squeeze", [new, ints(b, 0)]), b.weight(4, 2)]), "action_masks"], ["action"])
    b.add("Identity", [b.constant(np.asarray([3], np.float32))], ["version_number"])
    b.add("Identity", [b.constant(np.asarray([4], np.float32))], ["memory_size"])
    f = "float32"
    made = model(
        b,
        [("obs_0", f, ["batch", 3]), ("action_masks", f, ["batch", 2]), ("recurrent_in", f, ["batch", 1, 4])],
        [("version_number", f, [1]), ("memory_size", f, [1]), ("action", f, ["batch", 2]),
         ("recurrent_out", f, ["batch", 1, 4])],
    )  # fmt: skip
    told = 'states = { recurrent_in = "recurrent_out" }'  # The masks are of the type of the actions.
    return Case(made, {"recurrent_in": "recurrent_out"}, {"obs_0": (3,), "action_masks": (2,)}, told,
                left_out=("version_number", "memory_size"))  # fmt: skip


def half() -> Case:
    """One state [B, S] of float16, int32 samples in."""
    b = Builder(8)
    new = b.add("Mul", [b.add("Add", ["state", b.add("Cast", ["samples"], to=TensorProto.FLOAT16)]),
                        b.constant(np.float16(0.5))], ["state_next"])  # fmt: skip
    b.add("Cast", [new], ["logprobs"], to=TensorProto.FLOAT)
    made = model(
        b,
        [("samples", "int32", ["b", 4]), ("state", "float16", ["b", 4])],
        [("logprobs", "float32", ["b", 4]), ("state_next", "float16", ["b", 4])],
    )
    return Case(made, {"state": "state_next"}, {"samples": (4,)})


def no_batch() -> Case:
    """`state` → `state_out` [S] without any batch axis, which starts from 0.25."""
    b = Builder(9)
    new = b.add("Tanh", [b.add("Add", [b.add("MatMul", ["spec", b.weight(3, 5)]), "state"])], ["state_out"])
    b.add("MatMul", [new, b.weight(5, 3)], ["erb"])
    f = "float32"
    made = model(b, [("spec", f, [3]), ("state", f, [5])], [("erb", f, [3]), ("state_out", f, [5])])
    return Case(made, {"state": "state_out"}, {"spec": (3,)}, "start = { state = 0.25 }", False, {"state": 0.25})


def cell() -> Case:
    """A GRU cell of one output: the new state is all that comes out."""
    b = Builder(10)
    _, new = b.add("GRU", [b.add("Unsqueeze", ["x", ints(b, 0)]), b.weight(1, 12, 3), b.weight(1, 12, 4), "", "",
                           b.add("Unsqueeze", ["hx", ints(b, 0)])], 2, hidden_size=4)  # fmt: skip
    b.add("Squeeze", [new, ints(b, 0)], ["out"])
    f = "float32"
    return Case(model(b, [("x", f, ["n", 3]), ("hx", f, ["n", 4])], [("out", f, ["n", 4])]), {"hx": "out"}, {"x": (3,)})


def double_loop() -> Case:
    """A float64 cell in a Loop over time, its state carried by the loop; names say nothing."""
    b, inner = Builder(11), Builder(12)
    turns = b.add("Gather", [b.add("Shape", ["in_a"]), b.constant(np.asarray(1, np.int64))])
    row = inner.add("Gather", ["in_a", "i"], axis=1)
    new = inner.add("Tanh", [inner.add("Add", [row, inner.add("Mul", ["old", inner.constant(np.float64(0.5))])])])
    inner.add("Identity", [new], ["carried"])
    inner.add("Identity", [new], ["each"])
    inner.add("Identity", ["cond"], ["more"])
    f64, i64, yes = TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        inner.nodes,
        "body",
        [info("i", i64, []), info("cond", yes, []), info("old", f64, None)],
        [info("more", yes, []), info("carried", f64, None), info("each", f64, None)],
        [onnx.TensorProto.FromString(w.SerializeToString()) for w in inner.weights],
    )
    for node in body.node:  # Names of the two builders are the same ones.
        for names in (node.input, node.output):
            names[:] = [f"in_{n}" if n.startswith("t") else n for n in names]
    for weight in body.initializer:
        weight.name = f"in_{weight.name}"
    _, each = b.add("Loop", [turns, b.constant(np.asarray(True)), "in_b"], ["out_b", b.name()], body=body)
    b.add("Transpose", [each], ["out_a"], perm=[1, 0, 2])
    made = model(
        b,
        [("in_a", "float64", ["b", "t", 3]), ("in_b", "float64", ["b", 3])],
        [("out_a", "float64", ["b", "t", 3]), ("out_b", "float64", ["b", 3])],
    )
    return Case(made, {"in_b": "out_b"}, {"in_a": (3,)})


CASES: Final[Mapping[str, Callable[[], Case]]] = {
    "lstm": lambda: recurrent("LSTM"),
    "lstm, time first": lambda: recurrent("LSTM", 0, 0),
    "gru, batch last": lambda: recurrent("GRU", 2),
    "silero": silero,
    "silero without a rate": lambda: silero(sr=False),
    "a rate of each session": session_constant,
    "a language of each session": language,
    "gtcrn": gtcrn,
    "video matting": video_matting,
    "zipformer": zipformer,
    "wenet": wenet,
    "policy": policy,
    "policy of batch 1": lambda: policy(fixed=True),
    "ml-agents": ml_agents,
    "half precision": half,
    "no batch axis": no_batch,
    "cell": cell,
    "double in a loop": double_loop,
}
