"""Outputs that are maps, sequences or text, as converters of scikit-learn write them: served as tensors, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import statestream
from statestream_server.models.files import modelfile
from statestream_server.models.form.tensors import tensors
from statestream_server.models.model import ModelLoadError
from tests.support import serving

ML: Final = "ai.onnx.ml"
ROWS: Final = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float32)
_CODES: Final = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0.5)
_WORDS: Final = np.array(["no", "perhaps", "yes"])[_CODES]
X: Final = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
MAPS: Final = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
)
PARTS: Final = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))

Values = Sequence[onnx.ValueInfoProto]


def made(
    nodes: Sequence[onnx.NodeProto], outputs: Values, inputs: Values = (X,), weights: Sequence[onnx.TensorProto] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def ml(kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, domain=ML, **more)


def linear(**classes: Any) -> onnx.NodeProto:
    weights = np.arange(12, dtype=np.float32).reshape(3, 4) % 5 - 2
    return ml(
        "LinearClassifier", ["x"], ["label", "scores"], coefficients=weights.reshape(-1).tolist(),
        intercepts=[0.1, -0.2, 0.3], post_transform="SOFTMAX", **classes,
    )  # fmt: skip


def text(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.STRING, [None])


def sklearn(estimator: Any, labels: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: to_onnx(estimator.fit(ROWS, labels), ROWS[:1])


def zipped() -> onnx.ModelProto:
    nodes = [
        linear(classlabels_ints=[3, 5, 9]),
        ml("ZipMap", ["scores"], ["p"], classlabels_int64s=[3, 5, 9]),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    return made(nodes, [label, helper.make_value_info("p", MAPS)])


def parted() -> onnx.ModelProto:
    """A sequence of what was computed, and one of a tensor cut in two."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("SequenceConstruct", ["a", "b"], ["both"]),
        helper.make_node("SplitToSequence", ["a"], ["columns"], axis=1),
    ]
    return made(nodes, [helper.make_value_info("both", PARTS), helper.make_value_info("columns", PARTS)])


