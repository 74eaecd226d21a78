"""Forms: what is taken for memory and why; names alone decide nothing, and what stays open is asked with its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from statestream.contract import signature as signatures
from statestream_server.models.files import modelfile
from statestream_server.models.form import surgery
from statestream_server.models.form.draft import drafted
from statestream_server.models.form.edits import taken
from statestream_server.models.form.entries import dumps, loads
from statestream_server.models.form.names import likeness
from statestream_server.models.form.pairs import UnsettledError
from statestream_server.models.form.told import Told, ToldError
from statestream_server.models.graphs.operators import inner_graphs
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import building, loading, making
from statestream_server.models.proof.verdict import Verdict
from tests.server.models import graphs
from tests.server.models.form_zoo import CASES, Value, ints, model
from tests.server.models.graphs import Builder


def found(proto: onnx.ModelProto, told: str = "") -> dict[str, str]:
    """The states of a file."""
    return {held.old.name: held.new for held in drafted(proto, loads(told)).states}


def proved(proto: onnx.ModelProto, folder: Path, told: str = "") -> Verdict:
    folder.mkdir(parents=True, exist_ok=True)
    path = graphs.save(proto, folder)
    if told:
        (folder / "model.toml").write_text(told)
    return making.prove(path, providers_for("cpu"))


@pytest.mark.parametrize(
    ("old", "new"),
    [("state", "stateN"), ("h", "hn"), ("h0", "hn"), ("conv_cache", "conv_cache_out"), ("r1i", "r1o"),
     ("cached_key_0", "new_cached_key_0"), ("cache_len", "cache_next_len"), ("input_states_1", "output_states_1"),
     ("h_in", "h_out"), ("recurrent_in", "recurrent_out"), ("past_key", "present_key"), ("state", "state_out")],
)  # fmt: skip
def test_names_of_the_field_agree(old: str, new: str) -> None:
    assert likeness(old, new) > 0


@pytest.mark.parametrize(
    ("old", "new"),
    [("input", "output"), ("input_1", "output_1"), ("x", "y"), ("h_in", "c_out"), ("r1i", "r2o"), ("h", "c"),
     ("cached_key_0", "new_cached_key_1"), ("mel", "scores"), ("input_3", "tf_op_layer_stack_2")],
)  # fmt: skip
def test_names_that_have_no_stem_do_not(old: str, new: str) -> None:
    assert likeness(old, new) == 0


def renamed(proto: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """A copy whose tensors have other names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)

    def change(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.name = names[value.name]
        for tensor in graph.initializer:
            tensor.name = names[tensor.name]
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            for inner in inner_graphs(node):
                change(inner)

    change(copy.graph)
    return copy


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_other_names_and_another_order_give_the_same_states_or_a_question(data: st.DataObject) -> None:
    case = CASES[data.draw(st.sampled_from([name for name in CASES if not CASES[name]().told]))]()
    used = sorted(taken(case.model.graph) - {""})
    # One word each: no name says anything of another.
    word = st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=12)
    letters = data.draw(st.lists(word, min_size=len(used), max_size=len(used), unique=True))
    names = dict(zip(used, letters, strict=True))
    other = renamed(case.model, names)
    for values in (other.graph.input, other.graph.output):
        shuffled = data.draw(st.permutations(list(values)))
        del values[:]
        values.extend(shuffled)
    expected = {names[old]: names[new] for old, new in case.states.items()}
    draft = None
    try:
        draft = drafted(other, Told())
    except UnsettledError as error:
        said = f"{error} {error.lines}"
        assert all(old in said for old in expected)
        # What is asked is settled by a line in the file beside it.
        assert found(other, f"[states]\n{''.join(f'{old} = {new!r}' + chr(10) for old, new in expected.items())}")
    if draft is not None and len(draft.states) == len(expected):
        states = {held.old.name: held.new for held in draft.states}
        aliases = {change.made: change.name for change in draft.changes if change.kind == "alias"}
        assert {old: aliases.get(new, new) for old, new in states.items()} == expected
    elif draft is not None:
        raise AssertionError(f"{expected} became {draft.states}")


