"""Tensors: what a graph gives as maps, sequences or text becomes tensors, where they are made of some. Nothing is run.

Converters of scikit-learn, LightGBM and XGBoost write classifiers so: labels as text, probabilities as a map for every
row. The numbers are in the graph all the same: the labels' places, the scores in their order. Names of classes go into
the signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statestream_server.models.form.plan import Note

_ML: Final = "ai.onnx.ml"
_LABELS: Final[Mapping[str, tuple[str, str]]] = {
    # Classifiers: the attributes that name classes by text and by number.
    "LinearClassifier": ("classlabels_strings", "classlabels_ints"),
    "SVMClassifier": ("classlabels_strings", "classlabels_ints"),
    "TreeEnsembleClassifier": ("classlabels_strings", "classlabels_int64s"),
}
_ZIPPED: Final = ("classlabels_strings", "classlabels_int64s")
_SHAPING: Final = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice"))
"""Operators that take numbers where they took text."""
_LOOKUPS: Final = frozenset(("ArrayFeatureExtractor", "Gather"))
_ROWWISE: Final = frozenset(("Normalizer", "Scaler", "Binarizer"))
"""Operators of which inference does not know that their result has the shape of what they take."""
_INVENTED: Final = "unk__"
"""So inference calls axes of which it knows nothing."""
_MOST_CLASSES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Tensors:
    """A graph all of whose outputs are tensors of numbers, as far as they could be made so.

    Attributes:
        model: The graph; the one that was given where nothing was to be done.
        notes: What was done.
        classes: Names of classes, by output.
    """

    model: onnx.ModelProto
    notes: Sequence[Note] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


def tensors(model: onnx.ModelProto) -> Tensors:
    """A graph with outputs that are tensors; the model stays as it is.

    An output that is made of none, or of which the graph does not say how it was made, stays what it was.
    """
    if all(is_tensor(value) for value in model.graph.output):
        return Tensors(model)
    making = _Making(model)
    for value in list(making.graph.output):
        if not is_tensor(value):
            making.replace(value)
    return Tensors(making.model, making.notes, making.classes) if making.notes else Tensors(model)


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    """Whether it is a tensor of numbers or truth values."""
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != TensorProto.STRING


def kind(value: onnx.ValueInfoProto) -> str:
    """What it is, in words: "a sequence of maps", "text"."""
    said = value.type
    if said.HasField("tensor_type"):
        return "text" if said.tensor_type.elem_type == TensorProto.STRING else "a tensor"
    if said.HasField("sequence_type"):
        inner = said.sequence_type.elem_type.WhichOneof("value")
        return f"a sequence of {'maps' if inner == 'map_type' else 'tensors'}"
    return {"map_type": "a map", "optional_type": "an optional value", "sparse_tensor_type": "a sparse tensor"}.get(
        said.WhichOneof("value") or "", "a value of no type"
    )


class _Making:
    """A graph while it is changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.notes = list[Note]()
        self.classes = dict[str, Sequence[str]]()
        self._makers = {name: node for node in self.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self._shown: dict[str, onnx.ValueInfoProto] | None = None

    def replace(self, value: onnx.ValueInfoProto) -> None:
        """Makes one output a tensor, or several, if that can be."""
        if value.type.HasField("tensor_type"):
            self._label(value)
            return
        node = self._maker(value.name)
        way = self._ways().get(node.op_type) if node is not None else None
        if node is not None and way is not None:
            way(value, node)

    def _ways(self) -> Mapping[str, Callable[[onnx.ValueInfoProto, onnx.NodeProto], None]]:
        return {"ZipMap": self._unzip, "SequenceConstruct": self._unpack, "SplitToSequence": self._uncut}

    def _unzip(self, value: onnx.ValueInfoProto, node: onnx.NodeProto) -> None:
        """The scores that a ZipMap makes a map of, for every row."""
        names = _strings(node, _ZIPPED[0]) or [str(number) for number in _ints(node, _ZIPPED[1])]
        if len(names) > _MOST_CLASSES:
            return
        known = self._shape(node.input[0]) or []
        shape = [known[0] if known else self._rows(), len(names) or None]  # A map for every row, of all names.
        self._give(value, [(value.name, node.input[0], TensorProto.FLOAT, shape)])
        if names:
            self.classes[value.name] = names
        self.notes.append(Note("surgery", f"output {value.name}, {kind(value)}, became the tensor of its scores"))

    def _unpack(self, value: onnx.ValueInfoProto, node: onnx.NodeProto) -> None:
        """The tensors that a sequence is made of, each an output."""
        made = list[tuple[str, str, int, Sequence[int | str | None]]]()
        used = {each.name for each in (*self.graph.input, *self.graph.output)} | set(self._makers) | set(self._weights)
        for number, name in enumerate(node.input):
            shape, dtype = self._shape(name), self._type(name)
            called = value.name if len(node.input) == 1 else f"{value.name}_{number}"
            if shape is None or dtype in (TensorProto.UNDEFINED, TensorProto.STRING) or called in used - {value.name}:
                return
            made.append((called, name, dtype, shape))
        if not made:
            return
        self._give(value, made)
        names = ", ".join(called for called, *_ in made)
        self.notes.append(Note("surgery", f"output {value.name}, {kind(value)}, became {names}"))

    def _uncut(self, value: onnx.ValueInfoProto, node: onnx.NodeProto) -> None:
        """The tensor that was cut into a sequence."""
        shape, dtype = self._shape(node.input[0]), self._type(node.input[0])
        if shape is None or dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
            return
        self._give(value, [(value.name, node.input[0], dtype, shape)])
        self.notes.append(
            Note("surgery", f"output {value.name}, {kind(value)}, became the tensor that was cut into it")
        )

    def _label(self, value: onnx.ValueInfoProto) -> None:
        """The places of labels that are text."""
        path = list[onnx.NodeProto]()
        node = self._makers.get(value.name)
        while node is not None and node.op_type in _SHAPING and node.domain in ("", "ai.onnx"):
            path.append(node)
            node = self._makers.get(node.input[0])
        if node is None or any(self._uses(name) > 1 for name in (value.name, *(each.input[0] for each in path))):
            return
        names = self._places(node)
        if names is None:
            return
        text = {name for each in [node, *path] for name in each.output}
        for place in reversed(range(len(self.graph.value_info))):
            if self.graph.value_info[place].name in text:
                del self.graph.value_info[place]
        value.type.tensor_type.elem_type = TensorProto.INT64
        self.classes[value.name] = names
        self.notes.append(Note("surgery", f"output {value.name}, text, became the places of its {len(names)} labels"))

    def _places(self, node: onnx.NodeProto) -> Sequence[str] | None:
        """Lets a node give places where it gave text, and which text they stand for; None where it cannot."""
        if node.domain == _ML and node.op_type in _LABELS:
            text, numbers = _LABELS[node.op_type]
            names = _strings(node, text)
            if not names or self._uses(node.output[0]) > 1:
                return None
            _drop(node, text, numbers)
            node.attribute.append(helper.make_attribute(numbers, range(len(names))))
            return names
        if node.domain == _ML and node.op_type == "LabelEncoder":
            return _encoded(node)
        if node.op_type in _LOOKUPS and (weight := self._weights.get(node.input[0])) is not None:
            if weight.data_type != TensorProto.STRING or self._uses(weight.name) > 1:
                return None
            held = numpy_helper.to_array(weight)
            places = numpy_helper.from_array(np.arange(held.size, dtype=np.int64).reshape(held.shape), weight.name)
            weight.CopyFrom(places)
            return [_text(each) for each in held.reshape(-1)]
        return None

    def _give(
        self, value: onnx.ValueInfoProto, made: Sequence[tuple[str, str, int, Sequence[int | str | None]]]
    ) -> None:
        """Puts tensors in the place of an output: by name what each is and comes from."""
        place = list(self.graph.output).index(value)
        dead = self._makers.get(value.name)
        if dead is not None:
            self.graph.node.remove(dead)
        values = [*self.graph.output]
        values[place : place + 1] = [helper.make_tensor_value_info(name, kind, dims) for name, _, kind, dims in made]
        fresh = [onnx.ValueInfoProto.FromString(each.SerializeToString()) for each in values]
        for name, source, _, _ in made:
            if name != source:
                self.graph.node.append(helper.make_node("Identity", [source], [name]))
        del self.graph.output[:]
        self.graph.output.extend(fresh)

    def _maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value of an output that nothing else reads, handed on or not."""
        node = self._makers.get(name)
        return node if node is not None and self._uses(name) == 1 else None

    def _uses(self, name: str) -> int:
        """How often a value is read, the graph's outputs included; what inner graphs read counts too."""
        inner = sum(_reads(node, name) for node in self.graph.node)
        return inner + sum(value.name == name for value in self.graph.output)

    def _type(self, name: str) -> int:
        shown, node = self._known().get(name), self._makers.get(name)
        if shown is None and node is not None and node.op_type in (*_ROWWISE, *_LABELS):
            return int(TensorProto.FLOAT)
        return shown.type.tensor_type.elem_type if shown is not None else TensorProto.UNDEFINED

    def _shape(self, name: str) -> Sequence[int | str | None] | None:
        """The axes of a value, as far as they are known; None where nothing is."""
        shown = self._known().get(name)
        if shown is None or not shown.type.tensor_type.HasField("shape"):
            node = self._makers.get(name)
            if node is not None and node.domain == _ML and node.op_type in _ROWWISE:
                return self._shape(node.input[0])
            return [self._rows(), None] if node is not None and node.op_type in _LABELS else None
        return [_size(size) for size in shown.type.tensor_type.shape.dim]

    def _known(self) -> Mapping[str, onnx.ValueInfoProto]:
        """What is known of the graph's values."""
        if self._shown is None:
            try:
                graph = onnx.shape_inference.infer_shapes(self.model).graph
            except Exception:  # What cannot be inferred is not known; the graph may be of any kind.
                graph = self.graph
            values = [*graph.input, *graph.output, *graph.value_info]
            self._shown = {value.name: value for value in values if value.type.HasField("tensor_type")}
        return self._shown

    def _rows(self) -> int | str | None:
        """The first axis of what callers send."""
        for value in self.graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name not in self._weights and dims:
                return _size(dims[0])
        return None


def _size(size: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if size.HasField("dim_value"):
        return int(size.dim_value)
    return None if size.dim_param.startswith(_INVENTED) else size.dim_param or None


def _encoded(node: onnx.NodeProto) -> Sequence[str] | None:
    """Lets an encoder of numbers to text give places instead."""
    values = _strings(node, "values_strings")
    if not values:
        return None
    other = next((_text(entry.s) for entry in node.attribute if entry.name == "default_string"), "_Unused")
    names = list(dict.fromkeys(values))
    places = [names.index(each) for each in values]
    if other not in names:
        names.append(other)
    _drop(node, "values_strings", "values_int64s", "default_string", "default_int64")
    node.attribute.append(helper.make_attribute("values_int64s", places))
    node.attribute.append(helper.make_attribute("default_int64", names.index(other)))
    return names


def _reads(node: onnx.NodeProto, name: str) -> int:
    count = list(node.input).count(name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            count += sum(_reads(inner, name) for inner in graph.node)
            count += sum(value.name == name for value in graph.output)
    return count


def _drop(node: onnx.NodeProto, *names: str) -> None:
    kept = [entry for entry in node.attribute if entry.name not in names]
    copies = [onnx.AttributeProto.FromString(entry.SerializeToString()) for entry in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def _strings(node: onnx.NodeProto, name: str) -> list[str]:
    return [_text(each) for entry in node.attribute if entry.name == name for each in entry.strings]


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return [each for entry in node.attribute if entry.name == name for each in entry.ints]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