def encoded() -> onnx.ModelProto:
    """Numbers that an encoder makes text of, two of them the same, and one that it does not know."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["place"], axis=1, keepdims=0),
        ml("LabelEncoder", ["place"], ["word"], keys_int64s=[0, 1, 2], values_strings=["low", "high", "low"],
           default_string="unknown"),
    ]  # fmt: skip
    return made(nodes, [text("word")])


ESTIMATORS: Final = {
    "logistic": sklearn(LogisticRegression(), _WORDS),
    "forest": sklearn(RandomForestClassifier(5, random_state=0), _WORDS),
    "forest-of-numbers": sklearn(RandomForestClassifier(5, random_state=0), _CODES * 10),
    "svc": sklearn(SVC(probability=True, random_state=0), _WORDS),
    "bayes": sklearn(GaussianNB(), _WORDS),
    "neighbours": sklearn(KNeighborsClassifier(), _WORDS),
    "mlp": sklearn(MLPClassifier((5,), max_iter=20, random_state=0), _WORDS),
    "pipeline": sklearn(make_pipeline(StandardScaler(), LogisticRegression()), _WORDS),
    "several": sklearn(MultiOutputClassifier(LogisticRegression()), np.stack([_CODES, _CODES > 0], 1).astype(int)),
    "regression": sklearn(LinearRegression(), _CODES),
}
MODELS: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    **ESTIMATORS,
    "zipped": zipped,
    "parted": parted,
    "encoded": encoded,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fits that are too short, and the converter's own.
        for name, make in MODELS.items():
            onnx.save(make(), folder / f"{name}.onnx")
    with serving.process(folder, "--store", "memory") as server, statestream.connect(server.address) as client:
        yield client


def expected(model: onnx.ModelProto, rows: Any) -> dict[str, Any]:
    """What ONNX Runtime gives of the file as it is."""
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([each.name for each in model.graph.output], runtime.run(None, {runtime.get_inputs()[0].name: rows}),
                    strict=True))  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_it_is_served_with_the_numbers_that_onnx_runtime_gives(client: Any, name: str) -> None:
    rows = np.random.default_rng(7).standard_normal((9, 4)).astype(np.float32)
    found = client.predict(name, rows)
    (model,) = (each for each in client.models() if each.name == name)
    classes = {spec.name: list(spec.classes) for spec in model.signature.outputs}
    found = found if isinstance(found, dict) else {next(iter(classes)): found}
    for key, wanted in expected(MODELS[name](), rows).items():
        if isinstance(wanted, list) and isinstance(wanted[0], dict):
            assert classes[key] == [str(each) for each in wanted[0]]
            np.testing.assert_array_equal(found[key], np.array([list(row.values()) for row in wanted], np.float32))
        elif isinstance(wanted, list) and key == "columns":
            np.testing.assert_array_equal(found[key], np.concatenate(wanted, axis=1))
        elif isinstance(wanted, list):
            for place, part in enumerate(wanted):
                np.testing.assert_array_equal(found[f"{key}_{place}"], part)
        elif wanted.dtype == object:
            assert [classes[key][place] for place in found[key]] == wanted.tolist()
        else:
            np.testing.assert_array_equal(found[key], wanted)


def read(folder: Path, model: onnx.ModelProto) -> modelfile.ModelFile:
    onnx.save(model, folder / "model.onnx")
    return modelfile.read(folder / "model.onnx")


def test_the_digest_is_of_what_is_served_and_inspect_tells_what_was_done(client: Any, tmp_path: Path) -> None:
    file = read(tmp_path, zipped())
    assert file.changed
    assert [note.text for note in file.made] == ["output p, a sequence of maps, became the tensor of its scores"]
    nodes = [linear(classlabels_ints=[3, 5, 9]), helper.make_node("Identity", ["scores"], ["p"])]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 3]),
    ]
    assert read(tmp_path, made(nodes, outputs)).digest() == file.digest()


def test_a_graph_of_tensors_stays_as_it_is() -> None:
    model = made([linear(classlabels_ints=[3, 5, 9])], [helper.make_tensor_value_info("scores", 1, [None, 3])])
    assert tensors(model).model is model


def words(*names: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(names, object), "words")


def looked_up(*readers: onnx.NodeProto) -> onnx.ModelProto:
    """A label out of a list of words, that something else reads, too."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["place"], axis=1, keepdims=0),
        helper.make_node("Gather", ["words", "place"], ["word"]),
        *readers,
    ]
    outputs = [text("word"), *(helper.make_tensor_value_info("code", TensorProto.INT64, [None]) for _ in readers)]
    return made(nodes, outputs, weights=[words("a", "b", "c", "d")])


def test_labels_out_of_a_list_of_words_are_its_places(tmp_path: Path) -> None:
    file = read(tmp_path, looked_up())
    assert list(file.signature.outputs[0].classes) == ["a", "b", "c", "d"]
    assert file.signature.outputs[0].dtype == "int64"


_SEQUENCE = helper.make_value_info("s", PARTS)
REFUSED: Final = {
    "text that callers would send": (
        made([ml("LabelEncoder", ["s"], ["y"], keys_strings=["a"], values_floats=[1.0])],
             [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])], [text("s")]),
        "input 's' is text; callers send numbers: train with codes",
    ),
    "maps that callers would send": (
        made([ml("DictVectorizer", ["m"], ["y"], int64_vocabulary=[1, 2])],
             [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])],
             [helper.make_value_info("m", helper.make_map_type_proto(
                 TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])))]),
        "input 'm' is a map; callers send numbers.*one tensor of features",
    ),
    "a sequence of any length": (
        made([helper.make_node("SequenceEmpty", [], ["e"]), helper.make_node("SequenceInsert", ["e", "x"], ["s"])],
             [_SEQUENCE]),
        "output 's' is a sequence of tensors; only numbers are served",
    ),
    "text that is read again": (
        looked_up(ml("LabelEncoder", ["word"], ["code"], keys_strings=["a"], values_int64s=[1])),
        "output 'word' is text; only numbers are served.*zipmap.*labels that are whole numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_made_of_no_tensor_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(ModelLoadError, match=message):
        read(tmp_path, model)