def net(inputs: list[Value], outputs: list[Value], mixes: dict[str, list[str]]) -> onnx.ModelProto:
    """A graph of matrix products: each output is computed from the inputs named, so that nothing shows what is what."""
    b = Builder()
    for name, sources in mixes.items():
        width = next(dims[-1] for each, _, dims in outputs if each == name)
        parts = []
        for source in sources:
            wide = next(dims[-1] for each, _, dims in inputs if each == source)
            assert isinstance(wide, int)
            assert isinstance(width, int)
            parts.append(b.add("MatMul", [source, b.weight(wide, width)]))
        b.add("Sum", [*parts, b.constant(np.float32(0.1))], [name])
    return model(b, inputs, outputs)


def f32(name: str, *dims: int | str | None) -> Value:
    return (name, "float32", dims)


def crnn() -> onnx.ModelProto:
    """Text recognition: a convolution over a line of text, and an LSTM that reads it both ways."""
    b = Builder()
    pictures = b.add("Relu", [b.add("Conv", ["image", b.weight(4, 1, 3, 3)], pads=[1, 1, 1, 1])])
    columns = b.add("ReduceMean", [pictures], axes=[2], keepdims=0)
    steps = b.add("Transpose", [columns], perm=[2, 0, 1])
    read, _, _ = b.add("LSTM", [steps, b.weight(2, 20, 4), b.weight(2, 20, 5)], 3, hidden_size=5,
                       direction="bidirectional")  # fmt: skip
    letters = b.add("MatMul", [b.add("ReduceMean", [read], axes=[1], keepdims=0), b.weight(5, 7)])
    b.add("Transpose", [letters], ["letters"], perm=[1, 0, 2])
    return model(b, [f32("image", "b", 1, 8, "width")], [f32("letters", "b", "width", 7)])


STATELESS: dict[str, onnx.ModelProto] = {
    "a crnn": crnn(),
    "an autoencoder": net([f32("h", "b", 4)], [f32("h_out", "b", 4)], {"h_out": ["h"]}),
    "two inputs, another type": net([f32("x", "b", 4), f32("z", "b", 3)], [f32("y", "b", 2)], {"y": ["x", "z"]}),
    "ids and a mask": model(
        (lambda b: (b.add("Cast", [b.add("Mul", ["ids", "mask"])], ["y"], to=1), b)[1])(Builder()),
        [("ids", "int64", ["b", "t"]), ("mask", "int64", ["b", "t"])],
        [("y", "float32", ["b", "t"])],
    ),
}


@pytest.mark.parametrize("name", STATELESS)
def test_what_has_no_memory_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    assert not found(STATELESS[name])
    verdict = proved(STATELESS[name], tmp_path)
    assert verdict.plan is not None
    assert "states" not in verdict.plan["signature"]


def test_what_may_be_memory_is_asked_with_the_lines_that_settle_it(tmp_path: Path) -> None:
    proto = net(
        [f32("input_1", "b", 4), f32("input_2", "b", 5)],
        [f32("output_1", "b", 3), f32("output_2", "b", 5)],
        {"output_1": ["input_1", "input_2"], "output_2": ["input_1", "input_2"]},
    )
    with pytest.raises(ModelLoadError) as caught:
        proved(proto, tmp_path / "a")
    said = str(caught.value)
    assert "input input_2 float32[b, 5] may be memory whose next value is output output_2 float32[b, 5]" in said
    assert 'say in model.toml beside it: states = { "input_2" = "output_2" } or stateless = true' in said
    assert "\n" not in said
    assert "states" in proved(proto, tmp_path / "b", 'states = { "input_2" = "output_2" }').plan["signature"]  # type: ignore[index]
    assert "states" not in proved(proto, tmp_path / "c", "stateless = true").plan["signature"]  # type: ignore[index]


