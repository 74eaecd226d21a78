"""Tensors: the inputs and outputs of messages as arrays, from typed or raw contents; always raw on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import quoted
from statestream_server.arrays import Array
from statestream_server.edges.oip import datatypes
from statestream_server.edges.oip import oip_pb2 as pb

_FIELDS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of a datatype are; FP16 and BF16 travel as raw contents only."""


def inputs_of(request: pb.ModelInferRequest) -> dict[str, Array]:
    """The inputs of a request by name.

    Raises:
        BadTensor: One cannot be read or comes twice, or there are raw contents for some inputs only.
    """
    raw, found = request.raw_input_contents, dict[str, Array]()
    if raw and len(raw) != len(request.inputs):
        raise errors.BadTensor(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; expected one each, or none",
            metadata={"field": "raw_input_contents"},
        )
    for place, tensor in enumerate(request.inputs):
        name = tensor.name
        if name in found:
            raise errors.BadTensor(f"input {quoted(name)} comes twice; expected once", metadata={"field": name})
        if any(key.startswith("shared_memory") for key in tensor.parameters):
            raise errors.Unimplemented(
                f"input {quoted(name)} lies in shared memory; this server reads none: send the contents"
            )
        shape = tuple(tensor.shape)
        if not raw:
            found[name] = _typed(tensor, shape)
        elif tensor.HasField("contents"):
            raise errors.BadTensor(
                f"input {quoted(name)} has contents and raw_input_contents; expected one of them",
                metadata={"field": name},
            )
        else:
            found[name] = datatypes.array_of(name, tensor.datatype, shape, raw[place])
    return found


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Array:
    name, datatype, count = tensor.name, tensor.datatype, datatypes.count_of(tensor.name, shape)
    field = _FIELDS.get(datatype)
    if field is None:
        datatypes.dtype_of(name, "FP32" if datatype == datatypes.BF16 else datatype)
        raise errors.BadTensor(
            f"input {quoted(name)} has datatype {datatype} and no raw contents; expected raw_input_contents, as no"
            " other field holds it",
            metadata={"field": name},
        )
    elements = getattr(tensor.contents, field)
    if len(elements) != count:
        raise errors.BadTensor(
            f"input {quoted(name)} has {len(elements)} elements in contents.{field}; expected {count} for"
            f" {datatype}{list(shape)}",
            metadata={"field": name},
        )
    if datatype == datatypes.BYTES:
        array = np.empty(count, object)
        array[:] = elements
        return array.reshape(shape)
    dtype = datatypes.dtype_of(name, datatype)
    wide = np.asarray(elements, dtype if dtype.itemsize == 8 or dtype.kind in "fb" else np.int64)
    array = wide.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(array, wide):
        raise errors.BadTensor(
            f"input {quoted(name)} has elements that {datatype} does not hold", metadata={"field": name}
        )
    return array.reshape(shape)


def add_output(response: pb.ModelInferResponse, name: str, datatype: str, array: Array) -> None:
    """Adds an output to an answer."""
    output = response.outputs.add()
    output.name, output.datatype = name, datatype
    output.shape.extend(array.shape)
    response.raw_output_contents.append(datatypes.raw(array))
