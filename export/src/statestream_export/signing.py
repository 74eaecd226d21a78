"""Signing: what a file says of itself, from a module's interface and what the caller tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateCheck, StateSpec, TensorSpec, Text
from statestream_export.domain import Domain
from statestream_export.errors import ExportError
from statestream_export.interface import Interface, Port, State

_CHECKS = {
    "finite": StateCheck.STATE_CHECK_FINITE,
    "nan": StateCheck.STATE_CHECK_NAN,
    "off": StateCheck.STATE_CHECK_OFF,
}


def signature(
    interface: Interface,
    states: Mapping[str, State],
    columns: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    text: Mapping[str, Text],
) -> Signature:
    """The signature of a module with this interface.

    Raises:
        ExportError: Columns, classes or text name what is not there.
    """
    names = {port.name for port in (*interface.inputs, *interface.outputs)}
    for what, given in (("columns", columns), ("classes", classes), ("text", text)):
        for name in given:
            if name not in names:
                raise ExportError(f"{what} names {name!r}; inputs and outputs are {', '.join(sorted(names))}")

    def spec(port: Port) -> TensorSpec:
        made = TensorSpec(name=port.name, dtype=port.dtype, shape=port.shape)
        if port.batch_axis is not None:
            made.batch_axis = port.batch_axis
        if port.time_axis is not None:
            made.time_axis = port.time_axis
        made.columns.extend(columns.get(port.name, ()))
        made.classes.extend(classes.get(port.name, ()))
        if port.name in text:
            made.text.CopyFrom(text[port.name])
        if any(port is each for each in interface.inputs):
            made.ranges.extend(port.domain.message(wide=port.wide, counts=port.counts))
        return made

    return Signature(
        format=signatures.FORMAT,
        inputs=[spec(port) for port in interface.inputs],
        outputs=[spec(port) for port in interface.outputs],
        states=[
            _state_spec(old, new, states[old.name], known.domain)
            for old, new, known in zip(interface.states, interface.new_states, interface.reached, strict=True)
        ],
    )


def _state_spec(old: Port, new: Port, state: State, known: Domain) -> StateSpec:
    made = StateSpec(
        input=old.name,
        output=new.name,
        dtype=old.dtype,
        shape=old.shape,
        check=_CHECKS[state.check],
        from_encoder=state.from_encoder,
    )
    row = old.example
    if old.batch_axis is not None:
        made.batch_axis = old.batch_axis
        row = row.select(old.batch_axis, 0)
    start = row.to(torch.float64).numpy().ravel()
    if np.any(start != 0):
        made.start.extend([start[0]] if np.all(start == start[0]) else start.tolist())
    # A state of fractions may go anywhere; one of whole numbers is an index, a count or a flag.
    moves = any(column.lowest < column.highest for column in known.columns)
    if known.given or (moves and all(column.whole for column in known.columns)):
        made.ranges.extend(known.message(wide=False))
    return made


def check(made: Signature) -> None:
    """Refuses a signature that no server would take.

    Raises:
        ExportError: It contradicts itself.
    """
    try:
        signatures.check(made)
    except signatures.SignatureError as error:
        advice = _FED if str(error).startswith("feedback") else ""
        raise ExportError(f"the signature contradicts itself: {error}{advice}") from error


_FED = (
    ". A forecast gives outputs back as the whole of every input: return from forward what the next step takes, or"
    " leave feedback out and step a fork (session.fork()) with what is known of the future"
)