def test_where_one_of_two_is_sent_each_choice_is_shown(tmp_path: Path) -> None:
    """As in DTLN's second half, whose signal and memory both come out again."""
    proto = net(
        [f32("input_4", 1, 4), f32("input_5", 1, 5)],
        [f32("conv1d_3", 1, 4), f32("stack_5", 1, 5)],
        {"conv1d_3": ["input_4", "input_5"], "stack_5": ["input_4", "input_5"]},
    )
    with pytest.raises(ModelLoadError) as caught:
        proved(proto, tmp_path)
    for line in ('states = { "input_4" = "conv1d_3" }', 'states = { "input_5" = "stack_5" }', "stateless = true"):
        assert line in str(caught.value)


def test_states_of_one_type_that_only_their_order_tells_apart_are_asked() -> None:
    names = [f"input_{i}" for i in range(4)]
    proto = net(
        [f32("x", 1, 6), *(f32(name, 1, 64) for name in names)],
        [f32("y", 1, 2), *(f32(f"o{i}", 1, 64) for i in range(4))],
        {"y": ["x", *names], **{f"o{i}": ["x", *names] for i in range(4)}},
    )
    with pytest.raises(UnsettledError, match="nothing in the graph says which") as caught:
        found(proto)
    assert all(name in str(caught.value) for name in names)


def test_hidden_and_cell_state_are_told_apart_by_the_graph_whatever_they_are_called() -> None:
    proto = CASES["lstm"]().model
    names = {name: name for name in taken(proto.graph)} | {
        "h": "c_0",
        "c": "h_0",
        "h_out": "h_n",
        "c_out": "c_n",
    }
    assert found(renamed(proto, names)) == {"c_0": "h_n", "h_0": "c_n"}


def test_a_queue_is_told_from_its_input_by_which_comes_first() -> None:
    b = Builder()
    joined = b.add("Concat", ["a", "z"], axis=1)
    b.add("Slice", [joined, ints(b, -4), ints(b, 1 << 62), ints(b, 1)], ["q"])
    b.add("ReduceMean", [joined], ["p"], axes=[1])
    proto = model(b, [f32("z", "b", 4), f32("a", "b", 4)], [f32("p", "b", 1), f32("q", "b", 4)])
    assert found(proto) == {"a": "q"}


def test_what_looks_ahead_is_refused(tmp_path: Path) -> None:
    proto, _ = graphs.recurrent("GRU", direction="bidirectional")
    proto.ClearField("metadata_props")
    with pytest.raises(ModelLoadError, match=r"looks ahead|no way to run it"):
        proved(proto, tmp_path)


def test_rows_that_influence_each_other_run_one_at_a_time(tmp_path: Path) -> None:
    b = Builder()
    mean = b.add("ReduceMean", ["x"], axes=[0], keepdims=1)
    b.add("Add", [b.add("Mul", ["s", b.constant(np.float32(0.5))]), b.add("Sub", ["x", mean])], ["s_out"])
    b.add("Mul", ["s_out", b.constant(np.float32(2))], ["y"])
    proto = model(b, [f32("x", "b", 3), f32("s", "b", 3)], [f32("y", "b", 3), f32("s_out", "b", 3)])
    verdict = proved(proto, tmp_path)
    assert verdict.plan is not None
    notes = dict(verdict.plan["notes"])
    assert "ReduceMean (t1) works across the axis along which sessions lie" in notes["one at a time"]


def test_calls_that_influence_each_other_behind_a_threshold_run_one_by_one(tmp_path: Path) -> None:
    b = Builder()
    largest = b.add("ReduceMax", ["x"], axes=[0], keepdims=1)
    b.add("Where", [b.add("Greater", [largest, b.constant(np.float32(1e5))]), largest, "x"], ["y"])
    graphs.save(model(b, [f32("x", "b", 3)], [f32("y", "b", 3)]), tmp_path)
    made = loading.load("m", 1, tmp_path, device="cpu")
    assert made.graph is not None
    assert made.graph.together == 1
    assert "ReduceMax (t1) works across" in made.invariance_note


