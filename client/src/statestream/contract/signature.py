"""Signatures of models: reading, writing and checking `statestream.v1.Signature`.

The message itself is the data structure; this module adds its JSON form (in ONNX metadata), what
makes one valid, and the few questions that the server, the exporter and the client all ask of it.
It knows nothing of files, graphs or servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from google.protobuf import json_format

from statestream.v1.signature_pb2 import (
    Decoding,
    Feedback,
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
    "Quantization",
    "Signature",
    "SignatureError",
    "StateCheck",
    "StateSpec",
    "TensorSpec",
    "Text",
    "ValueRange",
    "Window",
    "WindowStart",
    "check",
    "decode_text",
    "dumps",
    "encode_text",
    "loads",
    "numpy_dtype",
    "row_shape",
    "start_row",
    "step_shape",
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
    _check_feedback(signature)
    for window in signature.windows:
        _check_window(signature, window)
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
    outputs = {spec.name: spec for spec in signature.outputs}
    for feedback in signature.feedback:
        if feedback.output not in outputs or feedback.input not in inputs:
            raise SignatureError(f"feedback {feedback.output!r} → {feedback.input!r}: no such output or input")
        source, target = outputs[feedback.output], inputs[feedback.input]
        if step_shape(source) != step_shape(target) or source.dtype != target.dtype:
            raise SignatureError(
                f"feedback {feedback.output!r} → {feedback.input!r}: a step is {source.dtype}{list(step_shape(source))}"
                f" and {target.dtype}{list(step_shape(target))}; expected the same"
            )
    fed = {feedback.input for feedback in signature.feedback}
    if fed and fed != set(inputs):
        raise SignatureError(f"feedback feeds {sorted(fed)}; expected every input: {sorted(inputs)}")


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
