"""Signatures of models: reading, writing and checking `statestream.v1.Signature`.

The message itself is the data structure; this module adds its JSON form (in ONNX metadata), what
makes one valid, and the few questions that the server, the exporter and the client all ask of it.
It knows nothing of files, graphs or servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from google.protobuf import json_format

from statestream.v1.signature_pb2 import (
    Decoding,
    Feedback,
    Head,
    HeadKind,
    Quantization,
    Signature,
    StateCheck,
    StateSpec,
    TensorSpec,
    Text,
    ValueRange,
    Window,
    WindowStart,
)

__all__ = [
    "DTYPES",
    "FORMAT",
    "METADATA_KEY",
    "Decoding",
    "Feedback",
    "Head",
    "HeadKind",
    "Quantization",
    "Signature",
    "SignatureError",
    "StateCheck",
    "StateSpec",
    "TensorSpec",
    "Text",
    "Value",
    "ValueRange",
    "Window",
    "WindowStart",
    "check",
    "decode_text",
    "dumps",
    "encode_text",
    "forecast_outputs",
    "forecast_values",
    "known_places",
    "loads",
    "numpy_dtype",
    "row_shape",
    "start_row",
    "step_shape",
    "steps_before",
    "value_of",
]

METADATA_KEY: Final = "statestream.signature"
"""The key in ONNX `metadata_props`."""

FORMAT: Final = 1
"""The version of the signature format that this release reads and writes."""

DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
}
"""The element types that travel, by their NumPy names: little-endian."""


PARAMETERS: Final[Mapping[int, Sequence[frozenset[str]]]] = {
    HeadKind.HEAD_KIND_GAUSSIAN: [frozenset({"loc", "scale"})],
    HeadKind.HEAD_KIND_STUDENT_T: [frozenset({"df", "loc", "scale"})],
    HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL: [frozenset({"total_count", how}) for how in ("probs", "logits", "mean")],
    HeadKind.HEAD_KIND_CATEGORICAL: [frozenset({"logits"}), frozenset({"probs"})],
    HeadKind.HEAD_KIND_QUANTILES: [frozenset({"quantiles"})],
}
"""The parameters of every distribution, by torch's names; of some there are several ways to say it."""

_ONE_AXIS_MORE: Final = (HeadKind.HEAD_KIND_CATEGORICAL, HeadKind.HEAD_KIND_QUANTILES)


class SignatureError(ValueError):
    """The signature contradicts itself or cannot be read; the message says where."""


def loads(text: str) -> Signature:
    """Reads a signature from JSON and checks it.

    Raises:
        SignatureError: The JSON is malformed, has an unknown field, or fails `check`.
    """
    try:
        signature = json_format.Parse(text, Signature())
    except json_format.ParseError as error:
        raise SignatureError(f"{METADATA_KEY} is not a signature: {error}") from error
    check(signature)
    return signature


def dumps(signature: Signature) -> str:
    """Writes a signature as JSON, with the field names of the proto file."""
    return json_format.MessageToJson(signature, preserving_proto_field_name=True, indent=None)


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The little-endian NumPy dtype of a wire name.

    Raises:
        SignatureError: The name is not one of `DTYPES`.
    """
    found = DTYPES.get(name)
    if found is None:
        raise SignatureError(f"dtype {name!r} does not exist; expected one of {', '.join(sorted(DTYPES))}")
    return found


def step_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one step of one session: `spec.shape` without batch and time axes (-1 where free)."""
    taken = {axis for axis in (_batch_axis(spec), _time_axis(spec)) if axis is not None}
    return tuple(size for axis, size in enumerate(spec.shape) if axis not in taken)


def row_shape(spec: StateSpec) -> tuple[int, ...]:
    """The shape of one session's state: `spec.shape` without the batch axis."""
    return tuple(size for axis, size in enumerate(spec.shape) if axis != _batch_axis(spec))


def start_row(spec: StateSpec) -> np.ndarray:
    """One session's state at position 0, shape `row_shape(spec)`, dtype `spec.dtype`."""
    shape, dtype = row_shape(spec), numpy_dtype(spec.dtype)
    if len(spec.start) <= 1:
        return np.full(shape, spec.start[0] if spec.start else 0, dtype)
    return np.asarray(spec.start, np.float64).astype(dtype).reshape(shape)