@pytest.mark.parametrize("op", ["ReduceMax", "Gather", "Slice", "Softmax", "CumSum", "MatMul"])
def test_rows_that_influence_each_other_behind_a_threshold_run_one_at_a_time(tmp_path: Path, op: str) -> None:
    b = Builder()
    b.add("Add", ["x", "s"], ["s_out"])
    if op == "ReduceMax":
        seen = b.add(op, ["s_out"], axes=[0], keepdims=1)
    elif op == "Gather":
        seen = b.add(op, ["s_out", ints(b, -1)], axis=0)
    elif op == "Slice":
        seen = b.add(op, ["s_out", ints(b, 0), ints(b, 1), ints(b, 0)])
    elif op == "Softmax":
        seen = b.add("Mul", [b.add(op, ["s_out"], axis=0), "s_out"])
    elif op == "CumSum":
        seen = b.add(op, ["s_out", b.constant(np.asarray(0, np.int64))])
    else:
        seen = b.add(op, [b.add(op, ["s_out", b.add("Transpose", ["s_out"], perm=[1, 0])]), "s_out"])
    far = b.add("Greater", [seen, b.constant(np.float32(1e5))])
    b.add("Where", [far, seen, "s_out"], ["y"])
    proto = model(b, [f32("x", "b", 3), f32("s", "b", 3)], [f32("y", "b", 3), f32("s_out", "b", 3)])
    verdict = proved(proto, tmp_path)
    assert verdict.plan is not None
    assert f"{op} (" in dict(verdict.plan["notes"])["one at a time"]


def test_the_verdict_carries_the_plan_and_the_digest_covers_it(tmp_path: Path) -> None:
    case = CASES["silero"]()
    verdict = Verdict.loads(json.loads(proved(case.model, tmp_path, case.told).dumps()))
    made = building.build(tmp_path / "model.onnx", verdict, name="m", version=1, device=providers_for("cpu"))
    assert made.digest == verdict.digest
    other = proved(case.model, tmp_path / "other", case.told.replace("16000", "8000"))
    assert other.digest != verdict.digest
    (tmp_path / "model.toml").write_text("stateless = true")
    assert modelfile.read(tmp_path / "model.onnx").told is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state = { a = 'b' }", r"unknown entry 'state' \(is it 'states'\?\)"),
        ("states = { inputt = 'stateN' }", r"states names 'inputt', which is no input \(is it 'input'\?\)"),
        ("states = { state = 'output', input = 'output' }", "two of them have the same output"),
        ("stateless = 1", "stateless is 1; expected true or false"),
        ("context = { input = 0 }", "context.input is 0; expected a number of values"),
        ("shapes = { input = ['batch', 'batch'] }", "shapes.input is .* expected lengths"),
        ("constants = { sr = 'x' }", "constants.sr is 'x'; expected a number"),
        ("constants = { sr = [1, 2] }", "is given 2 numbers; expected one or 1"),
        ("constants = { sr = 1 }\nsession = { sr = 1 }", "'sr' is told two things"),
        ("stateless = true\ncontext = { input = 4 }", "stateless = true, and yet"),
        ("window = { input = 1 }", "window.input is 1; expected a number of steps, 2 or more"),
        ("window = { input = { steps = 4, before = 'zeros' } }", 'where before is "start", "pad" or "hold"'),
        ("window = { input = { steps = 4, keep = 3 } }", "window.input is .*; expected a number of steps"),
        ("window = { input = 4 }\ncontext = { input = 4 }", "'input' is told two things"),
        ("window = { input = { steps = 4, before = 'pad' } }\nstart = { input = 1 }", "and yet there is start.input"),
        (
            "window = { input = 64 }\nshapes = { input = ['batch', 512] }",
            "shapes.input has 2 axes; .* say context, not",
        ),
        ("stateless = true\nwindow = { input = 4 }", "stateless = true, and yet"),
        ("a = ", "is no TOML"),
    ],
)
def test_what_is_told_is_read_strictly(text: str, message: str) -> None:
    with pytest.raises(ToldError, match=message):
        drafted(CASES["silero"]().model, loads(text))


