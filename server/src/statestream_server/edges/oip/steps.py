"""Steps: tensors with a graph's own axes as steps of one session, and back.

The protocol knows requests with a batch; a session is one row of it. So what comes has the shape of the model's
metadata with a batch of 1, and as many steps along its time axis as it brings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statestream.contract import errors
from statestream.contract.signature import TensorSpec
from statestream.contract.specs import batch_axis_of, time_axis_of
from statestream_server.arrays import Array
from statestream_server.shapes import check_graph, check_steps


def packed(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> tuple[int, list[Array]]:
    """How many steps some inputs are, and the inputs as [steps, ...one step].

    Args:
        specs: The inputs of the signature.
        arrays: Theirs, with the graph's own axes, a batch of 1.

    Raises:
        BadTensor: One has another dtype or shape, a batch of more than one, or another number of steps than the first.
    """
    check_graph(specs, arrays)
    found = [_packed(spec, array) for spec, array in zip(specs, arrays, strict=True)]
    steps = len(found[0]) if found else 0
    check_steps(specs, found, (steps,), "steps")
    return steps, found


def _packed(spec: TensorSpec, array: Array) -> Array:
    batch, time = batch_axis_of(spec), time_axis_of(spec)
    if batch is not None:
        if array.shape[batch] != 1:
            raise errors.BadTensor(
                f"input {spec.name!r} of a sequence has a batch of {array.shape[batch]}; expected 1: send the steps of"
                " other sequences as requests of their own, the server batches them",
                metadata={"field": spec.name},
            )
        array = array.reshape(array.shape[:batch] + array.shape[batch + 1 :])
        if time is not None and time > batch:
            time -= 1
    return array[None] if time is None else np.moveaxis(array, time, 0)


def unpacked(spec: TensorSpec, array: Array) -> Array:
    """An output, [steps, ...one step], with the graph's own axes, a batch of 1.

    Where the graph has no time axis there was one step.
    """
    batch, time = batch_axis_of(spec), time_axis_of(spec)
    array = array[-1] if time is None else np.moveaxis(array, 0, time - (batch is not None and time > batch))
    return array if batch is None else np.expand_dims(array, batch)


def check_one_step(specs: Sequence[TensorSpec], steps: int) -> None:
    """Checks that some outputs can tell of so many steps.

    Raises:
        BadTensor: One has no time axis, and there is more than one step.
    """
    for spec in specs:
        if steps > 1 and time_axis_of(spec) is None:
            raise errors.BadTensor(
                f"the request has {steps} steps, and output {spec.name!r} has no time axis to tell of more than one;"
                " send a step a request",
                metadata={"field": "inputs"},
            )