class Value(NamedTuple):
    """A value that a forecast tells.

    Attributes:
        name: The output, or the head.
        head: The head; None of an output.
        outputs: The outputs that it is made of: itself, or the head's parameters in the order of their names.
        dtype: The element type of one value.
        shape: The shape of one step, without the axis of several steps.
        steps: How many steps one run gives; 0 where its outputs have no axis for it, which is one.
        axis: Where in the shape of one step the outputs have that axis.
    """

    name: str
    head: Head | None
    outputs: tuple[str, ...]
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    steps: int
    axis: int


def value_of(signature: Signature, name: str) -> Value:
    """What a head or an output of a valid signature tells, by name."""
    specs = {spec.name: spec for spec in signature.outputs}
    head = next((head for head in signature.heads if head.name == name), None)
    outputs = (name,) if head is None else tuple(head.parameters[each] for each in sorted(head.parameters))
    spec = specs[outputs[0]]
    shape, dtype, steps, axis = list(step_shape(spec)), numpy_dtype(spec.dtype), 0, 0
    if spec.HasField("horizon_axis"):
        axis = spec.horizon_axis - sum(
            one < spec.horizon_axis for one in (_batch_axis(spec), _time_axis(spec)) if one is not None
        )
        steps = shape.pop(axis)
    if head is not None and head.kind in _ONE_AXIS_MORE:
        del shape[-1:]
    if head is not None and head.kind == HeadKind.HEAD_KIND_CATEGORICAL and not head.values:
        dtype = numpy_dtype("int64")
    return Value(name, head, outputs, dtype, tuple(shape), steps, axis)


def forecast_values(signature: Signature) -> list[Value]:
    """What a forecast with this model tells: what is fed back, the other heads, the other outputs of several steps."""
    names = [feedback.output for feedback in signature.feedback] + [head.name for head in signature.heads]
    taken = {output for head in signature.heads for output in head.parameters.values()}
    names += [spec.name for spec in signature.outputs if spec.HasField("horizon_axis") and spec.name not in taken]
    return [value_of(signature, name) for name in dict.fromkeys(names)]


def steps_before(signature: Signature) -> int:
    """How many steps a forecast needs before it, 1 at least."""
    return max(1, signature.lookback, *[window.steps for window in signature.windows])


def forecast_outputs(signature: Signature) -> list[str]:
    """The outputs whose last step a forecast starts from, each once."""
    return list(dict.fromkeys(name for value in forecast_values(signature) for name in value.outputs))


def known_places(signature: Signature, name: str) -> list[int] | None:
    """What of an input nothing is fed to: places along the last axis of its step, or None for the whole step."""
    spec = next(spec for spec in signature.inputs if spec.name == name)
    fed = [feedback for feedback in signature.feedback if feedback.input == name]
    if not fed:
        return None
    places = {place for feedback in fed for place in feedback.places}
    if not all(feedback.places for feedback in fed):
        return []
    return [place for place in range(step_shape(spec)[-1]) if place not in places]


def encode_text(text: Text, value: str) -> list[int]:
    """Token numbers of a text.

    Raises:
        ValueError: A symbol is not in the vocabulary and the vocabulary has no stand-in for it.
    """
    numbers = {symbol: number for number, symbol in enumerate(text.vocabulary)}
    symbols = value.split(text.separator) if text.separator else list(value)
    unknown = [symbol for symbol in symbols if symbol not in numbers]
    if unknown and not text.unknown:
        raise ValueError(f"symbol {unknown[0]!r} is not in the vocabulary of {len(numbers)} symbols")
    return [numbers[symbol if symbol in numbers else text.unknown] for symbol in symbols]


def decode_text(text: Text, tokens: Sequence[int]) -> str:
    """The text of token numbers."""
    return text.separator.join(text.vocabulary[token] for token in tokens)


