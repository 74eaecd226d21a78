"""Bodies: requests and answers of the protocol over REST, JSON with or without tensors as bytes behind it.

JSON is for few numbers: each of them is an object for a moment, so there are fewer than there may be as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from statestream.contract import errors
from statestream.contract.errors import quoted
from statestream_server.arrays import Array
from statestream_server.edges.oip import datatypes, parameters
from statestream_server.edges.oip.inference import Request, Response

_MOST_TENSORS: Final = 256
_MOST_CLASSES: Final = 1 << 16
_LONGEST_ID: Final = 256
MOST_JSON: Final = 4 << 20
"""Bytes of JSON of a request."""
_MOST_ELEMENTS: Final = 1 << 18
"""Elements of an input that come as JSON."""
_MOST_TOLD: Final = 1 << 20
"""Elements of an answer that leave as JSON."""
SMALL: Final = 16 << 10
"""Bytes of JSON that are read, and elements that are written at once, without holding others up."""


def object_of(data: bytes) -> dict[str, Any]:
    """A JSON object; nothing at all is an empty one.

    Raises:
        BadFrame: It is none.
    """
    if len(data) > MOST_JSON:
        raise _wrong("body", f"has {len(data)} bytes of JSON", f"at most {MOST_JSON}: send tensors as binary data")
    # Of many numbers each is read by a call of ours, between which the interpreter lets other threads go on.
    hooks: dict[str, Any] = {} if len(data) <= SMALL else {"parse_float": _float, "parse_int": _int}
    try:
        found = json.loads(data.decode(), parse_constant=_constant, **hooks) if data else {}
        if b"\\ud" in data or b"\\uD" in data:
            _json(found, ascii=False).encode()  # Half of a surrogate pair is no character.
    except (ValueError, RecursionError) as error:
        raise _wrong("body", f"cannot be read as JSON ({errors.shortened(str(error))})", "an object") from error
    if not isinstance(found, dict):
        raise _wrong("body", f"is {type(found).__name__}", "a JSON object")
    return found


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON; send binary data")


def request_of(model: str, version: str, body: bytes, head: int | None) -> tuple[Request, set[str] | None]:
    """A request, and the outputs that are wanted as bytes, None for all.

    Args:
        model: Its name in the path.
        version: Its version there, "" for the default one.
        body: JSON, and behind it the tensors that are bytes.
        head: Bytes of JSON; None for all.

    Raises:
        StatestreamError: It cannot be read.
    """
    if head is not None and not 0 <= head <= len(body):
        raise _wrong("Inference-Header-Content-Length", f"is {head}", f"0 to {len(body)}, the bytes of the body")
    asked = object_of(body if head is None else body[:head])
    rest = memoryview(body)[len(body) if head is None else head :]
    inputs, at = dict[str, Array](), 0
    for tensor in _listed(asked, "inputs"):
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        if not isinstance(name, str) or name in inputs:
            raise _wrong("inputs", "has an input without a name, or one twice", "each by its name once")
        if not isinstance(datatype, str):
            raise _wrong(name, "has no datatype", "a text")
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise _wrong(name, "has no shape", "a list of whole numbers")
        size = _shared(tensor, name).get("binary_data_size")
        if size is None:
            inputs[name] = _array(name, datatype, tuple(shape), tensor.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - at or "data" in tensor:
            raise _wrong(
                name, f"has binary_data_size {quoted(str(size))}", "no data, and as many bytes behind the JSON"
            )
        inputs[name] = datatypes.array_of(name, datatype, tuple(shape), bytes(rest[at : at + size]))
        at += size
    if at != len(rest):
        raise _wrong("body", f"has {len(rest)} bytes behind the JSON", f"{at}, the sum of binary_data_size")
    return _asked(model, version, asked, inputs)


def _asked(
    model: str, version: str, asked: Mapping[str, Any], inputs: dict[str, Array]
) -> tuple[Request, set[str] | None]:
    values = _parameters(asked, "request")
    every = values.get("binary_data_output") is True
    outputs, binary = dict[str, int](), set[str]()
    for output in _listed(asked, "outputs"):
        name = output.get("name")
        if not isinstance(name, str) or name in outputs:
            raise _wrong("outputs", "has an output without a name, or one twice", "each by its name once")
        wanted = _shared(output, name)
        classes = wanted.get("classification", 0)
        if type(classes) is not int or not 0 <= classes <= _MOST_CLASSES:
            raise _wrong("classification", f"is {quoted(str(classes))}", f"0 to {_MOST_CLASSES}")
        outputs[name] = classes
        if wanted.get("binary_data", every) is True:
            binary.add(name)
    named = asked.get("id", "")
    if not isinstance(named, str) or len(named) > _LONGEST_ID:
        raise _wrong("id", f"is {quoted(str(named))}", f"a text of at most {_LONGEST_ID} characters")
    request = Request(model, parameters.version_of(version), named, inputs, outputs, values)
    return request, None if every and not outputs else binary


def check_answer(nbytes: int, binary: set[str] | None) -> None:
    """Checks, before anything is run, that an answer of about so many bytes may leave in the form that is wanted.

    Raises:
        AnswerTooLarge: As JSON it is too long.
    """
    if binary is not None and not binary and nbytes > 8 * _MOST_TOLD:
        raise _too_large(f"outputs of {nbytes} bytes")


def answer_of(request: Request, response: Response, binary: set[str] | None) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON where others follow.

    Numbers that JSON does not have (NaN, infinities) are null.

    Raises:
        AnswerTooLarge: It has more elements than leave as JSON.
        BadTensor: It has BYTES that are no text.
    """
    told, parts, elements = list[str](), list[bytes](), 0
    for name, datatype, array in response.outputs:
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary is None or name in binary:
            parts.append(datatypes.raw(array))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
            told.append(_json(output))
            continue
        elements += array.size
        if elements > _MOST_TOLD:
            raise _too_large(f"{elements} elements")
        told.append(f'{_json(output)[:-1]},"data":[{",".join(_elements(name, array))}]}}')
    answer: dict[str, Any] = {"model_name": request.model, "model_version": str(response.version)}
    if request.id:
        answer["id"] = request.id
    if response.parameters:
        answer["parameters"] = dict(response.parameters)
    head = f'{_json(answer)[:-1]},"outputs":[{",".join(told)}]}}'.encode()
    return b"".join((head, *parts)), len(head) if parts else None