def series(*dims: int | str) -> onnx.ModelProto:
    """A net over x of these axes, of which nothing tells what they are."""
    b = Builder()
    b.add("ReduceSum", [b.add("Tanh", ["x"]), ints(b, len(dims) - 1)], ["y"], keepdims=0)
    return model(b, [("x", "float32", dims)], [("y", "float32", dims[:-1])])


@pytest.mark.parametrize(
    ("dims", "told", "message"),
    [
        (("B", 6, 6), "6", r"axes \[1, 2\] of x .* may hold its 6 steps; say which: window = .* axis = …"),
        (("B", 6, 3), "5", r"has no axis of 5 steps; .* context = \{ \"x\" = 5 \}"),
        (("B", 6, 3), "{ steps = 6, axis = 3 }", "has no axis 3"),
        (("B", 6, 3), "{ steps = 6, axis = 2 }", "has no axis of 6 steps"),
    ],
)
def test_an_axis_of_steps_that_is_not_clear_is_asked_for(dims: Any, told: str, message: str) -> None:
    with pytest.raises(ToldError, match=message):
        drafted(series(*dims), loads(f"window = {{ x = {told} }}"))


@pytest.mark.parametrize(
    ("dims", "told", "step"),
    [
        (("B", 6), "6", ("B",)),
        (("B", 6, 3), "6", ("B", 3)),
        (("B", 3, 6), "6", ("B", 3)),
        (("B", "T", 3), "6", ("B", 3)),
        ((6, 3), "6", (3,)),
        (("B", 6, 6), "{ steps = 6, axis = 1 }", ("B", 6)),
        (("B", 6, 6), "{ steps = 6, axis = -1 }", ("B", 6)),
    ],
)
def test_the_only_axis_that_fits_holds_the_steps(dims: Any, told: str, step: Any) -> None:
    draft = drafted(series(*dims), loads(f"window = {{ x = {told} }}"))
    assert [each.dims for each in draft.inputs] == [step]


def test_a_window_is_asked_about_and_never_taken_for_one(tmp_path: Path) -> None:
    for number, (told, asked) in enumerate([("", True), ("stateless = true", False)]):
        verdict = proved(series("B", 24, 3), tmp_path / str(number), told)
        assert verdict.plan is not None
        notes = dict(verdict.plan["notes"])
        assert ("a window?" in notes) == asked
        assert not asked or 'window = { "x" = 24 }' in notes["a window?"]
        assert '"states"' not in verdict.plan["signature"]


def test_a_window_starts_from_what_is_told(tmp_path: Path) -> None:
    verdict = proved(series("B", 4), tmp_path, "window = { x = 4 }\nstart = { x = 2.5 }")
    assert verdict.plan is not None
    (state,) = signatures.loads(verdict.plan["signature"]).states
    assert (state.input, list(state.shape), list(state.start)) == ("x_last", [-1, 3], [2.5])


def test_windows_are_proved_full_and_serve_from_empty(tmp_path: Path) -> None:
    """Else nothing would be seen of what is held back."""
    for before in ("pad", "hold"):
        told = f'window = {{ x = {{ steps = 4, before = "{before}" }} }}'
        verdict = proved(series("B", 4), tmp_path / before, told)
        assert verdict.plan is not None
        count, _ = signatures.loads(verdict.plan["signature"]).states
        assert (count.input, list(count.start)) == ("x_count", [])


def test_rows_that_influence_each_other_are_seen_through_a_window_that_holds_back(tmp_path: Path) -> None:
    b = Builder()
    b.add("Add", ["x", b.add("ReduceMean", ["x"], axes=[0], keepdims=1)], ["y"])
    both = model(b, [("x", "float32", ["B", 9])], [("y", "float32", ["B", 9])])
    verdict = proved(both, tmp_path, 'window = { x = { steps = 9, before = "hold" } }')
    assert verdict.plan is not None
    assert "ReduceMean (t1) works across" in dict(verdict.plan["notes"])["one at a time"]


