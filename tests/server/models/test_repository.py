"""The models folder: what is found, what loads, what is refused and how it says so, and what a digest covers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from statestream import signature as signatures
from statestream.signature import Decoding, Signature, StateSpec, TensorSpec, Text
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.describe import describe
from statestream_server.models.files import modelfile
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import PaddedRows, SerialisedRows
from statestream_server.models.model import BatchPolicy, Kind, Model, ModelLoadError
from statestream_server.models.proof import loading
from tests.server.models import graphs


def load(folder: Path, **options: Any) -> Model:
    return loading.load("m", 1, folder, device="cpu", **options)


def classifier(*, described: bool = False, name: str = "x", batch: int = -1) -> onnx.ModelProto:
    b = graphs.Builder()
    b.add("Relu", [b.add("MatMul", [name, b.weight(4, 2)])], ["scores"])
    spec = {"dtype": "float32", "batch_axis": 0}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name=name, shape=[batch, 4], **spec)],  # type: ignore[arg-type]
        outputs=[TensorSpec(name="scores", shape=[batch, 2], **spec)],  # type: ignore[arg-type]
    )
    return b.model(signature, described=described)


def encoder_decoder(folder: Path, *, hidden: int = 6, handed: str = "memory") -> None:
    """An encoder that sums one-hot letters, and a decoder whose GRU starts from that."""
    b = graphs.Builder()
    table, one_hot = b.weight(5, 6), b.add("Gather", [b.weight(5, 6), "letters"], axis=0)
    assert table
    total = b.add("ReduceSum", [one_hot, b.constant(np.asarray([1]))], keepdims=0)
    b.add("Unsqueeze", [total, b.constant(np.asarray([0]))], ["memory"])
    text = Text(vocabulary=list("<>abc"))
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="letters", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1, text=text)],
        outputs=[TensorSpec(name="memory", dtype="float32", shape=[1, -1, 6], batch_axis=1)],
    )
    graphs.save(b.model(signature), folder, "encoder.onnx")
    b = graphs.Builder()
    steps = b.add("Transpose", [b.add("Gather", [b.weight(5, 3), "token"], axis=0)], perm=[1, 0, 2])
    y, _ = b.add(
        "GRU",
        [steps, b.weight(1, 3 * hidden, 3), b.weight(1, 3 * hidden, hidden), "", "", "h"],
        [b.name(), "h_out"],
        hidden_size=hidden,
    )
    flat = b.add("Squeeze", [y, b.constant(np.asarray([1]))])
    b.add("Transpose", [b.add("MatMul", [flat, b.weight(hidden, 5)])], ["logits"], perm=[1, 0, 2])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="token", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1)],
        outputs=[TensorSpec(name="logits", dtype="float32", shape=[-1, -1, 5], batch_axis=0, time_axis=1)],
        states=[
            StateSpec(
                input="h", output="h_out", dtype="float32", shape=[1, -1, hidden], batch_axis=1, from_encoder=handed
            )
        ],
        decoding=Decoding(input="token", output="logits", start_token=0, end_token=1, text=text, max_tokens=9),
    )
    graphs.save(b.model(signature), folder, "decoder.onnx")


def test_a_model_with_states_is_served_by_sessions(tmp_path: Path) -> None:
    graphs.save(graphs.recurrent("LSTM", layers=2, hidden=16)[0], tmp_path)
    model = load(tmp_path)
    assert model.kind == Kind.SESSION
    assert isinstance(model.rows, FusedRows)
    assert model.graph is None
    assert model.batch_invariance == BatchInvariance.BATCH_INVARIANCE_EXACT
    assert model.providers == ("CPUExecutionProvider",)


def test_a_model_without_states_is_served_by_predict(tmp_path: Path) -> None:
    graphs.save(classifier(described=True), tmp_path)
    model = load(tmp_path)
    assert model.kind == "predict"
    assert model.rows is None
    assert model.graph is not None
    (scores,) = model.graph.predict([np.ones((3, 4), np.float32)])
    assert scores.shape == (3, 2)


def test_a_file_without_signature_and_memory_serves_with_a_derived_one(tmp_path: Path) -> None:
    graphs.save(classifier(), tmp_path)
    model = load(tmp_path)
    assert model.kind == "predict"
    (spec,) = model.signature.inputs
    assert (spec.name, spec.dtype, list(spec.shape), spec.batch_axis) == ("x", "float32", [-1, 4], 0)
    graphs.save(classifier(batch=1), tmp_path)
    assert not load(tmp_path).signature.inputs[0].HasField("batch_axis")


@pytest.mark.parametrize("name", ["h0", "hidden_state", "x"])
def test_a_file_whose_only_input_is_all_it_takes_has_no_memory(tmp_path: Path, name: str) -> None:
    graphs.save(classifier(name=name), tmp_path)
    assert load(tmp_path).kind == "predict"


def test_an_encoder_decoder_is_served_by_generate(tmp_path: Path) -> None:
    encoder_decoder(tmp_path)
    model = load(tmp_path)
    assert model.kind == "generate"
    assert model.encoder is not None
    assert model.encoder_signature is not None
    assert model.rows is not None
    assert [column.name for column in model.rows.columns] == ["h"]
    (memory,) = model.encoder.predict([np.asarray([[2, 3, 4]])])
    assert memory.shape == (1, 1, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 7}, r"decoder\.onnx: state 'h' .* is float32\[1, 6\] a row; expected float32\[1, 7\]"),
        ({"handed": "other"}, r"decoder\.onnx: state 'h' .* 'other', which does not exist; .*\['memory'\]"),
    ],
)
def test_an_encoder_that_does_not_fit_its_decoder_is_refused(
    tmp_path: Path, options: dict[str, int | str], message: str
) -> None:
    encoder_decoder(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=message):
        load(tmp_path)


def test_halves_in_the_wrong_place_are_refused(tmp_path: Path) -> None:
    encoder_decoder(tmp_path / "pair")
    decoder = (tmp_path / "pair/decoder.onnx").read_bytes()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/model.onnx").write_bytes(decoder)
    with pytest.raises(ModelLoadError, match=r"is a decoder; name it decoder\.onnx"):
        load(tmp_path / "alone")
    (tmp_path / "pair/encoder.onnx").write_bytes(decoder)
    with pytest.raises(ModelLoadError, match=r"encoder\.onnx: signature has states"):
        load(tmp_path / "pair")
    graphs.save(classifier(described=True), tmp_path / "pair", "decoder.onnx")
    with pytest.raises(ModelLoadError, match=r"decoder\.onnx: signature has no states or no decoding"):
        load(tmp_path / "pair")


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x00" * 64])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.onnx: not .*export it again") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_signature_is_refused(tmp_path: Path) -> None:
    model = classifier()
    for text, message in (("{", "is not a signature"), ('{"format": 9}', "format is 9; this release reads 1")):
        helper.set_model_props(model, {signatures.METADATA_KEY: text})
        graphs.save(model, tmp_path)
        with pytest.raises(ModelLoadError, match=rf"model\.onnx: .*{message}.*; export it again with"):
            load(tmp_path)


def test_a_graph_that_onnx_runtime_refuses_is_refused(tmp_path: Path) -> None:
    model = classifier(described=True)
    model.graph.node[0].op_type = "NoSuchOperator"
    graphs.save(model, tmp_path)
    with pytest.raises(ModelLoadError, match=r"model\.onnx: ONNX Runtime refuses it \(.*NoSuchOperator"):
        load(tmp_path)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    graphs.save(classifier(), tmp_path)
    with pytest.raises(ModelLoadError, match=r"model\.onnx: device 'tpu' does not exist"):
        loading.load("m", 1, tmp_path, device="tpu")


@pytest.mark.parametrize(
    ("policy", "kind"),
    [(BatchPolicy.PAD, PaddedRows), (BatchPolicy.WARN, FusedRows), (BatchPolicy.SERIALISE, SerialisedRows)],
)
def test_the_operator_chooses_what_inexact_batches_become(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: BatchPolicy, kind: type
) -> None:
    graphs.save(graphs.recurrent("RNN", hidden=64)[0], tmp_path)
    with caplog.at_level(logging.WARNING, logger="statestream_server"):
        model = load(tmp_path, batch_policy=policy)
    assert isinstance(model.rows, kind)
    assert model.batch_invariance == BatchInvariance.BATCH_INVARIANCE_PADDED
    assert ("once a batch of one runs as two" in caplog.text) == (policy == BatchPolicy.WARN)


def test_a_graph_that_cannot_be_wrapped_is_served_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = graphs.delay()[0]
    model.opset_import[0].version = 10
    graphs.save(model, tmp_path)
    with caplog.at_level(logging.WARNING, logger="statestream_server"):
        loaded = load(tmp_path)
    assert isinstance(loaded.rows, NumpyRows)
    assert "model.onnx: rows are copied in and out at every step, the graph cannot do it: opset 10" in caplog.text


def test_weights_in_a_file_of_their_own_are_loaded_and_count(tmp_path: Path) -> None:
    model = graphs.recurrent("LSTM", hidden=32)[0]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(
            copy, tmp_path / folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=256
        )
    first = load(tmp_path / "one")
    assert isinstance(first.rows, FusedRows)
    assert first.digest == load(tmp_path / "two").digest
    data = bytearray((tmp_path / "two/weights").read_bytes())
    data[-3] ^= 1
    (tmp_path / "two/weights").write_bytes(data)
    assert first.digest != load(tmp_path / "two").digest


def relabel(model: onnx.ModelProto, change: Callable[[Signature], object]) -> None:
    (entry,) = model.metadata_props
    signature = signatures.loads(entry.value)
    change(signature)
    entry.value = signatures.dumps(signature)


LABELS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "description": lambda m: relabel(m, lambda s: setattr(s, "description", "other words")),
    "columns": lambda m: relabel(m, lambda s: s.inputs[0].columns.extend("abc")),
    "classes": lambda m: relabel(m, lambda s: s.outputs[0].classes.extend("ab")),
    "producer": lambda m: setattr(m, "producer_name", "someone"),
    "comment": lambda m: setattr(m.graph.node[0], "doc_string", "traced from line 3"),
}
SUBSTANCE: dict[str, Callable[[onnx.ModelProto], object]] = {
    "weight": lambda m: m.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(m.graph.initializer[2]) + 1, m.graph.initializer[2].name)
    ),
    "start": lambda m: relabel(m, lambda s: s.states[0].start.__setitem__(0, 1.5)),
    "check": lambda m: relabel(m, lambda s: setattr(s.states[0], "check", 3)),
    "node": lambda m: m.graph.node.append(helper.make_node("Identity", ["x"], ["unused"])),
}


def digest(folder: Path, model: onnx.ModelProto) -> str:
    return modelfile.read(graphs.save(model, folder)).digest()


@pytest.mark.parametrize("label", LABELS)
def test_labels_do_not_change_the_digest(tmp_path: Path, label: str) -> None:
    plain, labelled = graphs.recurrent("LSTM")[0], graphs.recurrent("LSTM")[0]
    LABELS[label](labelled)
    assert labelled != plain
    assert digest(tmp_path / "a", plain) == digest(tmp_path / "b", labelled)


@pytest.mark.parametrize("part", SUBSTANCE)
def test_whatever_changes_results_or_states_changes_the_digest(tmp_path: Path, part: str) -> None:
    plain, other = graphs.recurrent("LSTM")[0], graphs.recurrent("LSTM")[0]
    SUBSTANCE[part](other)
    assert digest(tmp_path / "a", plain) != digest(tmp_path / "b", other)


def test_describe_says_what_the_server_makes_of_a_file(tmp_path: Path) -> None:
    path = graphs.save(graphs.recurrent("RNN", hidden=64, features=2, feedback=True)[0], tmp_path / "s")
    text = describe(path, device="cpu")
    for part in (
        "kind ",
        "session",
        "x float32[batch, time, 2]",
        "h → h_out float32[1, batch, 64]",
        "y → x",
        "padded: ",
    ):
        assert part in text
    assert modelfile.read(path).digest() in text
    graphs.save(classifier(), tmp_path / "p")
    assert "found in the graph" in describe(tmp_path / "p", device="cpu")
    encoder_decoder(tmp_path / "g")
    for name in ("", "encoder.onnx", "decoder.onnx"):
        assert "encoder input   letters int64[batch, time], symbols '<', '>'" in describe(tmp_path / "g" / name)


def test_a_random_graph_is_refused(tmp_path: Path) -> None:
    model, _ = graphs.average("float32")
    model.graph.node.insert(0, helper.make_node("RandomNormalLike", ["x"], ["noise"], dtype=TensorProto.FLOAT))
    model.graph.node.insert(1, helper.make_node("Add", ["x", "noise"], ["noisy"]))
    model.graph.node[2].input[0] = "noisy"
    graphs.save(model, tmp_path)
    with pytest.raises(ModelLoadError, match="draws random numbers"):
        load(tmp_path)


def sklearn_classifier(*, maps: bool, words: bool = False) -> onnx.ModelProto:
    """Labels and scores, as skl2onnx writes them; the scores as maps unless it is told otherwise."""
    labels = {"classlabels_strings": ["no", "yes"]} if words else {"classlabels_ints": [0, 1]}
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            coefficients=[1.0, -1.0, -1.0, 1.0],
            intercepts=[0.1, -0.1],
            post_transform="SOFTMAX",
            **labels,
        )
    ]
    kind = TensorProto.STRING if words else TensorProto.INT64
    outputs = [helper.make_tensor_value_info("label", kind, [None])]
    if maps:
        nodes.append(helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]))
        mapped = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        outputs.append(helper.make_value_info("maps", helper.make_sequence_type_proto(mapped)))
    else:
        outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 2]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])], outputs)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8
    )


def test_a_classifier_of_scikit_learn_is_served_by_its_scores(tmp_path: Path) -> None:
    graphs.save(sklearn_classifier(maps=False), tmp_path / "scores")
    model = load(tmp_path / "scores")
    assert model.graph is not None
    label, scores = model.graph.predict([np.asarray([[1, 2], [3, 0]], np.float32)])
    assert label.tolist() == [1, 0]
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    for kind in ("maps", "words"):
        graphs.save(sklearn_classifier(maps=kind == "maps", words=kind == "words"), tmp_path / kind)
        other = load(tmp_path / kind)
        assert other.graph is not None
        places, same = other.graph.predict([np.asarray([[1, 2], [3, 0]], np.float32)])
        assert places.tolist() == [1, 0]
        np.testing.assert_array_equal(same, scores)


def test_describe_says_what_calls_share_and_what_values_are_known(tmp_path: Path) -> None:
    signature = signatures.Signature(
        format=1,
        inputs=[
            signatures.TensorSpec(
                name="x",
                dtype="float32",
                shape=[-1, 2],
                batch_axis=0,
                ranges=[
                    signatures.ValueRange(lowest=-2.5, highest=3),
                    signatures.ValueRange(lowest=0, highest=6, whole=True),
                ],
            )
        ],
        outputs=[signatures.TensorSpec(name="y", dtype="float32", shape=[-1, 2], batch_axis=0)],
    )
    b = graphs.Builder()
    b.add("Neg", ["x"], ["y"])
    text = describe(graphs.save(b.model(signature), tmp_path), device="cpu")
    assert "x float32[batch, 2], values -2.5 to 3, 0 to 6 whole" in text
    assert re.search(
        r"batching +exact: the same bits \(tried alone and in runs up to \d+ rows with values of its", text
    )
