"""Shapes: whether arrays fit a signature, and how many bytes it says that outputs have. For every protocol alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from statestream.contract import errors
from statestream.contract.signature import TensorSpec, numpy_dtype, step_shape
from statestream_server.arrays import Array


def check_steps(specs: Sequence[TensorSpec], arrays: Sequence[Array], leading: tuple[int, ...], what: str) -> None:
    """Checks inputs of shape [*leading, ...one step]; -1 in `leading` stands for any length of 1 or more.

    Raises:
        BadTensor: One has the wrong dtype or shape.
    """
    for spec, array in zip(specs, arrays, strict=True):
        expected = (*leading, *step_shape(spec))
        fits = array.shape == expected or (
            len(array.shape) == len(expected)
            and all(size == want or (want < 0 and size > 0) for size, want in zip(array.shape, expected, strict=True))
        )
        if array.dtype != numpy_dtype(spec.dtype) or not fits:
            raise errors.BadTensor(
                f"input {spec.name!r} is {array.dtype}{list(array.shape)}; expected {spec.dtype}{list(expected)}"
                f" ({what} first)",
                metadata={"field": spec.name, "expected_shape": str(list(expected)), "expected_dtype": spec.dtype},
            )


def check_graph(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Checks inputs with the graph's own axes, one length along all batch axes.

    Raises:
        BadTensor: One has the wrong dtype or shape, or batch axes differ.
    """
    batches = {}
    for spec, array in zip(specs, arrays, strict=True):
        expected = list(spec.shape)
        fits = len(array.shape) == len(expected) and all(
            want < 0 or size == want for size, want in zip(array.shape, expected, strict=True)
        )
        if array.dtype != numpy_dtype(spec.dtype) or not fits:
            raise errors.BadTensor(
                f"input {spec.name!r} is {array.dtype}{list(array.shape)}; expected {spec.dtype}{expected}, -1 is free",
                metadata={"field": spec.name, "expected_shape": str(expected), "expected_dtype": spec.dtype},
            )
        if spec.HasField("batch_axis"):
            batches[spec.name] = array.shape[spec.batch_axis]
    if len(set(batches.values())) > 1:
        raise errors.BadTensor(f"batch sizes differ: {batches}; expected one", metadata={"field": "inputs"})


def step_bytes(spec: TensorSpec) -> int:
    """Bytes of one step of an input or output."""
    return numpy_dtype(spec.dtype).itemsize * math.prod(step_shape(spec))


def known_bytes(specs: Iterable[TensorSpec], rows: int) -> int:
    """Bytes of outputs of a run of so many rows, as far as the signature knows: those of free shape not counted."""
    size = 0
    for spec in specs:
        shape = [
            rows if spec.HasField("batch_axis") and axis == spec.batch_axis else n for axis, n in enumerate(spec.shape)
        ]
        if min(shape, default=0) >= 0:
            size += numpy_dtype(spec.dtype).itemsize * math.prod(shape)
    return size


def unscored(model: str) -> errors.Unsupported:
    """Why steps of a model are not scored."""
    return errors.Unsupported(
        f"model {model!r} expects nothing of its next input, so no step of it can be scored; export it with feedback="
        "{output: input}, and with a head for likelihoods"
    )
