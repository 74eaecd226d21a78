"""ONNX's own node tests of RNN, LSTM, GRU, Scan and Loop, through a server: calls, sessions, or refused, and why.

What ONNX says comes out has to come out, with the bits of ONNX Runtime alone on the same file. The tests of the layers
have no initial state (but one); a second form of each has, with the weights in the file, and is streamed step by step.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as cases

import statestream
from statestream_server.arrays import Array
from statestream_server.models.graphs.operators import inner_graphs
from statestream_server.models.rows import Axes
from tests.support import serving

_OPERATORS: Final = {"RNN", "LSTM", "GRU", "Scan", "Loop"}
_MODULES: Final = ("rnn", "lstm", "gru", "scan", "loop", "linear_attention", "rangeop", "sequence_map")
_STEPS: Final = 2


@dataclass(frozen=True)
class Way:
    """What becomes of a test's file.

    Attributes:
        kind: "call", "session" or "refused".
        why: A part of what is said against the file as it is; "" where it is served as it is.
        told: The model.toml that settles what is asked.
    """

    kind: str
    why: str = ""
    told: str = ""


_CALL, _SESSION = Way("call"), Way("session")
_LAYOUT: Final = Way("refused", "layout")  # ONNX Runtime has no layout of batches first.
_NO_TENSOR: Final = Way(
    "refused", "is a sequence of tensors; callers send numbers|is an optional value; callers send numbers"
)
_NEWER: Final = Way("refused", "it is of opset 27")
_ASKED: Final = "may be memory whose next value is output"
_LINEAR = Way("call", _ASKED, "stateless = true")
"""Linear attention without a past: values have the shape of its output, so that it is asked."""
_PAST = Way("session", _ASKED, 'states = { past_state = "present_state" }')
WAYS: Final[Mapping[str, Way]] = {
    **dict.fromkeys(("simple_rnn_defaults", "simple_rnn_with_initial_bias", "rnn_seq_length"), _CALL),
    **dict.fromkeys(("lstm_defaults", "lstm_with_initial_bias", "gru_defaults", "gru_seq_length"), _CALL),
    **dict.fromkeys((f"{op}_{way}" for op in ("simple_rnn", "lstm", "gru") for way in ("reverse", "bidirectional")),
                    _CALL),
    **dict.fromkeys(("simple_rnn_batchwise", "lstm_batchwise", "gru_batchwise"), _LAYOUT),
    # Its input has the type and shape of its output.
    "gru_with_initial_bias": Way("call", "input X float32[1, 3, 3] may be memory", "stateless = true"),
    # The only one with an initial state; its cell state does not come out, so it is an input like others.
    "lstm_with_peepholes": _SESSION,
    **dict.fromkeys(("scan_sum", "scan9_sum", "scan9_multi_state", "scan9_scalar"), _SESSION),
    # How often it loops is an input, and so is how much comes out.
    "loop11": Way("call", "a step needs one shape", "stateless = true"),
    **dict.fromkeys(("loop13_seq", "loop16_seq_none"), _NO_TENSOR),
    **dict.fromkeys((f"sequence_map_{what}_expanded" for what in (
        "identity_1_sequence", "identity_2_sequences", "identity_1_sequence_1_tensor", "add_2_sequences",
        "add_1_sequence_1_tensor", "extract_shapes")), _NO_TENSOR),
    # ONNX Runtime knows no opset 27. As opset 24, of which all their operators are, they run: see below.
    **dict.fromkeys((f"range_{what}_delta_expanded" for what in (
        "float_type_positive", "float16_type_positive", "int32_type_negative")), _NEWER),
    "range_bfloat16_type_positive_delta_expanded": Way("refused", "bfloat16|opset 27"),
    **dict.fromkeys((f"linear_attention_{what}_expanded" for what in (
        "linear", "gated", "gated_per_head_decay", "delta", "gated_delta", "gated_delta_beta_scalar",
        "gated_delta_gqa", "gated_delta_mqa", "decode_step", "prefill_with_past", "no_past_explicit_zeros",
        "explicit_scale", "fp16", "linear_t1_no_past")), Way("refused", f"{_ASKED}|opset 27")),
}  # fmt: skip
RELABELLED: Final[Mapping[str, Way]] = {
    **dict.fromkeys((f"linear_attention_{what}_expanded" for what in (
        "linear", "gated", "gated_per_head_decay", "delta", "gated_delta", "gated_delta_beta_scalar",
        "gated_delta_gqa", "gated_delta_mqa", "fp16", "linear_t1_no_past", "explicit_scale")), _LINEAR),
    **dict.fromkeys((f"linear_attention_{what}_expanded" for what in (
        "decode_step", "prefill_with_past", "no_past_explicit_zeros")), _PAST),
    **dict.fromkeys((f"range_{what}_delta_expanded" for what in (
        "float_type_positive", "float16_type_positive", "int32_type_negative")), _CALL),
}  # fmt: skip


def _collected() -> dict[str, Any]:
    """The tests of the package that have one of the operators, by name without "test_"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in _MODULES:
            importlib.import_module(f"{cases.__name__}.{module}")
    return {
        case.name.removeprefix("test_"): case
        for case in cases._NodeTestCases
        if not _OPERATORS.isdisjoint(_operators(case.model.graph))
    }


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for each in graph.node:
        yield each.op_type
        for inner in inner_graphs(each):
            yield from _operators(inner)