def check(signature: Signature) -> None:
    """Checks that a signature does not contradict itself.

    Raises:
        SignatureError: Names the field, what it is, and what it must be.
    """
    if signature.format != FORMAT:
        raise SignatureError(f"format is {signature.format}; this release reads {FORMAT}")
    if not signature.inputs or not signature.outputs:
        raise SignatureError("inputs and outputs must have one entry at least")
    for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for spec in specs:
            _check_tensor(f"{kind}[{spec.name!r}]", spec)
    for state in signature.states:
        _check_state(f"states[{state.input!r}]", state)
    _check_unique("input", [s.name for s in signature.inputs] + [s.input for s in signature.states])
    _check_unique("output", [s.name for s in signature.outputs] + [s.output for s in signature.states])
    _check_heads(signature)
    _check_feedback(signature)
    for window in signature.windows:
        _check_window(signature, window)
    _check_horizons(signature)
    if signature.HasField("decoding"):
        _check_decoding(signature)


def _batch_axis(spec: TensorSpec | StateSpec) -> int | None:
    return spec.batch_axis if spec.HasField("batch_axis") else None


def _time_axis(spec: TensorSpec) -> int | None:
    return spec.time_axis if spec.HasField("time_axis") else None


def _check_axis(where: str, axis: int | None, rank: int) -> None:
    if axis is not None and not 0 <= axis < rank:
        raise SignatureError(f"{where} is {axis}; the tensor has {rank} axes, expected 0 to {rank - 1}")


def _check_tensor(where: str, spec: TensorSpec) -> None:
    if not spec.name:
        raise SignatureError(f"{where}.name is empty")
    numpy_dtype(spec.dtype)
    batch, time = _batch_axis(spec), _time_axis(spec)
    _check_axis(f"{where}.batch_axis", batch, len(spec.shape))
    _check_axis(f"{where}.time_axis", time, len(spec.shape))
    if batch is not None and batch == time:
        raise SignatureError(f"{where}: batch_axis and time_axis are both {batch}")
    if spec.columns and (not step_shape(spec) or step_shape(spec)[-1] not in (-1, len(spec.columns))):
        raise SignatureError(f"{where}.columns has {len(spec.columns)} names for a step of shape {step_shape(spec)}")
    _check_ranges(where, spec, step_shape(spec))
    if any(known.counts_steps for known in spec.ranges) and (time is not None or len(spec.ranges) > 1):
        raise SignatureError(
            f"{where}.ranges count steps; only one range of an input without a time axis may"
            f" ({len(spec.ranges)} ranges, time_axis {time})"
        )


def _check_ranges(where: str, spec: TensorSpec | StateSpec, step: tuple[int, ...]) -> None:
    if len(spec.ranges) > 1 and (not step or step[-1] != len(spec.ranges)):
        raise SignatureError(
            f"{where}.ranges has {len(spec.ranges)} entries for a step of shape {step}; expected none, one, or one for"
            " every place along its last axis"
        )
    dtype = numpy_dtype(spec.dtype)
    for number, known in enumerate(spec.ranges):
        place = f"{where}.ranges[{number}]"
        if not known.lowest <= known.highest:
            raise SignatureError(f"{place} goes from {known.lowest} to {known.highest}; expected lowest ≤ highest")
        bounds = (known.lowest, known.highest)
        if (known.whole or known.counts_steps or dtype.kind != "f") and any(
            np.isfinite(bound) and bound != np.floor(bound) for bound in bounds
        ):
            raise SignatureError(f"{place} goes from {bounds[0]} to {bounds[1]}; expected whole numbers")
        if dtype.kind != "f":
            least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype.name).min, np.iinfo(dtype.name).max)
            # A double holds the limits of 64 bits only rounded.
            if not float(least) <= known.lowest <= known.highest <= float(most):
                raise SignatureError(f"{place} goes from {bounds[0]} to {bounds[1]}; {spec.dtype} does not hold that")


