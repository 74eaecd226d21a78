"""Start values of sessions, as callers give them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.signature import Signature, numpy_dtype
from statestream.contract.tensors import Array
from statestream.layout import Input, shown
from statestream.tables import read
from statestream.wanted import Wanted, listed


def initial_states(signature: Signature, states: Mapping[str, Input], count: int) -> dict[str, Array]:
    """Start values as [count, …one session's state] by the name of the state's input; of some states, or all.

    Raises:
        BadTensor: A state is unknown, or has another shape.
    """
    expected = {state.input: state for state in signature.states}
    if not isinstance(states, Mapping):
        raise TypeError(
            f"initial_state is of type {type(states).__name__}; expected a dict with an array for any of"
            f" {listed(sorted(expected))}"
        )
    if unknown := [name for name in states if name not in expected]:
        raise BadTensor(
            f"initial_state has {listed(unknown)}; expected any of {listed(sorted(expected))}, the others start as"
            " the model says",
            metadata={"field": "initial_state"},
        )
    found = {}
    for name, spec in expected.items():
        if name not in states:
            continue
        skip = spec.batch_axis if spec.HasField("batch_axis") else None
        shape = tuple(size for axis, size in enumerate(spec.shape) if axis != skip)
        wanted = Wanted(f"initial_state[{name!r}]", name, numpy_dtype(spec.dtype), width=shape[-1] if shape else None)
        value = read(wanted, states[name])
        if value.shape not in (shape, (count, *shape)):
            raise BadTensor(
                f"initial_state[{name!r}] has shape {list(value.shape)}; expected {shown(shape)}",
                metadata={"field": name},
            )
        found[name] = np.ascontiguousarray(np.broadcast_to(value, (count, *shape)))
    return found