def test_a_state_that_starts_otherwise_at_its_later_size_is_refused(tmp_path: Path) -> None:
    b = Builder()
    # How many numbers the state had is in what comes out.
    count = b.add("Cast", [b.add("Size", ["r"])], to=onnx.TensorProto.FLOAT)
    spread = b.add("Expand", ["r", b.add("Shape", ["x"])])
    b.add("Add", [b.add("Mul", [spread, b.constant(np.float32(0.5))]), b.add("Add", ["x", count])], ["r_out"])
    b.add("Tanh", ["r_out"], ["y"])
    inputs: list[Value] = [("x", "float32", ["B", 3, "H", "W"]), ("r", "float32", [None] * 4)]
    outputs: list[Value] = [("y", "float32", [None] * 4), ("r_out", "float32", [None] * 4)]
    with pytest.raises(ModelLoadError, match="it answers otherwise where r start in the shape that they have later"):
        proved(model(b, inputs, outputs), tmp_path, 'states = { r = "r_out" }\nshapes = { x = ["batch", 3, 2, 2] }')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes = { x = ['batch', 3] }", "sizes.x is .*; expected shapes"),
        ("sizes = { x = [['batch', 3]] }", r"sizes has \[1\] shapes; expected .* 2 or more"),
        ("sizes = { x = [['batch', 3], ['batch', 3]] }", "twice; expected each once"),
        (
            "sizes = { x = [['batch', 3], ['batch', 4]] }\nshapes = { x = ['batch', 3] }",
            "stands in shapes and in sizes",
        ),
    ],
)
def test_sizes_are_read_strictly(text: str, message: str) -> None:
    with pytest.raises(ToldError, match=message):
        loads(text).by_size()


def test_each_size_is_told_by_what_sets_it_apart() -> None:
    said = loads("[sizes]\nx = [['batch', 3, 288, 512], ['batch', 3, 144, 256]]\nz = [['batch', 8], ['batch', 4]]")
    assert loads(dumps(said)) == said
    sizes = said.by_size()
    assert list(sizes) == ["288x512x8", "144x256x4"]
    assert sizes["144x256x4"].shapes == {"x": ("batch", 3, 144, 256), "z": ("batch", 4)}
    assert not sizes["144x256x4"].sizes


def test_what_needs_lengths_asks_for_them(tmp_path: Path) -> None:
    case = CASES["video matting"]()
    with pytest.raises(
        ModelLoadError, match=r'say in model\.toml beside it: shapes = \{ "src" = \["batch", 3, …, …\] \}'
    ):
        proved(case.model, tmp_path, "constants = { downsample_ratio = 0.5 }")


def test_a_state_that_a_graph_hands_through_is_served(tmp_path: Path) -> None:
    b = Builder()
    b.add("Add", ["x", "lang"], ["y"])
    inputs: Any = [f32("x", "b", 3), f32("lang", "b", 3)]
    proto = model(b, inputs, [f32("y", "b", 3)])
    proto.graph.output.append(proto.graph.input[1])
    verdict = proved(proto, tmp_path, "states = { lang = 'lang' }\nstart = { lang = 2.0 }")
    assert verdict.plan is not None
    # Nothing changes it: a session sets it once.
    assert [state.constant for state in signatures.loads(verdict.plan["signature"]).states] == [True]
    assert ("part", "lang", "lang_out") in [tuple(change[:3]) for change in verdict.plan["changes"]]


def test_a_state_of_rank_0_is_found_where_a_scan_carries_it(tmp_path: Path) -> None:
    assert found(_scan_sum()) == {"initial": "y"}
    verdict = proved(_scan_sum(), tmp_path)
    assert verdict.plan is not None
    assert "one at a time" in dict(verdict.plan["notes"])