def _check_state(where: str, spec: StateSpec) -> None:
    if not spec.input or not spec.output:
        raise SignatureError(f"{where}: input and output must be named; they are {spec.input!r}, {spec.output!r}")
    dtype = numpy_dtype(spec.dtype)
    _check_axis(f"{where}.batch_axis", _batch_axis(spec), len(spec.shape))
    shape = row_shape(spec)
    if any(size < 0 for size in shape):
        raise SignatureError(f"{where}.shape is {list(spec.shape)}; only the batch axis may be free (-1)")
    if len(spec.start) > 1 and len(spec.start) != int(np.prod(shape)):
        raise SignatureError(
            f"{where}.start has {len(spec.start)} numbers; expected none, one or {int(np.prod(shape))}"
        )
    if dtype.kind != "f" and any(value != int(value) for value in spec.start):
        raise SignatureError(f"{where}.start has fractions; dtype is {spec.dtype}")
    if spec.check not in StateCheck.values():
        raise SignatureError(f"{where}.check is {spec.check}; expected 0 to {max(StateCheck.values())}")
    _check_ranges(where, spec, shape)
    if any(known.counts_steps for known in spec.ranges):
        raise SignatureError(f"{where}.ranges count steps; only inputs may")
    if spec.constant and spec.from_encoder:
        raise SignatureError(f"{where} is constant and starts from encoder output {spec.from_encoder!r}; expected one")


