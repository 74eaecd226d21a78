"""Observations as a signature tells of them: what is missing, when steps came, how likely they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from statestream.contract.horizon import Value, known_places, value_of
from statestream.contract.specs import SignatureError, batch_axis_of, numpy_dtype, step_shape, time_axis_of
from statestream.v1.signature_pb2 import HeadKind, Missing, Signature, TensorSpec

SCORE: Final = "score:"
"""What the names of all scores begin with."""
LOG_LIKELIHOOD: Final = SCORE + "log_likelihood"
"""The logarithm of the density, or of the probability, of what arrived."""
P_VALUE: Final = SCORE + "p_value"
"""The share of the session's past that was as unlikely."""
Z: Final = SCORE + "z:"
"""Before the name of an output: how far what arrived was from it."""
SCORE_PAST: Final = 255
"""How many scores a session keeps where its signature does not say."""
POLICIES: Final[Mapping[str, Missing]] = {
    "refuse": Missing.MISSING_REFUSE,
    "hold": Missing.MISSING_HOLD,
    "predict": Missing.MISSING_PREDICT,
}
"""What becomes of a missing value, by the words for it."""
UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "D": 86_400.0, "W": 604_800.0,
}  # fmt: skip
"""Units of time by NumPy's words for them, "min" for a minute: how many seconds they have."""
MOST_PAST: Final = 65_535
"""And how many at most."""
MOST_KEPT: Final = 1 << 18
"""Numbers that a session keeps of its past scores, over all that is scored apart: of what is wide fewer are kept."""
LEAST_PAST: Final = 8
"""Scores without which a median says nothing."""


class Expected(NamedTuple):
    """What a model expects of an input's next step.

    Attributes:
        value: The output, or the head, that is fed back.
        input: The input.
        places: Where along the last axis of the input's step it is; none for the whole step.
        likely: Whether it is a distribution; else it is a value, from which what arrives is so far.
    """

    value: Value
    input: str
    places: tuple[int, ...]
    likely: bool


def expectations(signature: Signature) -> list[Expected]:
    """What a valid signature expects of next inputs, as far as they are numbers that can be compared."""
    found = []
    for feedback in signature.feedback:
        value = value_of(signature, feedback.output)
        likely = value.head is not None and value.head.kind != HeadKind.HEAD_KIND_QUANTILES
        if likely or value.dtype.kind == "f":
            found.append(Expected(value, feedback.input, tuple(feedback.places), likely))
    return found


def score_memory(signature: Signature) -> tuple[int, int]:
    """How many series of scores a session has, and how many it keeps of each; 0 of both where nothing is scored."""
    expected = expectations(signature) if signature.states and not signature.HasField("decoding") else []
    series = sum(math.prod(each.value.shape) for each in expected if not each.likely)
    series += any(each.likely for each in expected)
    kept = min(signature.score_past or SCORE_PAST, MOST_KEPT // max(1, series))
    return (series, kept) if series and kept >= min(LEAST_PAST, signature.score_past or SCORE_PAST) else (0, 0)


def score_outputs(signature: Signature) -> list[TensorSpec]:
    """The scores of a step, as further outputs of [S, ...one step] float32; none where the model expects nothing.

    Nor where what it expects is so wide that a session could not keep what scores are compared with.
    """
    expected = expectations(signature) if score_memory(signature)[0] else []
    specs = []
    if any(each.likely for each in expected):
        specs += [_spec(LOG_LIKELIHOOD, ()), _spec(P_VALUE, ())]
    return specs + [_spec(Z + each.value.name, each.value.shape) for each in expected if not each.likely]


def _spec(name: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(-1, -1, *shape), batch_axis=0, time_axis=1)


def is_filled(spec: TensorSpec) -> bool:
    """Whether the server fills what is missing of an input."""
    return spec.missing in (Missing.MISSING_HOLD, Missing.MISSING_PREDICT)


def as_sent(signature: Signature) -> Signature:
    """The signature as callers see it: in place of times between steps they send times, one int64 a step."""
    if not any(spec.HasField("elapsed") for spec in signature.inputs):
        return signature
    sent = Signature()
    sent.CopyFrom(signature)
    for spec in sent.inputs:
        if spec.HasField("elapsed"):
            timed = spec.HasField("time_axis")
            for field in ("dtype", "shape", "columns", "ranges", "batch_axis", "time_axis"):
                spec.ClearField(field)
            spec.dtype, spec.batch_axis = "int64", 0
            spec.shape.extend([-1, -1] if timed else [-1])
            if timed:
                spec.time_axis = 1
    return sent


def check_observations(signature: Signature) -> None:
    """Checks what a signature says of missing values, times and scores; all else of it is right.

    Raises:
        SignatureError: Names the field, what it is, and what it must be.
    """
    if signature.score_past > MOST_PAST:
        raise SignatureError(f"score_past is {signature.score_past}; expected {MOST_PAST} at most")
    for spec in signature.inputs:
        where = f"inputs[{spec.name!r}]"
        floats = numpy_dtype(spec.dtype).kind == "f"
        if spec.missing:
            if spec.missing not in Missing.values():
                raise SignatureError(f"{where}.missing is {spec.missing}; expected 0 to {max(Missing.values())}")
            if not floats or spec.HasField("elapsed"):
                raise SignatureError(f"{where}.missing is set, and it holds {spec.dtype}; expected an input of floats")
            if not signature.states:
                raise SignatureError(f"{where}.missing is set, and the model has no memory; fill gaps before the call")
            fed = {each.input for each in expectations(signature)}
            if spec.missing == Missing.MISSING_PREDICT and spec.name not in fed:
                raise SignatureError(
                    f"{where}.missing is MISSING_PREDICT, and nothing is fed back to it; say in feedback what stands in"
                )
        if spec.HasField("elapsed"):
            _check_elapsed(signature, spec, where, floats)


def _check_elapsed(signature: Signature, spec: TensorSpec, where: str, floats: bool) -> None:
    seconds, first = spec.elapsed.seconds, spec.elapsed.first
    if not (math.isfinite(seconds) and seconds > 0 and math.isfinite(first) and first >= 0):
        raise SignatureError(
            f"{where}.elapsed has {seconds:g} seconds and first {first:g}; expected a unit above 0, and 0 or more"
            " for the first step"
        )
    shape = step_shape(spec)
    if not signature.states or batch_axis_of(spec) is None:
        raise SignatureError(f"{where}.elapsed is set; expected an input with a batch axis, of a model with memory")
    sent = spec.dtype == "int64" and spec.shape == ([-1, -1] if time_axis_of(spec) is not None else [-1])
    if not sent and not (floats and all(size == 1 for size in shape)):
        raise SignatureError(
            f"{where}.elapsed is set, and a step of it is {spec.dtype}{list(shape)}; expected one number, of floats"
        )
    if known_places(signature, spec.name) is not None:
        raise SignatureError(f"{where}.elapsed is set, and something is fed back to it; time is known beforehand")
