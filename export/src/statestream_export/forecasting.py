"""What a signature says of forecasts: feedback, heads, outputs of several steps, inputs known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from statestream.contract.signature import Feedback, Head, Signature, TensorSpec
from statestream_export.errors import ExportError

Target: TypeAlias = "str | tuple[str, Sequence[int | str]]"


def describe(
    signature: Signature,
    feedback: Mapping[str, Target],
    head: Head | Mapping[str, Head],
    horizon_axis: Mapping[str, int],
    ahead: Sequence[str],
    lookback: int,
) -> None:
    """Writes it into a signature; `export` says what each is.

    Raises:
        ExportError: A name is none of the module's; says which there are.
    """
    outputs = {spec.name: spec for spec in signature.outputs}
    inputs = {spec.name: spec for spec in signature.inputs}
    heads = {"y": head} if isinstance(head, Head) else dict(head)
    for name, one in heads.items():
        named = Head()
        named.CopyFrom(one)
        named.name = name
        signature.heads.append(named)
        for output in one.parameters.values():
            _known("head", f"{name!r} takes {output!r}", output, "output", outputs)
    for output, target in feedback.items():
        name, places = (target, ()) if isinstance(target, str) else target
        said = f"{{{output!r}: {name!r}}}"
        _known("feedback", said, output, "output", {**outputs, **heads})
        _known("feedback", said, name, "input", inputs)
        signature.feedback.append(
            Feedback(output=output, input=name, places=[_place(inputs[name], place) for place in places])
        )
    for name, axis in horizon_axis.items():
        _known("horizon_axis", f"{name!r}", name, "output", outputs)
        spec = outputs[name]
        spec.horizon_axis = axis + len(spec.shape) if axis < 0 else axis
    for name in ahead:
        _known("ahead", f"{name!r}", name, "input", inputs)
        inputs[name].ahead = True
    signature.lookback = lookback


def whole(feedback: Mapping[str, Target], head: Head | Mapping[str, Head]) -> dict[str, str]:
    """What of a feedback is of an output as it is, for an input as it is: both have one scale."""
    heads = {"y"} if isinstance(head, Head) else set(head)
    return {name: each for name, each in feedback.items() if isinstance(each, str) and name not in heads}


def _known(option: str, said: str, name: str, what: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise ExportError(
            f"{option} is {said}, and {name!r} is no {what}: {what}s are {', '.join(known)}."
            " Outputs are named with outputs=[…]"
        )


def _place(spec: TensorSpec, place: int | str) -> int:
    if isinstance(place, int):
        return place
    if place not in spec.columns:
        known = ", ".join(spec.columns) or "not named"
        raise ExportError(f"feedback names column {place!r} of {spec.name!r}, whose columns are {known}")
    return list(spec.columns).index(place)