def _check_unique(kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SignatureError(f"{kind} {name!r} is listed {names.count(name)} times; expected once")


def _check_feedback(signature: Signature) -> None:
    inputs = {spec.name: spec for spec in signature.inputs}
    known = {spec.name for spec in signature.outputs} | {head.name for head in signature.heads}
    places: dict[str, list[int]] = {}
    for feedback in signature.feedback:
        where = f"feedback {feedback.output!r} → {feedback.input!r}"
        if feedback.output not in known or feedback.input not in inputs:
            raise SignatureError(f"{where}: no such output or input")
        value, target = value_of(signature, feedback.output), inputs[feedback.input]
        shape = step_shape(target)
        if feedback.places:
            if not shape or not all(place < shape[-1] for place in feedback.places):
                raise SignatureError(f"{where}: places are {list(feedback.places)}; a step has shape {list(shape)}")
            shape = (*shape[:-1], len(feedback.places))
        if value.shape != shape or (value.head is None and value.dtype != numpy_dtype(target.dtype)):
            raise SignatureError(
                f"{where}: a step is {value.dtype}{list(value.shape)} and {target.dtype}{list(shape)}; expected the"
                " same"
            )
        if (
            value.head is not None
            and value.head.kind == HeadKind.HEAD_KIND_QUANTILES
            and 0.5 not in value.head.quantiles
        ):
            raise SignatureError(f"{where}: the head has no quantile 0.5, which is what is fed back")
        taken = places.setdefault(feedback.input, [])
        taken += feedback.places or [-1]
        if len(set(taken)) < len(taken) or (-1 in taken and len(taken) > 1):
            raise SignatureError(f"{where}: something else is fed to the same place; expected each place once")
    for spec in signature.inputs:
        if spec.ahead and known_places(signature, spec.name) == []:
            raise SignatureError(f"inputs[{spec.name!r}].ahead is set, and the input is fed back; expected a known one")


def _check_horizons(signature: Signature) -> None:
    for spec in signature.outputs:
        if not spec.HasField("horizon_axis"):
            continue
        _check_axis(f"outputs[{spec.name!r}].horizon_axis", spec.horizon_axis, len(spec.shape))
        if spec.horizon_axis in (_batch_axis(spec), _time_axis(spec)) or spec.shape[spec.horizon_axis] < 1:
            raise SignatureError(
                f"outputs[{spec.name!r}].horizon_axis is {spec.horizon_axis} of shape {list(spec.shape)}; expected an"
                " axis of its own, of fixed length"
            )
    for value in forecast_values(signature):
        if any(size < 0 for size in value.shape):
            raise SignatureError(
                f"{value.name!r} is forecast, and a step has shape {list(value.shape)}; expected lengths that are all"
                " fixed"
            )
    steps = {value.steps or 1 for value in forecast_values(signature)}
    if len(steps) > 1:
        raise SignatureError(f"forecasts come in {sorted(steps)} steps a run; expected one number for all outputs")


def _check_heads(signature: Signature) -> None:
    outputs = {spec.name: spec for spec in signature.outputs}
    _check_unique("head", [head.name for head in signature.heads] + list(outputs))
    for head in signature.heads:
        where, ways = f"heads[{head.name!r}]", PARAMETERS.get(head.kind)
        if not head.name or ways is None:
            raise SignatureError(f"{where}: name and kind must be set; kind is {head.kind}")
        if frozenset(head.parameters) not in ways:
            expected = " or ".join(", ".join(sorted(way)) for way in ways)
            raise SignatureError(f"{where} has parameters {', '.join(sorted(head.parameters))}; expected {expected}")
        gone = [name for name in head.parameters.values() if name not in outputs]
        if gone:
            raise SignatureError(f"{where} takes output {gone[0]!r}; the outputs are {', '.join(outputs)}")
        specs = [outputs[name] for name in head.parameters.values()]
        shapes = {(step_shape(spec), spec.horizon_axis if spec.HasField("horizon_axis") else -1) for spec in specs}
        if len(shapes) > 1 or any(numpy_dtype(spec.dtype).kind != "f" for spec in specs):
            raise SignatureError(
                f"{where}: its outputs differ in shape, or are no floats; expected floats of one shape"
            )
        ((shape, _),) = shapes
        last = shape[-1] if shape else 0
        if head.kind == HeadKind.HEAD_KIND_QUANTILES:
            levels = list(head.quantiles)
            if levels != sorted(set(levels)) or not levels or not 0 < levels[0] <= levels[-1] < 1:
                raise SignatureError(f"{where}.quantiles are {levels}; expected ascending numbers between 0 and 1")
            if last != len(levels):
                raise SignatureError(
                    f"{where}.quantiles are {len(levels)}; a step of its output has shape {list(shape)}"
                )
        elif head.quantiles:
            raise SignatureError(f"{where}.quantiles are set; only a head of quantiles has some")
        if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
            if last < 1 or (head.values and len(head.values) != last):
                raise SignatureError(
                    f"{where}.values are {len(head.values)}; a step of its output has shape {list(shape)}, a class each"
                    " along the last axis"
                )
        elif head.values:
            raise SignatureError(f"{where}.values are set; only a head of classes has some")


def _check_window(signature: Signature, window: Window) -> None:
    where, states = f"windows[{window.input!r}]", {state.input for state in signature.states}
    if window.input not in {spec.name for spec in signature.inputs}:
        raise SignatureError(f"{where}: no such input")
    if window.steps < 2:
        raise SignatureError(f"{where}.steps is {window.steps}; expected 2 or more")
    if window.before not in WindowStart.values():
        raise SignatureError(f"{where}.before is {window.before}; expected 0 to {max(WindowStart.values())}")
    counted = window.before in (WindowStart.WINDOW_START_PAD, WindowStart.WINDOW_START_HOLD)
    for field, name in (("state", window.state), ("count", window.count)):
        if (field == "state" or counted) and name not in states:
            raise SignatureError(f"{where}.{field} is {name!r}; expected one of the states {sorted(states)}")
    (kept,) = (state for state in signature.states if state.input == window.state)
    if not window.axis < len(kept.shape) or kept.shape[window.axis] != window.steps - 1:
        raise SignatureError(
            f"{where}.axis is {window.axis}; expected that of {window.steps - 1} steps in {list(kept.shape)}"
        )
    if window.full and window.full not in {spec.name for spec in signature.outputs}:
        raise SignatureError(f"{where}.full is {window.full!r}; no such output")


def _check_decoding(signature: Signature) -> None:
    decoding = signature.decoding
    size = len(decoding.text.vocabulary)
    if [spec.name for spec in signature.inputs] != [decoding.input]:
        raise SignatureError(f"decoding.input is {decoding.input!r}; expected the decoder's only input")
    if decoding.output not in {spec.name for spec in signature.outputs}:
        raise SignatureError(f"decoding.output is {decoding.output!r}; no such output")
    for name, token in (("start_token", decoding.start_token), ("end_token", decoding.end_token)):
        if not 0 <= token < size:
            raise SignatureError(f"decoding.{name} is {token}; the vocabulary has {size} symbols")
    if not decoding.max_tokens:
        raise SignatureError("decoding.max_tokens is 0; expected 1 or more")