def _elements(name: str, array: Array) -> Iterator[str]:
    """An output's elements as JSON, some at a time."""
    flat = array.ravel()
    for at in range(0, flat.size, SMALL):
        some = flat[at : at + SMALL]
        values: list[Any] = some.tolist()
        if array.dtype == object:
            try:
                values = [each.decode() for each in values]
            except UnicodeDecodeError as error:
                raise errors.BadTensor(
                    f"output {quoted(name)} has bytes that are no text in UTF-8; ask for it with the parameter"
                    " binary_data = true",
                    metadata={"field": name[:64]},
                ) from error
        elif array.dtype.kind == "f":
            good = np.isfinite(some)
            if not good.all():
                values = [value if fine else None for value, fine in zip(values, good.tolist(), strict=True)]
        yield _json(values)[1:-1]


def _json(value: Any, *, ascii: bool = True) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=ascii)


def _too_large(what: str) -> errors.AnswerTooLarge:
    return errors.AnswerTooLarge(
        f"the answer would have {what} as JSON; at most {_MOST_TOLD} elements leave so: ask for binary data (the"
        " parameter binary_data_output = true), or for fewer outputs or rows"
    )


def _array(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    count = datatypes.count_of(name, shape)
    flat, waiting = list[Any](), [data]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(reversed(each))
        else:
            flat.append(each)
    if len(flat) > _MOST_ELEMENTS:
        raise _wrong(name, f"has {len(flat)} elements in data", f"at most {_MOST_ELEMENTS}; send binary data")
    if data is None or len(flat) != count:
        raise _wrong(name, f"has {len(flat)} elements", f"{count} in data for the shape {list(shape)[:32]}")
    if datatype == datatypes.BYTES and all(isinstance(each, str) for each in flat):
        return datatypes.texts(flat, shape)
    if datatype == datatypes.BF16:
        raise _wrong(name, f"has datatype {datatype} and data as JSON", "it as binary data, as no number is written so")
    dtype = datatypes.dtype_of(name, datatype)
    kinds = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    if not all(type(each) in kinds for each in flat):
        raise _wrong(name, "has elements of another type in data", datatype)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype).reshape(shape)
    except OverflowError as error:
        raise _wrong(name, "has an element out of range", datatype) from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise _wrong(name, "has an element out of range", datatype)
    return array


def _listed(asked: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    found = asked.get(field) or []
    if not isinstance(found, list) or len(found) > _MOST_TENSORS or not all(isinstance(each, dict) for each in found):
        raise _wrong(field, "cannot be read", f"a list of up to {_MOST_TENSORS} objects")
    return found


def _parameters(asked: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = asked.get("parameters") or {}
    if not isinstance(found, dict) or not all(isinstance(each, bool | int | float | str) for each in found.values()):
        raise _wrong("parameters", f"of {quoted(what)} cannot be read", "an object of numbers, texts and booleans")
    return found


def _shared(tensor: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = _parameters(tensor, name)
    if any(key.startswith("shared_memory") for key in found):
        raise errors.Unimplemented(f"{quoted(name)} names shared memory; this server has none: send the contents")
    return found


def _wrong(field: str, came: str, expected: str) -> errors.BadFrame:
    return errors.BadFrame(f"{quoted(field)} {came}; expected {expected}", metadata={"field": field[:64]})
