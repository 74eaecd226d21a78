"""Signatures of models: reading, writing and checking `statestream.v1.Signature`.

The message itself is the data structure; this module adds its JSON form (in ONNX metadata), what
makes one valid, and gathers the few questions that the server, the exporter and the client all ask of it.
It knows nothing of files, graphs or servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf import json_format

from statestream.contract.horizon import (
    Value,
    check_forecast,
    errors_needed,
    forecast_outputs,
    forecast_values,
    is_spread,
    known_places,
    steps_before,
    value_of,
)
from statestream.contract.observations import as_sent, check_observations, expectations, score_outputs
from statestream.contract.specs import (
    DTYPES,
    SignatureError,
    check_state,
    check_tensor,
    check_unique,
    numpy_dtype,
    row_shape,
    start_row,
    step_shape,
)
from statestream.v1.signature_pb2 import (
    Decoding,
    Elapsed,
    Feedback,
    Head,
    HeadKind,
    Missing,
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
    "Elapsed",
    "Feedback",
    "Head",
    "HeadKind",
    "Missing",
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
    "as_sent",
    "check",
    "decode_text",
    "dumps",
    "encode_text",
    "errors_needed",
    "expectations",
    "forecast_outputs",
    "forecast_values",
    "is_spread",
    "known_places",
    "loads",
    "numpy_dtype",
    "row_shape",
    "score_outputs",
    "start_row",
    "step_shape",
    "steps_before",
    "value_of",
]

METADATA_KEY: Final = "statestream.signature"
"""The key in ONNX `metadata_props`."""

FORMAT: Final = 1
"""The version of the signature format that this release reads and writes."""


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
            check_tensor(f"{kind}[{spec.name!r}]", spec)
    for state in signature.states:
        check_state(f"states[{state.input!r}]", state)
    check_unique("input", [s.name for s in signature.inputs] + [s.input for s in signature.states])
    check_unique("output", [s.name for s in signature.outputs] + [s.output for s in signature.states])
    check_forecast(signature)
    check_observations(signature)
    for window in signature.windows:
        _check_window(signature, window)
    if signature.HasField("decoding"):
        _check_decoding(signature)


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
    outputs = {spec.name: spec for spec in signature.outputs}
    if [spec.name for spec in signature.inputs] != [decoding.input]:
        raise SignatureError(f"decoding.input is {decoding.input!r}; expected the decoder's only input")
    if decoding.output not in outputs:
        raise SignatureError(f"decoding.output is {decoding.output!r}; no such output")
    if decoding.attention and (decoding.attention not in outputs or not step_shape(outputs[decoding.attention])):
        raise SignatureError(f"decoding.attention is {decoding.attention!r}; no output with an axis of places")
    size = step_shape(outputs[decoding.output])[-1] if step_shape(outputs[decoding.output]) else 0
    if decoding.text.vocabulary:
        if size >= 0 and size != len(decoding.text.vocabulary):
            raise SignatureError(
                f"decoding.text has {len(decoding.text.vocabulary)} symbols; output {decoding.output!r} scores {size}"
            )
        size = len(decoding.text.vocabulary)
    for name, token in (("start_token", decoding.start_token), ("end_token", decoding.end_token)):
        if not 0 <= token < size:
            raise SignatureError(f"decoding.{name} is {token}; there are {size} tokens")
    if not decoding.max_tokens:
        raise SignatureError("decoding.max_tokens is 0; expected 1 or more")