COLLECTED: Final = _collected()
STATEFUL: Final = [
    name
    for name, case in COLLECTED.items()
    if {"RNN", "LSTM", "GRU"} & set(_operators(case.model.graph)) and not name.endswith("batchwise")
]


def _relabelled(made: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    copy.ir_version = 10
    for entry in copy.opset_import:
        entry.version = min(entry.version, 24)
    return copy


def _with_states(case: Any) -> onnx.ModelProto:
    """The layer of a test with its weights in the file, free axes, and initial states that are inputs."""
    (layer,), (given, _) = case.model.graph.node, case.data_sets[0]
    values = dict(zip([value.name for value in case.model.graph.input], given, strict=True))
    features = values["X"].shape[2]
    directions, hidden = values["R"].shape[0], values["R"].shape[2]
    states = ["h", "c"] if layer.op_type == "LSTM" else ["h"]
    inputs = [name if name in values else "" for name in ("X", "W", "R", "B")]
    starts = [f"initial_{state}" for state in states]
    places = [*inputs, "", *starts, *(["P"] if "P" in values else [])]
    ends = [f"Y_{state}" for state in states]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in layer.attribute}
    f32 = onnx.TensorProto.FLOAT
    info, state = helper.make_tensor_value_info, [directions, "batch", hidden]
    graph = helper.make_graph(
        [helper.make_node(layer.op_type, places, ["Y", *ends], **attributes)],
        "with_states",
        [info("X", f32, ["time", "batch", features]), *(info(name, f32, state) for name in starts)],
        [info("Y", f32, ["time", directions, "batch", hidden]), *(info(name, f32, state) for name in ends)],
        [numpy_helper.from_array(values[name], name) for name in (*inputs[1:], "P") if name in values],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("nodes")
    for name, case in COLLECTED.items():
        _written(case.model, folder / name)
        if WAYS[name].told:
            _written(case.model, folder / f"{name}-told", WAYS[name].told)
    for name, way in RELABELLED.items():
        _written(_relabelled(COLLECTED[name].model), folder / f"{name}-relabelled", way.told)
    for name in STATEFUL:
        _written(_with_states(COLLECTED[name]), folder / f"{name}-states")
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def _written(made: onnx.ModelProto, folder: Path, told: str = "") -> None:
    folder.mkdir()
    onnx.save(made, folder / "model.onnx")
    if told:
        (folder / "model.toml").write_text(told)


def _model(client: Any, name: str) -> Any:
    (found,) = (each for each in client.models() if each.name == name)
    return found


def _alone(made: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_each_of_the_packages_tests_has_its_way() -> None:
    assert set(WAYS) == set(COLLECTED)
    assert len(WAYS) == 49


@pytest.mark.parametrize("name", WAYS)
def test_a_node_test_gives_what_onnx_says_or_is_refused_with_the_reason(client: Any, name: str) -> None:
    way = WAYS[name]
    if way.why:
        error = _model(client, name).error
        assert any(part in error for part in way.why.split("|")), error
        if way.kind == "refused":
            assert not _model(client, name).kind
            return
        assert all(line in error for line in way.told.splitlines())
    _check(client, f"{name}-told" if way.told else name, COLLECTED[name], COLLECTED[name].model, way)


@pytest.mark.parametrize("name", RELABELLED)
def test_so_does_one_that_onnx_runtime_runs_as_an_older_opset(client: Any, name: str) -> None:
    case, way = COLLECTED[name], RELABELLED[name]
    _check(client, f"{name}-relabelled", case, _relabelled(case.model), way)


def _check(client: Any, served: str, case: Any, made: onnx.ModelProto, way: Way) -> None:
    model = _model(client, served)
    assert not model.error
    assert model.kind == ("session" if way.kind == "session" else "predict")
    given, expected = case.data_sets[0]
    feeds = {value.name: np.asarray(array) for value, array in zip(made.graph.input, given, strict=True)}
    wanted = {value.name: np.asarray(array) for value, array in zip(made.graph.output, expected, strict=True)}
    alone = _alone(made)
    if way.kind == "call":
        _compare(_named(client.predict(served, feeds), wanted), alone.run(None, feeds), wanted, case)
        return
    states = {each.input: each.output for each in model.signature.states}
    states = {old: new if new in wanted else new.removesuffix("_state") for old, new in states.items()}
    start = {name: feeds.pop(name) for name in states}
    rows = _Rows(model.signature, feeds)
    with client.sessions(served, rows.count, initial_state=rows.states(start)) as pool:
        for step in range(_STEPS):
            found = rows.outputs(pool.step(rows.inputs(feeds)))
            results = dict(zip(wanted, alone.run(list(wanted), {**feeds, **start}), strict=True))
            known = wanted if step == 0 else results
            _compare(found, [results[name] for name in found], {name: known[name] for name in found}, case)
            start = {old: results[new] for old, new in states.items()}


class _Rows:
    """The values of a run as sessions have them: all of a run are one session where it has no axis for them."""

    def __init__(self, signature: Any, feeds: Mapping[str, Array]) -> None:
        self._signature = signature
        axes = [(spec.name, spec.batch_axis) for spec in signature.inputs if spec.HasField("batch_axis")]
        batched = len(axes) == len(signature.inputs)
        self.count = feeds[axes[0][0]].shape[axes[0][1]] if batched else 1

    def inputs(self, feeds: Mapping[str, Array]) -> Any:
        """Of every input one step of all sessions [sessions, *step]."""
        specs = self._signature.inputs
        values = {spec.name: Axes.of_tensor(spec).from_graph(feeds[spec.name])[:, 0] for spec in specs}
        return values if len(values) > 1 else next(iter(values.values()))

    def states(self, start: Mapping[str, Array]) -> dict[str, Array]:
        return {spec.input: Axes.of_state(spec).from_graph(start[spec.input]) for spec in self._signature.states}

    def outputs(self, answer: Any) -> dict[str, Array]:
        """In the axes of the graph."""
        specs = self._signature.outputs
        values = _named(answer, [spec.name for spec in specs])
        return {spec.name: Axes.of_tensor(spec).to_graph(values[spec.name][:, None]) for spec in specs}


def _named(answer: Any, names: Any) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in answer.items()} if isinstance(answer, Mapping) else {
        next(iter(names)): np.asarray(answer)
    }  # fmt: skip


def _compare(found: Mapping[str, Array], alone: Sequence[Any], wanted: Mapping[str, Array], case: Any) -> None:
    """Bits as of ONNX Runtime alone, numbers as ONNX says."""
    assert set(found) == set(wanted)
    for (name, value), own in zip(found.items(), alone, strict=True):
        assert value.dtype == wanted[name].dtype
        np.testing.assert_array_equal(value, own)
        np.testing.assert_allclose(value, wanted[name], rtol=case.rtol, atol=max(case.atol, 1e-6))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_layer_with_initial_states_streams_to_what_onnx_says_comes_last(client: Any, name: str) -> None:
    case, model = COLLECTED[name], _model(client, f"{name}-states")
    if name.endswith(("reverse", "bidirectional")):
        assert "looks ahead" in model.error
        return
    assert not model.error
    made, (given, expected) = _with_states(case), case.data_sets[0]
    x = np.asarray(given[0])
    states = {each.input: each.output for each in model.signature.states}
    assert states == {f"initial_{state}": f"Y_{state}" for state in ("h", "c")[: len(states)]}
    hidden = np.asarray(given[2]).shape[2]
    alone, kept = _alone(made), {old: np.zeros((1, x.shape[1], hidden), np.float32) for old in states}
    with client.sessions(f"{name}-states", x.shape[1]) as pool:
        for step in x:
            found = np.asarray(pool.step(step))
            y, *new = alone.run(["Y", *states.values()], {"X": step[None], **kept})
            kept = dict(zip(states, new, strict=True))
            np.testing.assert_array_equal(found, np.moveaxis(y[0], 1, 0))
    last = dict(zip([value.name for value in case.model.graph.output], expected, strict=True))["Y_h"]
    if "sequence_lens" not in [value.name for value in case.model.graph.input]:
        np.testing.assert_allclose(np.moveaxis(found, 0, 1), last, rtol=case.rtol, atol=1e-6)
    with client.sessions(f"{name}-states", x.shape[1]) as pool:
        whole = np.asarray(pool.step(np.moveaxis(x, 1, 0)))
    np.testing.assert_allclose(whole[:, -1], found, rtol=1e-5, atol=1e-6)
