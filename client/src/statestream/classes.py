"""Classes and their probabilities, as a model without memory tells them: by names, the likeliest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from statestream.arguments import came, check_text, check_whole
from statestream.contract.errors import BadTensor, Unsupported
from statestream.contract.signature import HeadKind, TensorSpec
from statestream.contract.tensors import Array
from statestream.layout import Input, Layout
from statestream.tables import read

Kind: TypeAlias = Literal["logits", "probabilities"]
"""What scores of classes are; logarithms of probabilities are logits, too."""


class Class(NamedTuple):
    """A class, and how probable a model takes it to be; NaN of a model that tells a label alone."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a model's answer is wanted."""

    top: int | None
    names: Sequence[str] | None
    scores: Kind | None


def wished(top: object, names: object, scores: object) -> Wish:
    """Reads what a caller wants.

    Raises:
        TypeError: One is of another type.
        ValueError: One has a value that it cannot have.
    """
    if names is not None:
        if isinstance(names, str | bytes) or not isinstance(names, Sequence):
            raise TypeError(f"names is {came(names)}; expected a name for each class, as in ['cat', 'dog']")
        names = [check_text("an entry of names", name) for name in names]
    if scores not in (None, "logits", "probabilities"):
        kind = ValueError if isinstance(scores, str) else TypeError
        raise kind(f"scores is {came(scores)}; expected 'logits', 'probabilities' or None")
    return Wish(None if top is None else check_whole("top", top, hint=", or None for all"), names, scores)


def image(layout: Layout, x: Input) -> tuple[Input, bool]:
    """What a model is sent of one input or of many [B, …], and whether it is one.

    One comes without the axis of a batch, and without axes of length 1 before its own, as a grey picture [H, W] does.
    """
    if len(layout.inputs) != 1 or isinstance(x, Mapping):
        return x, False
    spec = layout.inputs[0]
    array, shape = read(layout.wanted[0], x), tuple(spec.shape)
    missing = len(shape) - array.ndim
    if missing > 0 and spec.HasField("batch_axis") and spec.batch_axis == 0 and set(shape[1:missing]) <= {1}:
        return array.reshape((1,) * missing + array.shape), True
    return array, False


def classified(layout: Layout, wish: Wish, found: Any, *, alone: bool) -> Any:
    """The classes of one input, or a list of them for each of many.

    Raises:
        Unsupported: The model tells no classes.
        BadTensor: There are not as many names as classes.
    """
    spec = _output(layout)
    array = np.asarray(found[spec.name] if isinstance(found, Mapping) else found)
    names = wish.names if wish.names is not None else list(spec.classes)
    if array.dtype.kind in "iub":
        rows = [[Class(_name(names, int(label)), float("nan"))] for label in array.reshape(-1)]
        return rows[0] if alone else rows
    array = array.reshape(-1, array.shape[-1]).astype(np.float64)
    if names and len(names) != array.shape[1]:
        raise BadTensor(
            f"output {spec.name!r} of model {layout.model.name!r} has scores of {array.shape[1]} classes; expected as"
            f" many names, {len(names)} came",
            metadata={"field": spec.name},
        )
    told = [_ranked(row, names, wish.top) for row in _probabilities(array, wish.scores or _kind(layout, spec))]
    return told[0] if alone else told


def _output(layout: Layout) -> TensorSpec:
    outputs = list(layout.signature.outputs)
    heads = {
        output
        for head in layout.signature.heads
        if head.kind == HeadKind.HEAD_KIND_CATEGORICAL
        for output in head.parameters.values()
    }
    floats = [spec for spec in outputs if spec.dtype.startswith("float") and len(spec.shape) > 1]
    named = [spec for spec in outputs if spec.classes or spec.name in heads]
    # Scores tell more than labels; an output alone is taken for scores whatever it says.
    for some in ([spec for spec in named if spec in floats], named, floats if len(outputs) == 1 else []):
        if len(some) == 1:
            return some[0]
    raise Unsupported(
        f"model {layout.model.name!r} does not say which of its outputs"
        f" ({', '.join(spec.name for spec in outputs)}) are scores of classes; export it with"
        " classes={output: names}, or use predict"
    )


def _kind(layout: Layout, spec: TensorSpec) -> Kind | None:
    """What the signature says of scores."""
    for head in layout.signature.heads:
        for parameter, output in head.parameters.items():
            if output == spec.name and head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
                return "probabilities" if parameter == "probs" else "logits"
    return None


def _probabilities(scores: Array, kind: Kind | None) -> Array:
    """[N, K]. Where nobody says what scores are, those that are probabilities in every row are left as they are."""
    if kind is None:
        sums = bool((scores >= 0).all()) and bool(np.allclose(scores.sum(axis=1), 1, atol=1e-3))
        kind = "probabilities" if sums else "logits"
    if kind == "probabilities":
        return scores
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def _ranked(row: Array, names: Sequence[str], top: int | None) -> list[Class]:
    order = np.argsort(-row, kind="stable")[:top]
    return [Class(_name(names, place), float(row[place])) for place in order.tolist()]


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)