def _scan_sum() -> onnx.ModelProto:
    """Sums numbers [5] into one."""
    f = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Add", ["old", "each"], ["new"]),
        onnx.helper.make_node("Identity", ["new"], ["out"]),
    ]
    body = onnx.helper.make_graph(
        nodes, "body", [info("old", f, []), info("each", f, [])], [info("new", f, []), info("out", f, [])]
    )
    b = Builder()
    b.nodes.append(onnx.helper.make_node("Scan", ["initial", "x"], ["y", "z"], body=body, num_scan_inputs=1))
    return model(b, [f32("initial"), f32("x", 5)], [f32("y"), f32("z", 5)])


def test_what_has_no_shape_is_asked_for_it(tmp_path: Path) -> None:
    proto = CASES["lstm"]().model
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelLoadError, match=r"does not say how many axes 'h' has; say .* shapes = \{ \"h\" = "):
        proved(proto, tmp_path)
    told = 'shapes = { h = [2, "batch", 6] }'
    assert "h_out" in str(proved(proto, tmp_path, told).plan)


@pytest.mark.parametrize(
    ("given", "said", "seen"), [((3,), (None,), [-1]), ((3,), (1,), [-1]), (("b", 3), (None, 3), [-1, -1])]
)
def test_what_a_graph_says_wrong_of_an_output_without_memory_is_free(
    tmp_path: Path, given: tuple[Any, ...], said: tuple[Any, ...], seen: list[int]
) -> None:
    b = Builder()
    value = b.add("MatMul", ["x", b.weight(3, 3)])
    if len(given) > 1:  # A row for each feature, whatever comes in.
        value = b.add("MatMul", [b.add("Transpose", [value], perm=[1, 0]), value])
    b.add("Identity", [value], ["y"])
    verdict = proved(model(b, [f32("x", *given)], [f32("y", *said)]), tmp_path)
    assert verdict.plan is not None
    assert signatures.loads(verdict.plan["signature"]).outputs[0].shape == seen
    assert not signatures.loads(verdict.plan["signature"]).outputs[0].HasField("batch_axis")


def test_axes_that_are_called_anew_for_each_tensor_are_told_by_their_places(tmp_path: Path) -> None:
    b = Builder()
    frames = b.add("Transpose", [b.add("Add", ["x", "m"])], perm=[1, 0, 2])
    made, last = b.add("GRU", [frames, b.weight(1, 12, 3), b.weight(1, 12, 4), "", "", "h"], 2, hidden_size=4)
    b.add("Identity", [last], ["hn"])
    b.add("Transpose", [b.add("Squeeze", [made, ints(b, 1)])], ["y"], perm=[1, 0, 2])
    inputs = [f32("x", "unk_1", "unk_2", 3), f32("m", "unk_3", "unk_4", 3), f32("h", 1, "unk_5", 4)]
    verdict = proved(model(b, inputs, [f32("y", None, None, 4), f32("hn", 1, None, 4)]), tmp_path)
    assert verdict.plan is not None
    signature = signatures.loads(verdict.plan["signature"])
    assert [(spec.batch_axis, spec.time_axis) for spec in signature.inputs] == [(0, 1), (0, 1)]
    assert signature.states[0].batch_axis == 1


@pytest.mark.parametrize("opset", [9, 17])
def test_each_step_of_a_run_is_given_the_last_values_of_the_one_before(opset: int) -> None:
    given, made = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", "t", 7]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [made])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    changed = surgery.applied(proto, [surgery.Change("context", "x", "x_last", [3, 2, 1])])
    runtime = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    steps, last = np.arange(40, dtype=np.float32).reshape(2, 5, 4), -np.ones((2, 1, 3), np.float32)
    read, after = runtime.run(["y", "x_last_next"], {"x": steps, "x_last": last})
    before = np.concatenate([last, steps[:, :, 1:]], axis=1)
    np.testing.assert_array_equal(read, np.concatenate([before[:, :5], steps], axis=2))
    np.testing.assert_array_equal(after, before[:, 5:])
